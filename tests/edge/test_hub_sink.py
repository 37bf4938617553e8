"""The Hub as a sink: the contract by Xet and by LFS (basic and multipart), and what is its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from tensorport_hub.devhub import DevHub, Fault
from tensorport_hub.edge import retry
from tensorport_hub.edge.http import Http
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.edge.hub_pulls import PullRequests
from tensorport_hub.edge.hub_ref import HubRef
from tensorport_hub.edge.hub_sink import HubSink
from tensorport_hub.edge.hub_store import HubStore
from tensorport_hub.edge.hub_xet import SPARING, XetSession
from tensorport_hub.edge.journal import Unkept
from tensorport_hub.errors import DestinationError, LimitError
from tensorport_hub.ports import Sink
from tests.contracts.sink import SinkContract, SinkOf


def open_sink(hub: DevHub, transfer: str, *, max_disk: int = 1 << 22, uploads: int = 2) -> HubSink:
    """A sink that publishes in one commit on `main` of `me/mirror`."""
    client = HubClient(endpoint=hub.endpoint, token=hub.token)
    client.create_repo("me/mirror", private=False)
    store = HubStore.of(
        client,
        "me/mirror",
        transfer=transfer,
        max_disk=max_disk,
        writers=4,
        uploads=uploads,
        read_seconds=5,
        report=lambda event: None,
    )
    return HubSink(
        client,
        HubRef.of(client, "me/mirror", "main", lambda event: None),
        None,
        store=store,
        journal=Unkept(),
        message="Mirror",
        offer=False,
        begun=False,
        report=lambda event: None,
    )


class HubSinkContract(SinkContract):
    """The duties of every sink, against a devhub."""

    transfer: str
    uploads = 2

    @pytest.fixture
    def sink_of(self, hub: DevHub) -> Iterator[SinkOf]:
        self.hub = hub
        opened: list[HubSink] = []

        def make() -> HubSink:
            opened.append(open_sink(hub, self.transfer, uploads=self.uploads))
            return opened[-1]

        yield make
        for sink in opened:
            sink.close()

    def published(self, sink: Sink) -> Mapping[str, bytes]:
        files = [path for path in self.hub.files("me/mirror") if path != ".gitattributes"]
        return {path: self.hub.read("me/mirror", path) for path in files}


class TestXetSink(HubSinkContract):
    """By Xet stream."""

    transfer = "xet"


class TestSparingXetSink(HubSinkContract):
    """By Xet stream, with little memory."""

    transfer = "xet"
    uploads = SPARING


class TestLfsSink(HubSinkContract):
    """By LFS; files above 100,000 bytes in parts."""

    transfer = "lfs"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST", 0.01)


def publish(sink: HubSink, files: Mapping[str, bytes]) -> str:
    try:
        receipts = []
        for path, content in files.items():
            writer = sink.open(path, len(content))
            writer.write(memoryview(content))
            receipts.append(writer.finish())
        sink.put("manifest.json", b'{"schema": "tensorport.manifest/1", "files": []}')
        published = sink.commit(receipts)
    finally:
        sink.close()
    assert published.commit is not None
    return published.commit


def test_multipart_is_used_and_survives_a_lost_part(hub: DevHub) -> None:
    """A large file goes up in parts; one that fails is sent again by itself."""
    hub.faults.add(Fault("status", "PUT", "cdn", status=500, after=1, times=2))
    sink = open_sink(hub, "lfs")
    content = bytes(range(256)) * 1000
    publish(sink, {"a.npy": content})
    assert hub.read("me/mirror", "a.npy") == content
    assert len([s for s in hub.seen if s.method == "PUT" and s.status < 300]) == -(-len(content) // 60_000)


def test_an_object_that_is_there_is_not_sent(hub: DevHub) -> None:
    """LFS: content that the Hub has already costs a batch request and no upload."""
    publish(open_sink(hub, "lfs"), {"a.npy": b"x" * 1000})
    hub.forget()
    publish(open_sink(hub, "lfs"), {"b.npy": b"x" * 1000})
    assert [s for s in hub.seen if s.method == "PUT"] == []
    assert hub.read("me/mirror", "b.npy") == b"x" * 1000


def test_staging_has_a_limit(hub: DevHub) -> None:
    """A file that can never fit `max_disk` is refused at once, with what to do."""
    sink = open_sink(hub, "lfs", max_disk=1000)
    with pytest.raises(LimitError, match="staging space") as caught:
        sink.open("a.npy", 1001)
    assert "--max-disk" in caught.value.hint
    sink.close()


@pytest.mark.parametrize("transfer", ["xet", "lfs"])
def test_a_lost_answer_is_looked_up(hub: DevHub, transfer: str) -> None:
    """A commit whose answer was lost is found, not sent twice."""
    sink = open_sink(hub, transfer)
    hub.faults.add(Fault("lost_answer", "POST", "hub", "*/commit/*"))
    commit = publish(sink, {"a.npy": b"x" * 1000})
    history = HfApi(endpoint=hub.endpoint, token=hub.token).list_repo_commits("me/mirror")
    assert len(history) == 2
    assert history[0].commit_id == commit


def test_a_repository_that_moved_is_not_overwritten(hub: DevHub) -> None:
    """Somebody else's commit in between: error 5, and theirs stays."""
    publish(open_sink(hub, "lfs"), {"a.npy": b"x" * 1000})
    sink = open_sink(hub, "lfs")
    hub.add_repo("me/mirror", {"theirs.txt": b"theirs"}, message="meanwhile")
    with pytest.raises(DestinationError, match="moved meanwhile"):
        publish(sink, {"b.npy": b"y" * 1000})
    assert hub.read("me/mirror", "theirs.txt") == b"theirs"
    assert "b.npy" not in hub.files("me/mirror")


def test_small_files_the_hub_wants_as_lfs(hub: DevHub) -> None:
    """A carried `tokenizer.model` goes as LFS, a `config.json` as a regular file, in one commit."""
    sink = open_sink(hub, "xet")
    sink.put("tokenizer.model", b"\0binary" * 100)
    sink.put("config.json", b"{}")
    publish(sink, {"a.npy": b"x" * 1000})
    files = hub.files("me/mirror")
    assert files["tokenizer.model"][1] is not None
    assert files["config.json"][1] is None
    assert hub.read("me/mirror", "tokenizer.model") == b"\0binary" * 100


def test_xet_sessions_share_a_folder(hub: DevHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of the process name it: it is there until the last session closes, then both are gone."""
    monkeypatch.delenv("HF_XET_CACHE", raising=False)
    client = HubClient(endpoint=hub.endpoint, token=hub.token)
    client.create_repo("me/mirror", private=False)
    first, second = (
        XetSession.offered(client, Http(read_seconds=5), "me/mirror", uploads=2) for _ in range(2)
    )
    assert first is not None
    assert second is not None
    folder = Path(os.environ["HF_XET_CACHE"])
    first.close()
    first.close()
    assert folder.is_dir()
    writer = second.open("a", 3)
    writer.write(memoryview(b"abc"))
    assert writer.finish().size == 3
    second.close()
    assert not folder.exists()
    assert "HF_XET_CACHE" not in os.environ


def test_a_commit_that_arrives_late_is_found(hub: DevHub) -> None:
    """It times out, isn't there when it is looked up, and then is: the next attempt is refused, and that it
    was made is seen."""

    class Slow(HubClient):
        asked = 0

        def commit(self, *args: Any, **options: Any) -> str:
            self.asked += 1
            if self.asked == 1:
                raise DestinationError("timed out", transient=True)
            if self.asked == 2:
                super().commit(*args, **options)
            return super().commit(*args, **options)

    client = Slow(endpoint=hub.endpoint, token=hub.token)
    client.create_repo("me/mirror", private=False)
    hub.add_repo("me/mirror", {"old": b"0"}, message="Before")
    ref = HubRef.of(client, "me/mirror", "main", lambda event: None)
    assert ref.apply(uploaded=[], small={"a": b"1"}, deleted=["old"], message="Once")
    assert client.asked == 2
    assert [commit.title for commit in hub.commits("me/mirror")] == ["Once", "Before", "initial commit"]
    assert ref.commit == hub.commits("me/mirror")[0].oid


def test_a_ref_that_moved_is_lost_for_good(hub: DevHub) -> None:
    """After somebody else's commit is found behind a lost answer, no later one is sent."""
    client = HubClient(endpoint=hub.endpoint, token=hub.token)
    client.create_repo("me/mirror", private=False)
    ref = HubRef.of(client, "me/mirror", "main", lambda event: None)
    hub.add_repo("me/mirror", {"theirs": b"2"})
    hub.faults.add(Fault("status", "POST", "hub", "*/commit/*", status=503))
    for _ in range(2):
        with pytest.raises(DestinationError, match="moved meanwhile"):
            ref.apply(uploaded=[], small={"a": b"1"}, deleted=[], message="Over it")
    assert "a" not in hub.files("me/mirror")


def test_a_closed_pull_request_is_not_merged(hub: DevHub) -> None:
    """Whoever closed it meant it: an error, and no commit publishes instead."""
    client = HubClient(endpoint=hub.endpoint, token=hub.token)
    client.create_repo("me/mirror", private=False)
    pulls = PullRequests(client, "me/mirror", lambda event: None)
    num = pulls.create("Mirror", "")
    pulls.set_status(num, "closed")
    with pytest.raises(DestinationError, match="closed meanwhile"):
        pulls.merge(num)
