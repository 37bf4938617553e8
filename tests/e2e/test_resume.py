"""Runs to the Hub that are interrupted and continued."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import HfApi
from safetensors.numpy import save

from tensorport_hub import mirror
from tensorport_hub.devhub import DevHub, Fault
from tensorport_hub.edge import retry
from tensorport_hub.engine import part
from tensorport_hub.errors import DestinationError, TensorportError, VerificationError
from tensorport_hub.ports import Event, Resumed, Saved
from tests.e2e.interrupted import (
    EVERY,
    FILES,
    MODEL,
    SOURCE,
    TARGET,
    TENSORS,
    WEIGHTS,
    interrupted,
    key,
    pulls,
    read_bytes,
    run,
    warnings,
)
from tests.e2e.reading import contents


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST", 0.01)
    monkeypatch.setattr(part, "_PAUSE", 0.01)


class TestContinued:
    """The next run finds what the last one left, on the Hub alone."""

    @pytest.mark.parametrize("transfer", ["lfs", "xet"])
    def test_the_pull_request_is_continued(
        self,
        seeded: DevHub,
        client: HfApi,
        undisturbed: dict[str, bytes],
        transfer: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """One pull request, what is kept is neither read nor sent again, and the result is the same."""
        monkeypatch.setattr(sys.modules["tensorport_hub.engine.run"], "SMALL_NBYTES", 0)  # one by one
        seeded.forget()
        wrong = "/cas/v1/xorbs/*" if transfer == "xet" else "*"
        method = "POST" if transfer == "xet" else "PUT"
        seeded.faults.add(Fault("status", method, "cdn", wrong, status=403, after=8, times=None))
        with pytest.raises(DestinationError):
            run(transfer=transfer)
        seeded.faults.clear()
        assert pulls(client) == {1: "draft"}
        assert list(seeded.files(TARGET)) == [".gitattributes"]
        kept = [path for path in seeded.files(TARGET, "refs/pr/1") if path.endswith(".npy")]
        assert len(kept) >= 6
        before, events = read_bytes(seeded), list[Event]()
        result = run(events=events, transfer=transfer)
        assert [event.parts for event in events if isinstance(event, Resumed)] == [len(kept)]
        assert result.stats.parts_resumed == len(kept)
        assert pulls(client) == {1: "merged"}
        assert contents(seeded, TARGET) == undisturbed
        in_flight = 2 * len(MODEL["model-00001-of-00004.safetensors"])
        assert read_bytes(seeded) - before <= WEIGHTS - len(kept) * 100_000 + in_flight + 4 * 100_000
        assert result.commit_url is not None
        assert result.changed

    def test_without_proof_only_missing_parts_are_read(self, seeded: DevHub, client: HfApi) -> None:
        """`--verify-source no`: over all starts the source is read once, and what was in flight twice."""
        seeded.forget()
        for uploads in (5, 7, 6):
            interrupted(seeded, uploads=uploads, verify_source="no")
        run(verify_source="no")
        headers = 4 * FILES * len(MODEL["model-00001-of-00004.safetensors"])  # read whole: they are small
        assert read_bytes(seeded) <= WEIGHTS + 3 * (EVERY + 2 * 100_000) + headers
        puts = [s for s in seeded.seen if s.method == "PUT" and s.status == 200]
        assert len(puts) == FILES * TENSORS
        assert pulls(client) == {1: "merged"}

    def test_work_is_gone_from_the_result(self, seeded: DevHub, client: HfApi) -> None:
        """Neither the mirror nor `main`'s history holds the journal."""
        interrupted(seeded)
        run()
        assert not [path for path in seeded.files(TARGET) if path.startswith(".tensorport")]
        assert client.list_repo_commits(TARGET)[0].title.endswith("(#1)")
        assert len(client.list_repo_commits(TARGET)) == 2

    def test_a_complete_pull_request_is_only_merged(
        self, seeded: DevHub, client: HfApi, undisturbed: dict[str, bytes]
    ) -> None:
        """A run that died between its last commit and the merge: the next one reads no weights."""
        fault = Fault("status", "POST", "hub", "*/merge", status=400, times=None)
        seeded.faults.add(fault)
        with pytest.raises(DestinationError):
            run()
        seeded.faults.clear()
        seeded.forget()
        result = run()
        assert pulls(client) == {1: "merged"}
        assert contents(seeded, TARGET) == undisturbed
        assert result.stats.parts_resumed == 0
        assert [s for s in seeded.seen if s.method == "PUT"] == []
        assert json.loads(undisturbed["manifest.json"]) == result.manifest

    def test_after_the_merge_there_is_nothing_to_do(self, seeded: DevHub) -> None:
        """No commit, no byte of weights, and it says so; `restart` makes everything again."""
        first = run()
        seeded.forget()
        second = run()
        assert (second.changed, second.commit) == (False, first.commit)
        assert second.manifest == first.manifest
        assert not [s for s in seeded.seen if s.method in ("POST", "PUT")]
        third = run(restart=True)
        assert third.stats.bytes_read >= WEIGHTS
        assert third.manifest == first.manifest

    def test_a_damaged_mirror_is_made_again(self, seeded: DevHub, undisturbed: dict[str, bytes]) -> None:
        """Where a file of the destination is gone or another, the run is not skipped."""
        run()
        path = next(path for path in undisturbed if path.endswith(".npy"))
        seeded.add_repo(TARGET, {path: b"damaged"}, message="oops")
        assert run().changed
        assert contents(seeded, TARGET) == undisturbed

    def test_a_small_run_is_one_commit(self, seeded: DevHub, client: HfApi) -> None:
        """Below `checkpoint_every` there is no pull request."""
        run(checkpoint_every="1GB")
        assert pulls(client) == {}
        assert len(client.list_repo_commits(TARGET)) == 2

    def test_a_new_version_of_the_source_replaces_the_old(self, seeded: DevHub, client: HfApi) -> None:
        """A second plan has a pull request of its own; vanished files go, with the merge."""
        run()
        changed = {**MODEL, "config.json": b'{"new": true}\n'}
        tensors = {f"layers.0.w{i}": np.full((250, 100), i, np.float32) for i in range(TENSORS)}
        changed["model-00001-of-00004.safetensors"] = save(tensors)
        seeded.add_repo(SOURCE, changed, message="new")
        interrupted(seeded, uploads=3, include=["layers.0.*", "layers.1.*"])
        run(include=["layers.0.*", "layers.1.*"])
        assert seeded.read(TARGET, "config.json") == changed["config.json"]
        assert len([p for p in seeded.files(TARGET) if p.endswith(".npy")]) == 2 * TENSORS
        assert pulls(client) == {1: "merged", 2: "merged"}

    def test_interrupting_saves_what_is_finished(self, seeded: DevHub) -> None:
        """An error that ends a run is followed by one more checkpoint."""
        events: list[Event] = []
        fault = Fault("status", "PUT", "cdn", status=403, after=8, times=None)
        seeded.faults.add(fault)
        with pytest.raises(DestinationError):
            run(events=events, checkpoint_every="2MB")
        assert sum(event.parts for event in events if isinstance(event, Saved)) >= 7

    def test_a_byte_that_came_damaged(
        self, seeded: DevHub, client: HfApi, undisturbed: dict[str, bytes]
    ) -> None:
        """The digest of a whole file tells: what was made of that file is made again, the rest is kept."""
        seeded.faults.add(Fault("wrong_bytes", "GET", "cdn", times=1, after=7, at=50_000))
        with pytest.raises(VerificationError):
            run(workers=1)
        assert pulls(client) == {1: "draft"}
        result = run(workers=1)
        assert 0 < result.stats.parts_resumed <= (FILES - 1) * TENSORS
        assert contents(seeded, TARGET) == undisturbed

    def test_losses_survive(self, seeded: DevHub, client: HfApi) -> None:
        """Rounding costs of parts that an earlier run made are in manifest and card."""
        tiny = {"w": np.full((250, 100), 1e-30, np.float32), "x": np.ones((250, 200), np.float32)}
        seeded.add_repo("st/tiny", {"model.safetensors": save(tiny)})
        options: dict[str, Any] = {"precision": "float16", "checkpoint_every": 40_000, "transfer": "lfs"}
        mirror("st/tiny", "me/whole", **options)
        seeded.faults.add(Fault("status", "PUT", "cdn", status=403, after=1, times=None))
        with pytest.raises(DestinationError):
            mirror("st/tiny", "me/tiny", workers=1, **options)
        seeded.faults.clear()
        result = mirror("st/tiny", "me/tiny", **options)
        assert result.losses == {"w": (0, 25_000)}
        assert contents(seeded, "me/tiny") == contents(seeded, "me/whole")


class TestWays:
    """Pull requests left open, branches, and accounts that may not do everything."""

    def test_pr_is_left_open(self, seeded: DevHub, client: HfApi, undisturbed: dict[str, bytes]) -> None:
        """`create_pr`: complete, open, merged by nobody; again: nothing to do; without it: merged."""
        result = run(create_pr=True)
        assert result.pr_url == f"{seeded.endpoint}/{TARGET}/discussions/1"
        assert list(seeded.files(TARGET)) == [".gitattributes"]
        made = {p: seeded.read(TARGET, p, "refs/pr/1") for p in undisturbed}
        assert made == undisturbed
        assert pulls(client) == {1: "open"}
        again = run(create_pr=True)
        assert (again.changed, again.pr_url) == (False, result.pr_url)
        assert run().pr_url is None
        assert pulls(client) == {1: "merged"}

    @pytest.mark.parametrize("every", [EVERY, "1GB"])
    def test_branch(self, seeded: DevHub, client: HfApi, undisturbed: dict[str, bytes], every: Any) -> None:
        """`branch`: made where it is missing; `main` stays; the work branch is gone."""
        result = run(branch="npy", checkpoint_every=every)
        assert list(seeded.files(TARGET)) == [".gitattributes"]
        made = {
            p: seeded.read(TARGET, p, "npy") for p in seeded.files(TARGET, "npy") if p != ".gitattributes"
        }
        assert made == undisturbed
        assert [ref.name for ref in client.list_repo_refs(TARGET).branches] == ["main", "npy"]
        assert pulls(client) == {}
        assert not run(branch="npy", checkpoint_every=every).changed
        assert result.commit_url is not None

    def test_an_interrupted_branch_is_continued(
        self, seeded: DevHub, client: HfApi, undisturbed: dict[str, bytes]
    ) -> None:
        """A work branch is named for the plan and the branch that it is for; the next run continues it."""
        interrupted(seeded, branch="npy")
        name = hashlib.sha256(f"{key()} npy".encode()).hexdigest()
        assert f"tensorport/{name}" in [ref.name for ref in client.list_repo_refs(TARGET).branches]
        result = run(branch="npy")
        assert result.stats.parts_resumed > 0
        assert [ref.name for ref in client.list_repo_refs(TARGET).branches] == ["main", "npy"]
        assert {p: seeded.read(TARGET, p, "npy") for p in undisturbed} == undisturbed

    def test_an_account_without_pull_requests(
        self, seeded: DevHub, client: HfApi, undisturbed: dict[str, bytes]
    ) -> None:
        """Where pull requests may not be opened a branch keeps the work, and one commit publishes it."""
        forbidden = Fault("status", "POST", "hub", "*/discussions", status=403, times=None)
        events: list[Event] = []
        seeded.faults.add(forbidden)
        interrupted_by = Fault("status", "PUT", "cdn", status=403, after=8, times=None)
        seeded.faults.add(interrupted_by)
        with pytest.raises(DestinationError):
            run(events=events)
        seeded.faults.clear()
        seeded.faults.add(forbidden)
        result = run(events=events)
        assert any("branch" in text for text in warnings(events))
        assert result.stats.parts_resumed > 0
        assert contents(seeded, TARGET) == undisturbed
        assert len(client.list_repo_commits(TARGET)) == 2
        assert [ref.name for ref in client.list_repo_refs(TARGET).branches] == ["main"]

    def test_an_account_that_may_not_merge(
        self, seeded: DevHub, client: HfApi, undisturbed: dict[str, bytes]
    ) -> None:
        """Where merging is forbidden one commit of pointers publishes, and the pull request is closed."""
        seeded.faults.add(Fault("status", "POST", "hub", "*/merge", status=403, times=None))
        run()
        assert contents(seeded, TARGET) == undisturbed
        assert pulls(client) == {1: "closed"}

    def test_restart_closes_what_was_left(
        self, seeded: DevHub, client: HfApi, undisturbed: dict[str, bytes]
    ) -> None:
        """`restart` gives the interrupted run up and begins anew."""
        interrupted(seeded)
        result = run(restart=True)
        assert result.stats.parts_resumed == 0
        assert pulls(client) == {1: "closed", 2: "merged"}
        assert contents(seeded, TARGET) == undisturbed


LOST = {
    "create": ("POST", "*/discussions"),
    "commit": ("POST", "*/commit/*"),
    "status": ("POST", "*/discussions/1/status"),
    "merge": ("POST", "*/discussions/1/merge"),
}
BUSY = {
    **LOST,
    "list": ("GET", "*/discussions"),
    "details": ("GET", "*/discussions/1"),
    "log": ("GET", "*/commits/*"),
    "state": ("GET", "*/revision/*"),
    "journal": ("GET", "*/journal-*"),
}


def _passing() -> Iterator[Any]:
    """Faults that pass, with their names."""
    for name, (method, path) in LOST.items():
        for after in range(3 if name == "commit" else 1):
            yield pytest.param(
                Fault("lost_answer", method, "hub", path, after=after), id=f"{name} lost {after}"
            )
    for name, (method, path) in BUSY.items():
        busy = Fault("status", method, "hub", path, status=503, times=3)
        yield pytest.param(busy, id=f"{name} busy")
        yield pytest.param(Fault("close", method, "hub", path, times=3), id=f"{name} closed")
        storm = Fault("status", method, "hub", path, status=429, retry_after=0, times=3)
        yield pytest.param(storm, id=f"{name} rate-limited")


@pytest.mark.parametrize("fault", list(_passing()))
def test_passing_faults_of_the_hub(
    seeded: DevHub, client: HfApi, undisturbed: dict[str, bytes], fault: Fault
) -> None:
    """Answers that are lost, and a Hub that is busy, at every request of the work ref: it ends well, with
    one pull request and each commit made once."""
    interrupted(seeded, uploads=6)
    seeded.faults.add(fault)
    try:
        run()
    except TensorportError as error:  # pragma: no branch
        raise AssertionError(f"{fault}: {error}") from error
    assert contents(seeded, TARGET) == undisturbed
    states = list(pulls(client).values())
    assert states.count("merged") == 1
    assert not {"open", "draft"} & set(states)
    assert len(client.list_repo_commits(TARGET)) == 2


@pytest.mark.parametrize("fault", [p for p in _passing() if "create" in str(p.id)])
def test_passing_faults_at_the_beginning(seeded: DevHub, client: HfApi, fault: Fault) -> None:
    """A pull request whose creation was lost is found, not opened twice."""
    seeded.faults.add(fault)
    run()
    assert seeded.faults.fired
    assert pulls(client) == {1: "merged"}


def test_a_folder_has_no_pull_requests(seeded: DevHub, tmp_path: Path) -> None:
    """`create_pr` and `branch` mean nothing for a folder, and exclude each other."""
    for options in ({"create_pr": True}, {"branch": "b"}):
        with pytest.raises(TensorportError, match="is a folder") as caught:
            run(str(tmp_path / "out"), **options)
        assert caught.value.exit_code == 2
    with pytest.raises(TensorportError, match="exclude each other"):
        run(create_pr=True, branch="b")
