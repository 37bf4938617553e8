"""The Hub's Xet storage as a source: the contract, how many bytes, tokens, faults, what is not there."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tensorport_hub.devhub import DevHub, Fault
from tensorport_hub.devhub.traffic import Seen
from tensorport_hub.edge import retry
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.edge.hub_source import HubSource
from tensorport_hub.errors import SourceError
from tensorport_hub.ports import Event, Waiting, Warned
from tests.contracts.source import SourceContract, SourceOf
from tests.pushed import push

CONTENT = random.Random(4).randbytes(9_000_000)
CHUNK = 128 << 10
XORBS, PLACES = "/cas/xorbs/*", "/cas/v1/reconstructions/*"


Open = Callable[..., HubSource]


@pytest.fixture
def open_source(hub: DevHub) -> Iterator[Open]:
    """Opens `me/model`, and closes it at the end."""
    opened: list[HubSource] = []

    def go(report: list[Event] | None = None) -> HubSource:
        client = HubClient(endpoint=hub.endpoint, token=hub.token)
        state = client.repo_state("me/model", None, SourceError)
        events: list[Event] = [] if report is None else report
        opened.append(HubSource(client, state, read_seconds=0.5, report=events.append, xet=True))
        return opened[-1]

    yield go
    for source in opened:
        source.close()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST", 0.01)


class TestHubSourceByXet(SourceContract):
    """The duties of every source."""

    @pytest.fixture
    def source_of(self, hub: DevHub, open_source: Open) -> SourceOf:
        def make(files: Mapping[str, bytes]) -> HubSource:
            push(hub, "me/model", files)
            return open_source()

        return make


@pytest.fixture
def seeded(hub: DevHub) -> DevHub:
    push(hub, "me/model", {"model.safetensors": CONTENT, "config.json": b"{}"})
    hub.forget()
    return hub


def read(source: HubSource, start: int, stop: int, path: str = "model.safetensors") -> bytes:
    buffer = bytearray(stop - start)
    source.read_into(path, start, memoryview(buffer))
    return bytes(buffer)


def storage(hub: DevHub) -> list[Seen]:
    return [seen for seen in hub.seen if seen.origin == "cdn"]


def test_the_bytes_come_from_the_storage(seeded: DevHub, open_source: Open) -> None:
    """One resolve and one token serve many ranges; none comes over HTTP; the Hub's token stays at the Hub."""
    source = open_source()
    for start in range(0, 4_000_000, 500_000):
        assert read(source, start, start + 500_000) == CONTENT[start : start + 500_000]
    assert [s.method for s in seeded.seen if "/resolve/" in s.path] == ["HEAD"]
    tokens = [s.path for s in seeded.seen if "/xet-" in s.path]
    assert tokens == [f"/api/models/me/model/xet-read-token/{source.commit}"]
    assert all(s.path.startswith("/cas/") for s in storage(seeded))
    assert not any(seeded.token in (s.authorization or "") for s in storage(seeded))


def test_a_range_fetches_hardly_more_than_itself(seeded: DevHub, open_source: Open) -> None:
    """Two requests a range, and at most a chunk too much on either side."""
    source = open_source()
    read(source, 0, 1)
    seeded.forget()
    for start, stop in ((0, 8 << 20), (1_000_000, 1_000_001), (4_321_000, 7_654_321)):
        assert read(source, start, stop) == CONTENT[start:stop]
        places, chunks = storage(seeded)
        assert places.path.startswith("/cas/v1/reconstructions/")
        assert chunks.bytes_out <= stop - start + 2 * CHUNK
        seeded.forget()


def test_a_long_range_comes_in_pieces(seeded: DevHub, open_source: Open) -> None:
    """What is longer than 8 MiB is read by several streams, so that no stream buffers more than that."""
    source = open_source()
    assert read(source, 0, len(CONTENT)) == CONTENT
    asked = [s.range for s in storage(seeded) if s.path.startswith("/cas/v1/reconstructions/")]
    assert asked == ["bytes=0-8388607", "bytes=8388608-8999999"]


def test_a_moved_branch_is_not_followed(seeded: DevHub, open_source: Open) -> None:
    """What was opened is what is read, although the branch has moved."""
    source = open_source()
    push(seeded, "me/model", {"model.safetensors": random.Random(5).randbytes(9_000_000)})
    assert read(source, 100, 300_000) == CONTENT[100:300_000]


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_is_refused_is_asked_for_again(seeded: DevHub, open_source: Open, status: int) -> None:
    """A token that the storage no longer takes costs one more token, and an event tells why it waits."""
    events: list[Event] = []
    source = open_source(events)
    read(source, 0, 10)
    seeded.faults.add(Fault("status", path=PLACES, status=status))
    assert read(source, 100, 300) == CONTENT[100:300]
    assert sum("/xet-read-token/" in s.path for s in seeded.seen) == 2
    (waiting,) = [event for event in events if isinstance(event, Waiting)]
    assert "range 100:300 of `model.safetensors` by Xet" in waiting.reason
    assert "://" not in waiting.reason


@pytest.mark.parametrize("path", [PLACES, XORBS])
@pytest.mark.parametrize("kind", ["truncate", "drop", "close", "stall", "ignore_range", "status"])
def test_faults_never_become_bytes(seeded: DevHub, open_source: Open, kind: str, path: str) -> None:
    """Short, broken, silent and refused answers: asked again, and an error where it stays; a whole xorb to
    a range of one is not mistaken for it."""
    source = open_source()
    read(source, 0, 1)
    seeded.faults.add(Fault(kind, path=path, at=50, seconds=1, times=3))
    assert read(source, 1_000_000, 3_000_000) == CONTENT[1_000_000:3_000_000]
    if (kind, path) == ("ignore_range", PLACES):
        return  # a JSON answer has no ranges
    seeded.faults.clear()
    seeded.faults.add(Fault(kind, path=path, at=0, seconds=1, times=None))
    with pytest.raises(SourceError, match=r"model\.safetensors") as caught:
        read(source, 4_000_000, 6_000_000)
    assert "://" not in caught.value.message
    assert "--read http" in caught.value.hint
    seeded.faults.clear()
    assert read(source, 4_000_000, 6_000_000) == CONTENT[4_000_000:6_000_000]


def test_damaged_answers_are_errors_of_ours(seeded: DevHub, open_source: Open) -> None:
    """A byte flipped anywhere in an answer gives a `SourceError` or as many bytes; nothing else is raised."""
    source, draw = open_source(), random.Random(6)
    read(source, 0, 1)
    ends: list[str] = []
    for path in [PLACES, XORBS] * 8:
        seeded.faults.clear()
        seeded.faults.add(Fault("wrong_bytes", path=path, at=draw.randrange(600), times=None))
        try:
            ends.append(f"{len(read(source, 2_000_000, 2_100_000))} bytes")
        except SourceError as error:
            ends.append(error.message)
    assert any("model.safetensors" in end for end in ends)
    assert any(end == "100000 bytes" for end in ends)
    seeded.faults.clear()
    assert read(source, 2_000_000, 2_100_000) == CONTENT[2_000_000:2_100_000]


def test_without_tokens_there_is_a_hint(seeded: DevHub, open_source: Open) -> None:
    """A Hub that states Xet hashes but gives no tokens is an error that says what to do."""
    seeded.faults.add(Fault("status", path="*/xet-read-token/*", status=404, times=None))
    with pytest.raises(SourceError, match="me/model") as caught:
        read(open_source(), 0, 10)
    assert "--read http" in caught.value.hint


def test_what_is_not_in_xet_comes_by_http(hub: DevHub, open_source: Open) -> None:
    """A large file that lies elsewhere is read over HTTP, and that is said once; of small ones nothing is."""
    push(hub, "me/model", {"a.safetensors": CONTENT[:200_000], "config.json": b"{}"})
    hub.add_repo("me/model", {"b.safetensors": b"b" * 1000, "c.safetensors": b"c" * 1000})
    events: list[Event] = []
    source = open_source(events)
    assert read(source, 0, 2, "config.json") == b"{}"
    assert read(source, 0, 200_000, "a.safetensors") == CONTENT[:200_000]
    assert not events
    for name in "bcb":
        assert read(source, 10, 500, f"{name}.safetensors") == name.encode() * 490
    (warned,) = events
    assert isinstance(warned, Warned)
    assert "b.safetensors" in warned.message


def test_nothing_is_left_on_the_disk(
    seeded: DevHub, open_source: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What hf_xet writes lies in a folder of ours, holds no payload, and goes with the source."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.delenv("HF_XET_CACHE")
    source = open_source()
    read(source, 0, 8_000_000)
    held = sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file())
    assert held < 100_000
    source.close()
    assert os.listdir(scratch) == []
