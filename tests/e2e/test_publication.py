"""Runs to the Hub at the edges of publication: refused, stopped, offered elsewhere, shown to others."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from tensorport_hub import convert, mirror
from tensorport_hub.core.digest import pointer_oid
from tensorport_hub.devhub import DevHub, Fault, gitattributes
from tensorport_hub.edge import retry
from tensorport_hub.edge.hub_pulls import PullRequests
from tensorport_hub.edge.ref_journal import RefJournal
from tensorport_hub.engine import part
from tensorport_hub.errors import DestinationError, SourceError
from tensorport_hub.ports import Event, Planned, Saved
from tests.e2e.interrupted import EVERY, MODEL, SOURCE, TARGET, interrupted, pulls, read_bytes, run
from tests.e2e.reading import contents

WHOLE = 1_000_000
"""Bytes between checkpoints that leave a good part of the model for the last commit."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST", 0.01)
    monkeypatch.setattr(part, "_PAUSE", 0.01)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """The model on this machine."""
    (tmp_path / "model").mkdir()
    for path, data in MODEL.items():
        (tmp_path / "model" / path).write_bytes(data)
    return str(tmp_path / "model")


def test_a_manifest_that_is_an_lfs_file(seeded: DevHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a large mirror is one (above 10 MB), and the Hub itself adds it to `.gitattributes`."""
    monkeypatch.setattr(gitattributes, "REGULAR_LIMIT", 5_000)
    first = run()
    assert first.changed
    assert b"manifest.json filter=lfs" in seeded.read(TARGET, ".gitattributes")
    assert seeded.commits(TARGET)[0].title.endswith("(#1)")
    assert not run().changed
    assert run(restart=True).manifest == first.manifest


class TestStoppedAtTheEnd:
    """All is there, but not yet merged."""

    @pytest.mark.parametrize("how", ["refused", "interrupted"])
    def test_what_is_complete_stays_so(
        self, seeded: DevHub, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        """The last checkpoint of the stopped run adds nothing to it: the next one only merges."""
        with monkeypatch.context() as patched:
            if how == "refused":
                seeded.faults.add(Fault("status", "POST", "hub", "*/merge", status=503, times=None))
            else:
                patched.setattr(PullRequests, "merge", _interrupt)
            with pytest.raises((DestinationError, KeyboardInterrupt)):
                run(checkpoint_every=WHOLE)
        seeded.faults.clear()
        assert not [p for p in seeded.files(TARGET, "refs/pr/1") if p.startswith(".tensorport")]
        result = run(checkpoint_every=WHOLE)
        assert result.stats.bytes_written == 0
        assert contents(seeded, TARGET) == undisturbed

    def test_of_a_folder(self, hub: DevHub, client: HfApi, folder: str, monkeypatch: Any) -> None:
        """The same where the source is a folder, whose state is known by its headers and times."""
        with monkeypatch.context() as patched:
            patched.setattr(PullRequests, "merge", _interrupt)
            patched.setattr(RefJournal, "save", lambda journal: None)  # as by SIGKILL
            with pytest.raises(KeyboardInterrupt):
                mirror(folder, TARGET, transfer="lfs", checkpoint_every=EVERY)
        assert mirror(folder, TARGET, transfer="lfs", checkpoint_every=EVERY).stats.bytes_written == 0
        assert pulls(client) == {1: "merged"}


def _interrupt(*_: object) -> str:
    raise KeyboardInterrupt


class TestVisibility:
    """A private source, and a destination that others can read."""

    @pytest.mark.parametrize("there", ["made", "opened"])
    def test_that_becomes_open_meanwhile(self, hub: DevHub, client: HfApi, there: str) -> None:
        """Made, or made public, between plan and run: refused, and nothing is published."""
        hub.add_repo("me/secret", MODEL, private=True)
        if there == "opened":
            client.create_repo(TARGET, private=True)

        def meanwhile(event: Event) -> None:
            if isinstance(event, Planned) and there == "made":
                client.create_repo(TARGET, private=False)
            elif isinstance(event, Planned):
                client.update_repo_settings(TARGET, private=False)

        with pytest.raises(DestinationError):
            mirror("me/secret", TARGET, transfer="lfs", on_event=meanwhile)
        assert list(hub.files(TARGET)) == [".gitattributes"]


class TestFound:
    """What an interrupted run left is found whatever the next one is told."""

    def test_without_need_of_checkpoints(self, seeded: DevHub, client: HfApi) -> None:
        """A run that would be one commit continues the pull request that is there."""
        interrupted(seeded)
        result = mirror(SOURCE, TARGET, transfer="lfs")
        assert result.stats.parts_resumed > 0
        assert pulls(client) == {1: "merged"}

    def test_restart_without_need_of_checkpoints(self, seeded: DevHub, client: HfApi) -> None:
        """And `restart` closes it."""
        interrupted(seeded)
        mirror(SOURCE, TARGET, transfer="lfs", restart=True)
        assert pulls(client) == {1: "closed"}

    def test_among_many_of_strangers(self, seeded: DevHub, client: HfApi) -> None:
        """Anybody may open pull requests: they don't cost a request each."""
        client.create_repo(TARGET)
        mallory = HfApi(endpoint=seeded.endpoint, token=seeded.add_user("mallory"))
        for number in range(60):
            mallory.create_pull_request(TARGET, f"spam {number}")
        seeded.forget()
        run()
        asked = [s for s in seeded.seen if s.method == "GET" and "/discussions/" in s.path]
        assert len(asked) < 30
        assert pulls(client)[61] == "merged"


class TestAnew:
    """`--restart` makes everything itself, also when it is interrupted and continued."""

    def test_on_the_hub(self, seeded: DevHub, undisturbed: dict[str, bytes]) -> None:
        """The same command without `--restart` goes on, and believes nothing of what stands."""
        run()
        path = next(path for path in undisturbed if path.endswith("w0.npy"))
        forge(seeded, path)
        assert not run().changed
        seeded.faults.add(Fault("status", "GET", "cdn", status=404, after=6, times=None))
        with pytest.raises(SourceError):
            run(restart=True, workers=1)
        seeded.faults.clear()
        result = run()
        assert (result.stats.parts_kept, result.stats.parts_resumed > 0) == (0, True)
        assert contents(seeded, TARGET) == undisturbed

    def test_in_a_folder(self, hub: DevHub, folder: str, tmp_path: Path, monkeypatch: Any) -> None:
        """The same of a folder."""
        hub.add_repo(SOURCE, MODEL)
        out = str(tmp_path / "out")
        convert(SOURCE, out)
        hub.faults.add(Fault("status", "GET", "cdn", "*", status=404, after=6, times=None))
        with pytest.raises(SourceError):
            convert(SOURCE, out, restart=True, workers=1)
        hub.faults.clear()
        assert convert(SOURCE, out).stats.parts_kept == 0


def forge(hub: DevHub, path: str) -> None:
    """Other bytes in a file, with a manifest that agrees."""
    data = hub.read(TARGET, path)[:-4] + b"evil"
    text = hub.read(TARGET, "manifest.json").decode()
    size, sha256, _ = hub.files(TARGET)[path]
    oids = [(sha256, hashlib.sha256(data).hexdigest())]
    oids.append((pointer_oid(str(sha256), size), pointer_oid(oids[0][1], size)))
    for old, new in oids:
        text = text.replace(str(old), new)
    hub.add_repo(TARGET, {path: data, "manifest.json": text.encode()}, message="forged")


class TestElsewhere:
    """Pull requests and branches."""

    def test_no_pull_request_may_be_opened(self, seeded: DevHub) -> None:
        """Where one is asked for, no branch takes its place: an error before a weight is read."""
        seeded.faults.add(Fault("status", "POST", "hub", "*/discussions", status=403, times=None))
        seeded.forget()
        with pytest.raises(DestinationError, match="pull request"):
            run(create_pr=True)
        assert [s for s in seeded.seen if s.method == "PUT"] == []

    def test_a_branch_beside_the_same_on_main(self, seeded: DevHub, client: HfApi) -> None:
        """`main` holds it already, the branch does not exist: it is made, and no weight is read."""
        mirror(SOURCE, TARGET, transfer="lfs")
        planned = read_bytes(seeded)
        assert mirror(SOURCE, TARGET, transfer="lfs", branch="v1").changed
        assert not mirror(SOURCE, TARGET, transfer="lfs", branch="v1").changed
        assert "v1" in [branch.name for branch in client.list_repo_refs(TARGET).branches]
        assert read_bytes(seeded) - planned < planned
        assert contents(seeded, TARGET) == {
            path: seeded.read(TARGET, path, "v1")
            for path in seeded.files(TARGET, "v1")
            if path != ".gitattributes"
        }

    def test_two_branches_at_once(self, seeded: DevHub, client: HfApi) -> None:
        """The same plan to two branches: each run has work of its own, and none stops the other."""
        client.create_repo(TARGET)
        held, resume = threading.Event(), threading.Event()

        def hold(event: Event) -> None:
            if isinstance(event, Saved) and not held.is_set():
                held.set()
                resume.wait(60)

        with ThreadPoolExecutor(1) as pool:
            options: dict[str, Any] = {"checkpoint_every": EVERY, "transfer": "lfs", "branch": "a"}
            one = pool.submit(mirror, SOURCE, TARGET, on_event=hold, **options)
            assert held.wait(60)
            run(branch="b")
            resume.set()
            one.result()
        assert [branch.name for branch in client.list_repo_refs(TARGET).branches] == ["a", "b", "main"]


class TestOthersFiles:
    """What others put beside the mirror, or in its place."""

    def test_a_file_of_somebody_else(self, seeded: DevHub) -> None:
        """It is not removed unasked: error 5 names it; `restart` makes the mirror without it."""
        mirror(SOURCE, TARGET, transfer="lfs")
        seeded.add_repo(TARGET, {"eval/RESULTS.md": b"weeks of work"}, message="results")
        with pytest.raises(DestinationError, match=r"eval/RESULTS\.md") as caught:
            mirror(SOURCE, TARGET, transfer="lfs")
        assert (caught.value.exit_code, "--restart" in caught.value.hint) == (5, True)
        assert "eval/RESULTS.md" in seeded.files(TARGET)
        mirror(SOURCE, TARGET, transfer="lfs", restart=True)
        assert "eval/RESULTS.md" not in seeded.files(TARGET)

    def test_a_gitignore(self, seeded: DevHub, undisturbed: dict[str, bytes], client: HfApi) -> None:
        """What it names is published all the same: the client would leave it out without a word."""
        client.create_repo(TARGET)

        def meanwhile(event: Event) -> None:
            if isinstance(event, Saved) and ".gitignore" not in seeded.files(TARGET, "refs/pr/1"):
                client.create_commit(
                    TARGET,
                    [CommitOperationAdd(".gitignore", b"*.json\n*.jsonl\n")],
                    commit_message="ignore",
                    revision="refs/pr/1",
                )

        with pytest.raises(DestinationError):
            mirror(SOURCE, TARGET, transfer="lfs", checkpoint_every=EVERY, on_event=meanwhile)
        run()
        assert contents(seeded, TARGET) == undisturbed

    def test_a_newer_mirror_that_came_meanwhile(self, seeded: DevHub, client: HfApi) -> None:
        """Another run publishes between plan and run: it is not overwritten by what was planned before."""
        mirror(SOURCE, TARGET, transfer="lfs")
        old = client.model_info(SOURCE).sha
        seeded.add_repo(SOURCE, {"config.json": b'{"new": 1}'})

        def rival(event: Event) -> None:
            if isinstance(event, Planned):
                mirror(SOURCE, TARGET, transfer="lfs")

        with pytest.raises(DestinationError, match="moved since"):
            mirror(SOURCE, TARGET, transfer="lfs", revision=old, restart=True, on_event=rival)
        assert seeded.read(TARGET, "config.json") == b'{"new": 1}'


def test_a_callback_that_raises(seeded: DevHub, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever event it raises on, the run goes on; it is logged."""

    def broken(event: Event) -> None:
        raise RuntimeError("broken")

    assert mirror(SOURCE, TARGET, transfer="lfs", on_event=broken).changed
    assert "the report callback raised" in caplog.text
