"""The journal of a run to a remote: commits on a work ref keep what is finished, from time to time.

A checkpoint is due once so many bytes, files or minutes have come together since the last one. It happens in
the call that finds it due, while other workers wait with what they finished: so a crash costs at most what
one checkpoint holds, and the files in flight. Where commits are scarce, which the work knows, the next one
waits and gathers more.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from time import monotonic
from typing import Protocol

from tensorport_hub.core import journal
from tensorport_hub.core.progress import Entry, MadeFile, Progress, gathered
from tensorport_hub.errors import DestinationError, TensorportError
from tensorport_hub.ports import Receipt, Report, Saved

COMMIT_FILES = 1000
"""Files that one commit holds: the Hub ends one that takes more than 60 seconds."""

_MINUTES = 15
_LAST_SECONDS = 10.0


class Work(Protocol):
    """A ref that only runs of one plan write to."""

    @property
    def key(self) -> str:
        """The plan that it belongs to."""

    @property
    def is_slowed(self) -> bool:
        """Whether so many commits were made lately that the next checkpoint has to wait."""

    def journals(self) -> list[bytes]:
        """The journal's files, in order."""

    def checkpoint(self, receipts: list[Receipt], lines: bytes, message: str) -> None:
        """Keep finished files and what the journal says of them.

        Raises:
            DestinationError: another run has claimed the ref, or it can't be written.
        """


def checkpoints_of(nbytes: int, files: int, *, every: int) -> int | None:
    """About how many checkpoints so many bytes and files make; None: the last commit can hold them all."""
    if files <= COMMIT_FILES and nbytes < every:
        return None
    return max(nbytes // every, files // COMMIT_FILES)


class RefJournal:
    """Journal entries and the files that they speak of, until a checkpoint commits both.

    Args:
        work: the ref that keeps them.
        outputs: the plan's output files: number -> path.
        every: bytes after which a checkpoint is due.
    """

    def __init__(self, work: Work, *, outputs: Mapping[int, str], every: int, report: Report) -> None:
        self._work, self._paths, self._every, self._report = work, outputs, every, report
        self.progress: Progress = gathered(self._kept_before())
        self._entries: list[Entry] = []
        self._receipts: list[Receipt] = []
        self._nbytes = 0
        self._lock = threading.Lock()
        self._last = monotonic()

    def _kept_before(self) -> Iterator[Entry]:
        for number, data in enumerate(self._work.journals(), 1):
            name = f"journal-{number:05d}.jsonl"
            if journal.key_of(data, name=name) != self._work.key:
                raise DestinationError(f"journal `{name}` is another plan's", hint="`--restart` begins anew")
            yield from journal.entries(data, outputs=self._paths.keys(), name=name)

    def add(self, entry: Entry) -> None:
        with self._lock:
            self._entries.append(entry)
            if isinstance(entry, MadeFile):
                self._receipts.append(Receipt(self._paths[entry.index], entry.size, entry.sha256))
                self._nbytes += entry.size
            if self._is_due():
                self._checkpoint()

    def save(self) -> None:
        """A checkpoint of what there is, in a thread that is not waited for forever."""
        saver = threading.Thread(target=self._save, name="save", daemon=True)
        saver.start()
        saver.join(_LAST_SECONDS)

    def _save(self) -> None:
        with suppress(TensorportError), self._lock:
            while self._entries:
                self._checkpoint()

    def end(self) -> None:
        """The last commit has all of it: there is nothing to keep any more."""
        with self._lock:
            self._entries.clear()
            self._receipts.clear()

    def flush(self) -> None:
        """Checkpoints until what is left fits the last commit."""
        with self._lock:
            while len(self._receipts) > COMMIT_FILES // 2:
                self._checkpoint()

    def _is_due(self) -> bool:
        now = monotonic()
        if not self._receipts or self._work.is_slowed:
            return False
        return (
            self._nbytes >= self._every
            or len(self._receipts) >= COMMIT_FILES
            or now - self._last >= 60 * _MINUTES
        )

    def _checkpoint(self) -> None:
        """Commit at most `COMMIT_FILES` of the files, with the entries up to there."""
        batch, files = 0, 0
        while batch < len(self._entries) and files < COMMIT_FILES:
            files += isinstance(self._entries[batch], MadeFile)
            batch += 1
        entries, receipts = self._entries[:batch], self._receipts[:files]
        lines = journal.heading(self._work.key) + journal.lines(entries)
        self._work.checkpoint(receipts, lines, f"Keep {files} finished files")
        del self._entries[:batch], self._receipts[:files]
        self._nbytes = sum(receipt.size for receipt in self._receipts)
        self._last = monotonic()
        self._report(Saved(files))
