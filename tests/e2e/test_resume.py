"""Runs to the Hub that are interrupted, continued, raced, or disturbed by others."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import HfApi
from safetensors.numpy import save

from tensorport_hub import mirror, plan
from tensorport_hub.devhub import DevHub, Fault
from tensorport_hub.edge import retry
from tensorport_hub.engine import part
from tensorport_hub.errors import DestinationError, TensorportError
from tensorport_hub.ports import Event, Resumed, Saved, Warned
from tensorport_hub.results import MirrorResult
from tests.e2e.reading import contents

SOURCE, TARGET = "st/model", "me/model-npy"
EVERY = 300_000
"""Bytes between checkpoints: about three tensors."""
FILES, TENSORS = 4, 6


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST", 0.01)
    monkeypatch.setattr(part, "_PAUSE", 0.01)


def model() -> dict[str, bytes]:
    """Four files of six tensors of 100 kB, an index, a configuration and a card."""
    rng = np.random.default_rng(0)
    files, weight_map = {}, {}
    for number in range(FILES):
        name = f"model-{number + 1:05d}-of-{FILES:05d}.safetensors"
        tensors = {
            f"layers.{number}.w{i}": rng.standard_normal((250, 100), np.float32) for i in range(TENSORS)
        }
        files[name] = save(tensors)
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {}, "weight_map": weight_map}
    card = "---\nlicense: mit\n---\n\n# Model\n"
    return {
        **files,
        "model.safetensors.index.json": json.dumps(index).encode(),
        "config.json": b"{}\n",
        "README.md": card.encode(),
    }


MODEL = model()
WEIGHTS = sum(len(data) for path, data in MODEL.items() if path.endswith(".safetensors"))


@pytest.fixture
def seeded(hub: DevHub) -> DevHub:
    hub.add_repo(SOURCE, MODEL)
    return hub


def run(target: str = TARGET, events: list[Event] | None = None, **options: Any) -> MirrorResult:
    """A mirror by checkpoints."""
    given = {"checkpoint_every": EVERY, "transfer": "lfs", "workers": 2, **options}
    return mirror(SOURCE, target, on_event=events.append if events is not None else None, **given)


@pytest.fixture
def undisturbed(seeded: DevHub) -> dict[str, bytes]:
    """What a run makes that nobody disturbs."""
    run("me/undisturbed")
    return contents(seeded, "me/undisturbed")


def interrupted(hub: DevHub, *, uploads: int = 8, **options: Any) -> None:
    """A run whose uploads are refused after so many."""
    fault = Fault("status", "PUT", "cdn", status=403, after=uploads, times=None)
    hub.faults.add(fault)
    with pytest.raises(DestinationError):
        run(**options)
    hub.faults.clear()


def pulls(client: HfApi, target: str = TARGET) -> dict[int, str]:
    """Number -> status of all pull requests."""
    return {d.num: d.status for d in client.get_repo_discussions(target, discussion_type="pull_request")}


def warnings(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Warned)]


def key() -> str:
    """The fingerprint of the plan."""
    return plan(SOURCE, TARGET, checkpoint_every=EVERY).plan.fingerprint


def read_bytes(hub: DevHub) -> int:
    """Bytes of weights that the storage handed out."""
    return sum(s.bytes_out for s in hub.seen if s.origin == "cdn" and s.method == "GET")


class TestContinued:
    """The next run finds what the last one left, on the Hub alone."""

    @pytest.mark.parametrize("transfer", ["lfs", "xet"])
    def test_the_pull_request_is_continued(
        self, seeded: DevHub, client: HfApi, undisturbed: dict[str, bytes], transfer: str
    ) -> None:
        """One pull request, what is kept is neither read nor sent again, and the result is the same."""
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


class TestOthers:
    """Strangers, rivals, and a destination that moves."""

    @pytest.fixture
    def mallory(self, seeded: DevHub) -> HfApi:
        return HfApi(endpoint=seeded.endpoint, token=seeded.add_user("mallory"))

    def test_a_strangers_pull_request_is_ignored(
        self, seeded: DevHub, client: HfApi, mallory: HfApi, undisturbed: dict[str, bytes]
    ) -> None:
        """Our fingerprint, parts and a journal, by somebody else: named, never continued, never merged."""
        client.create_repo(TARGET)
        path = next(path for path in undisturbed if path.endswith("w0.npy"))
        planted = mallory.create_commit(
            TARGET,
            operations=[_add(path, b"tampered" * 100), _add(".tensorport/run.json", b"{}")],
            commit_message="Mirror st/model",
            commit_description=f"Plan: `{key()}`",
            create_pr=True,
        )
        assert planted.pr_num == 1
        events: list[Event] = []
        run(events=events)
        assert pulls(client) == {1: "open", 2: "merged"}
        assert any("#1" in text and "mallory" in text for text in warnings(events))
        assert contents(seeded, TARGET) == undisturbed

    def test_a_pull_request_that_others_pushed_to_is_ignored(
        self, seeded: DevHub, client: HfApi, undisturbed: dict[str, bytes]
    ) -> None:
        """Our own pull request, but with a commit by another member of the organization."""
        ours, rival = (seeded.add_user(name, orgs={"lab": "write"}) for name in ("me", "rival"))
        target = "lab/model-npy"
        fault = Fault("status", "PUT", "cdn", status=403, after=8, times=None)
        seeded.faults.add(fault)
        with pytest.raises(DestinationError):
            run(target, token=ours)
        seeded.faults.clear()
        other = HfApi(endpoint=seeded.endpoint, token=rival)
        path = next(path for path in seeded.files(target, "refs/pr/1") if path.endswith(".npy"))
        other.create_commit(target, [_add(path, b"x" * 100)], commit_message="help", revision="refs/pr/1")
        events: list[Event] = []
        run(target, events, token=ours)
        assert any("`rival`" in text for text in warnings(events))
        assert contents(seeded, target) == undisturbed

    def test_two_creations_leave_one(self, seeded: DevHub, client: HfApi) -> None:
        """Of several pull requests of ours for one plan the lowest number is continued, the rest closed."""
        client.create_repo(TARGET)
        for _ in range(3):
            client.create_pull_request(TARGET, "Mirror st/model", description=f"x\n\nPlan: `{key()}`\n")
        run()
        assert pulls(client) == {1: "merged", 2: "closed", 3: "closed"}

    def test_two_runs_at_once_end_in_one_mirror(
        self, seeded: DevHub, client: HfApi, undisturbed: dict[str, bytes]
    ) -> None:
        """The later takes over; the earlier stops with error 5, or both find it done."""

        def one() -> str:
            try:
                run(workers=1)
            except DestinationError as error:
                return error.message
            return ""

        with ThreadPoolExecutor(2) as both:
            ends = [both.submit(one) for _ in range(2)]
            said = [end.result() for end in ends]
        assert "" in said
        assert contents(seeded, TARGET) == undisturbed
        assert sorted(pulls(client).values()).count("merged") == 1
        assert not [status for status in pulls(client).values() if status in ("open", "draft")]

    def test_the_earlier_run_stops_at_its_next_checkpoint(
        self, seeded: DevHub, client: HfApi, undisturbed: dict[str, bytes]
    ) -> None:
        """A run that sleeps while another one finishes finds the ref claimed: 412, exit 5, nothing broken."""
        resume = threading.Event()
        held = threading.Event()

        def hold(event: Event) -> None:
            if isinstance(event, Saved) and not held.is_set():
                held.set()
                resume.wait(60)

        with ThreadPoolExecutor(1) as pool:
            early = pool.submit(mirror, SOURCE, TARGET, checkpoint_every=EVERY, transfer="lfs", on_event=hold)
            assert held.wait(60)
            run()
            resume.set()
            with pytest.raises(DestinationError) as caught:
                early.result()
        assert caught.value.exit_code == 5
        assert pulls(client) == {1: "merged"}
        assert contents(seeded, TARGET) == undisturbed

    def test_a_destination_that_moved_is_not_overwritten(self, seeded: DevHub, client: HfApi) -> None:
        """A commit on `main` since the interrupted run began: error 5; `restart` stands on the new state."""
        interrupted(seeded)
        seeded.add_repo(TARGET, {".gitattributes": b"*.npy filter=lfs\n"}, message="meanwhile")
        with pytest.raises(DestinationError, match="moved") as caught:
            run()
        assert "--restart" in caught.value.hint
        run(restart=True)
        assert pulls(client) == {1: "closed", 2: "merged"}

    def test_a_destination_that_moves_during_the_run(self, seeded: DevHub, client: HfApi) -> None:
        """Somebody's commit on `main` while we work: nothing is merged over it."""

        def meanwhile(event: Event) -> None:
            if isinstance(event, Saved) and "theirs.txt" not in seeded.files(TARGET):
                seeded.add_repo(TARGET, {"theirs.txt": b"theirs"}, message="meanwhile")

        with pytest.raises(DestinationError, match="moved meanwhile"):
            mirror(SOURCE, TARGET, checkpoint_every=EVERY, transfer="lfs", on_event=meanwhile)
        assert sorted(seeded.files(TARGET)) == [".gitattributes", "theirs.txt"]


def _add(path: str, content: bytes) -> Any:
    from huggingface_hub import CommitOperationAdd

    return CommitOperationAdd(path, content)


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
        """A work branch carries the fingerprint in its name and is continued by the next run."""
        interrupted(seeded, branch="npy")
        assert f"tensorport/{key()}" in [ref.name for ref in client.list_repo_refs(TARGET).branches]
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
