"""Runs to the Hub beside strangers, rivals, and a destination that moves."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

import pytest
from huggingface_hub import HfApi

from tensorport_hub import mirror, plan
from tensorport_hub.core import journal
from tensorport_hub.core.progress import MadeFile
from tensorport_hub.devhub import DevHub, Fault
from tensorport_hub.edge import retry
from tensorport_hub.engine import part
from tensorport_hub.errors import DestinationError
from tensorport_hub.ports import Event, Saved
from tests.e2e.interrupted import EVERY, SOURCE, TARGET, interrupted, key, pulls, run, warnings
from tests.e2e.reading import contents


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST", 0.01)
    monkeypatch.setattr(part, "_PAUSE", 0.01)


def _add(path: str, content: bytes) -> Any:
    from huggingface_hub import CommitOperationAdd

    return CommitOperationAdd(path, content)


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

    def test_a_journal_on_main_is_believed_by_no_run(
        self, seeded: DevHub, undisturbed: dict[str, bytes]
    ) -> None:
        """Our key, a journal and the tampered part that it names, on `main` already: all is read anew."""
        run()
        files = plan(SOURCE, TARGET, checkpoint_every=EVERY).plan.outputs
        tampered = {file.path: b"x" * file.size for file in files}
        made = [MadeFile(file.index, file.size, sha256(tampered[file.path]).hexdigest()) for file in files]
        lines = journal.heading(key()) + journal.lines(made)
        planted = {".tensorport/journal-00001.jsonl": lines, ".tensorport/run.json": b"{}"}
        seeded.add_repo(TARGET, {**tampered, **planted}, message="planted")
        assert run().stats.parts_resumed == 0
        assert contents(seeded, TARGET) == undisturbed

    def test_a_commit_of_an_unknown_author_is_nobodys(
        self, seeded: DevHub, client: HfApi, undisturbed: dict[str, bytes]
    ) -> None:
        """What the Hub can't say who wrote is not continued."""
        interrupted(seeded)
        ours = seeded.commits(TARGET, "refs/pr/1")[0]
        with seeded._running.db.write() as database:
            database.execute("UPDATE commits SET author = '' WHERE oid = ?", (ours.oid,))
        events: list[Event] = []
        assert run(events=events).stats.parts_resumed == 0
        assert any("#1" in text and "`?`" in text for text in warnings(events))
        assert pulls(client) == {1: "draft", 2: "merged"}
        assert contents(seeded, TARGET) == undisturbed

    def test_a_run_that_was_taken_over_writes_no_more(
        self,
        seeded: DevHub,
        client: HfApi,
        undisturbed: dict[str, bytes],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Its commit fails without an answer while another run claims the ref: it finds that out, and neither
        a later checkpoint nor the one of its end stands on the other's."""
        monkeypatch.setattr(sys.modules["tensorport_hub.engine.run"], "SMALL_NBYTES", 0)  # one by one
        resume, held = threading.Event(), threading.Event()

        def hold(event: Event) -> None:
            if isinstance(event, Saved) and not held.is_set():
                held.set()
                resume.wait(60)

        with ThreadPoolExecutor(1) as pool:
            early = pool.submit(mirror, SOURCE, TARGET, checkpoint_every=EVERY, transfer="lfs", on_event=hold)
            assert held.wait(60)
            interrupted(seeded, uploads=4)
            rivals = [commit.oid for commit in seeded.commits(TARGET, "refs/pr/1")]
            seeded.faults.add(Fault("status", "POST", "hub", "*/commit/*", status=503))
            resume.set()
            with pytest.raises(DestinationError, match="moved meanwhile") as caught:
                early.result()
        assert caught.value.exit_code == 5
        assert [commit.oid for commit in seeded.commits(TARGET, "refs/pr/1")] == rivals
        assert run().stats.parts_resumed > 0
        assert pulls(client) == {1: "merged"}
        assert contents(seeded, TARGET) == undisturbed

    def test_a_closed_pull_request_is_not_merged(self, seeded: DevHub, client: HfApi) -> None:
        """Somebody closes it while we work: error 5, and nothing is published by other ways."""

        def close(event: Event) -> None:
            if isinstance(event, Saved) and pulls(client) == {1: "draft"}:
                client.change_discussion_status(TARGET, 1, "closed")

        with pytest.raises(DestinationError, match="closed"):
            mirror(SOURCE, TARGET, checkpoint_every=EVERY, transfer="lfs", on_event=close)
        assert list(seeded.files(TARGET)) == [".gitattributes"]

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
