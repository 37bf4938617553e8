"""Journals in a file and on the Hub."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensorport_hub.core.progress import MadeFile, ReadFile
from tensorport_hub.devhub import DevHub, Fault
from tensorport_hub.edge import hub_work, pace, ref_journal, retry
from tensorport_hub.edge.http import Http
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.edge.hub_find import open_work
from tensorport_hub.edge.hub_lfs import LfsSession
from tensorport_hub.edge.hub_ref import HubRef
from tensorport_hub.edge.hub_work import Request
from tensorport_hub.edge.journal import JournalFile
from tensorport_hub.edge.ref_journal import RefJournal
from tensorport_hub.errors import DestinationError
from tensorport_hub.ports import Event, Saved
from tests.contracts.journal import JournalContract, JournalOf

KEY = "k" * 64
HUB_KEY = "ab" * 32


def open_file(path: Path, *, key: str = KEY) -> JournalFile:
    return JournalFile(path, key=key, outputs=range(10))


class TestJournalFile(JournalContract):
    """Line by line on the disk."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "journal.jsonl"

    @pytest.fixture
    def journal_of(self, path: Path) -> JournalOf:
        return lambda: open_file(path)

    def test_an_entry_is_durable_when_add_returns(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each line is flushed to the disk."""
        flushed: list[int] = []
        fsync = os.fsync
        monkeypatch.setattr(os, "fsync", lambda handle: (flushed.append(path.stat().st_size), fsync(handle)))
        journal = open_file(path)
        for index in range(3):
            journal.add(self.made(index))
        assert len(flushed) == 4
        assert flushed[-1] == path.stat().st_size

    def test_a_torn_end_is_cut_off(self, path: Path) -> None:
        """What a run that died left half-written goes, and new entries follow what is whole."""
        open_file(path).add(self.made(1))
        for torn in (b'{"made":2,"size"', b"\0" * 100, b'{"file":'):
            whole = path.read_bytes()
            path.write_bytes(whole + torn)
            journal = open_file(path)
            assert path.read_bytes() == whole
            journal.add(self.made(3))
        assert open_file(path).progress.made == {1: self.made(1), 3: self.made(3)}

    def test_a_torn_first_line_is_none(self, path: Path) -> None:
        """A run that died while it began."""
        path.write_bytes(b'{"journal":"tensorp')
        open_file(path).add(self.made(1))
        assert open_file(path).progress.made == {1: self.made(1)}

    def test_another_plans_journal_is_refused(self, path: Path) -> None:
        """It stays as it is, and the message says what to do."""
        open_file(path).add(self.made(1))
        before = path.read_bytes()
        with pytest.raises(DestinationError, match="another plan") as caught:
            open_file(path, key="x" * 64)
        assert "--restart" in caught.value.hint
        assert path.read_bytes() == before

    @pytest.mark.parametrize("broken", ["pwrite", "fsync"])
    def test_a_full_disk_leaves_no_half_line(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
    ) -> None:
        """Error 5 with the system's words; what was entered before is still there."""
        journal = open_file(path)
        journal.add(self.made(1))
        before = path.read_bytes()
        pwrite = os.pwrite

        def full(handle: int, *rest: object) -> int:
            if broken == "pwrite":
                pwrite(handle, b"half", len(before))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, broken, full)
        with pytest.raises(DestinationError, match="No space left"):
            journal.add(self.made(2))
        monkeypatch.undo()
        assert path.read_bytes() == before
        journal.add(self.made(3))
        assert open_file(path).progress.made == {1: self.made(1), 3: self.made(3)}

    def test_slow_system_writes_are_continued(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the system takes fewer bytes than given, the rest follows."""
        pwrite = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda handle, data, at: pwrite(handle, data[:7], at))
        open_file(path).add(self.made(1))
        monkeypatch.undo()
        assert open_file(path).progress.made == {1: self.made(1)}


class TestRefJournal(JournalContract):
    """By commits on a pull request."""

    @pytest.fixture(autouse=True)
    def _place(self, hub: DevHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(retry, "_FIRST", 0.01)
        self.hub, self.events = hub, list[Event]()
        self.client = HubClient(endpoint=hub.endpoint, token=hub.token)
        self.client.create_repo("me/mirror", private=False)
        http = Http(read_seconds=5)
        self.store = LfsSession(self.client, http, "me/mirror", max_disk=1 << 20, report=self.events.append)
        yield
        self.store.close()
        http.close()

    def made(self, index: int, *, version: int = 0, overflow: int = 0) -> MadeFile:
        """A part whose content is in the Hub's storage."""
        data = bytes([index, version]) * (50 + index)
        writer = self.store.open(f"{index}.npy", len(data))
        writer.write(memoryview(data))
        receipt = writer.finish()
        return MadeFile(index, receipt.size, receipt.sha256, ((overflow, 2 * overflow),) if overflow else ())

    def open(self, *, every: int = 1 << 40) -> RefJournal:
        """The journal of the next run."""
        target = HubRef.of(self.client, "me/mirror", "main", self.events.append)
        request = Request(HUB_KEY, "Mirror", "me", None, offer=False, anew=False)
        work = open_work(target, request, restart=False, needed=True)
        assert work is not None
        work.claim()
        paths = {index: f"{index}.npy" for index in range(10)}
        return RefJournal(work, outputs=paths, every=every, report=self.events.append)

    @pytest.fixture
    def journal_of(self) -> JournalOf:
        return self.open

    def checkpoints(self) -> list[int]:
        """How many files each checkpoint kept."""
        return [event.parts for event in self.events if isinstance(event, Saved)]

    def test_a_checkpoint_by_bytes(self) -> None:
        """Once so many bytes have come together they are committed, with what is entered by then."""
        journal = self.open(every=210)
        for index in range(5):
            journal.add(self.made(index))
        assert self.checkpoints() == [3, 2]
        assert sorted(p for p in self.hub.files("me/mirror", "refs/pr/1") if p.endswith(".npy")) == [
            f"{index}.npy" for index in range(5)
        ]
        assert self.open().progress.made == {index: self.made(index) for index in range(5)}

    def test_a_checkpoint_by_files(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A commit holds so many files at most."""
        monkeypatch.setattr(ref_journal, "COMMIT_FILES", 3)
        journal = self.open()
        for index in range(7):
            journal.add(self.made(index))
        assert self.checkpoints() == [3, 3]
        journal.save()
        assert self.checkpoints() == [3, 3, 1]

    def test_a_checkpoint_by_minutes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """However little there is, it is kept after a quarter of an hour."""
        journal = self.open()
        journal.add(self.made(1))
        assert self.checkpoints() == []
        monkeypatch.setattr(ref_journal, "_MINUTES", 0)
        journal.add(self.made(2))
        assert self.checkpoints() == [2]

    def test_commits_are_few_within_an_hour(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Past the hour's number a run gathers more, and makes up for it in larger commits."""
        now = [1000.0]
        monkeypatch.setattr(pace, "monotonic", lambda: now[0])
        journal = self.open(every=1)
        already = self.client.pace.commits()
        monkeypatch.setattr(hub_work, "CHECKPOINTS_AN_HOUR", already + 3)
        for index in range(6):
            journal.add(self.made(index))
        assert self.checkpoints() == [1, 1, 1]
        now[0] += 3601
        journal.add(self.made(6))
        assert self.checkpoints() == [1, 1, 1, 4]

    def test_files_alone_are_no_reason(self) -> None:
        """That a source file was read whole is entered with the next parts."""
        journal = self.open(every=1)
        journal.add(ReadFile("a", "ab" * 32))
        assert self.checkpoints() == []
        journal.add(self.made(1))
        assert self.checkpoints() == [1]
        assert self.open().progress.files == {"a": "ab" * 32}

    def test_a_lost_answer_is_looked_up(self) -> None:
        """A checkpoint that was made, though its answer was lost, is not made twice."""
        journal = self.open(every=1)
        self.hub.faults.add(Fault("lost_answer", "POST", "hub", "*/commit/*"))
        journal.add(self.made(1))
        journal.add(self.made(2))
        assert [commit.title for commit in self.hub.commits("me/mirror", "refs/pr/1")][:3] == [
            "Keep 1 finished files",
            "Keep 1 finished files",
            "Continue",
        ]
        assert self.open().progress.made.keys() == {1, 2}

    def test_a_later_run_takes_over(self) -> None:
        """The earlier one's next checkpoint is refused, and its `save` is silent."""
        first, second = self.open(every=1), self.open(every=1)
        with pytest.raises(DestinationError, match="412") as caught:
            first.add(self.made(1))
        assert "taken over" in caught.value.hint
        first.save()
        second.add(self.made(2))
        assert self.open().progress.made.keys() == {2}

    def test_a_failed_checkpoint_loses_nothing(self) -> None:
        """What could not be committed is committed by the next call."""
        journal = self.open(every=1)
        self.hub.faults.add(Fault("status", "POST", "hub", "*/commit/*", status=403))
        with pytest.raises(DestinationError):
            journal.add(self.made(1))
        journal.save()
        assert self.open().progress.made == {1: self.made(1)}

    def test_a_hub_that_is_silent_does_not_hold_up_the_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`save` gives up after some seconds; what it began is still kept, later."""
        monkeypatch.setattr(ref_journal, "_LAST_SECONDS", 0.3)
        journal = self.open()
        journal.add(self.made(1))
        self.hub.faults.add(Fault("stall", "POST", "hub", "*/preupload/*", seconds=3))
        begun = time.monotonic()
        journal.save()
        assert time.monotonic() - begun < 2.5
        # Left alone, it would meet a closed hub, upon which huggingface_hub closes the client of all threads.
        for saver in [thread for thread in threading.enumerate() if thread.name == "save"]:
            saver.join()
        assert self.open().progress.made == {1: self.made(1)}
