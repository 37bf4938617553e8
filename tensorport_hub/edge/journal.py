"""Where a journal is kept: in a file, line by line, each flushed to the disk before the call returns.

`Unkept` is the journal of a destination that publishes in one commit: nothing can be resumed there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from tensorport_hub.core import journal
from tensorport_hub.core.progress import Entry, MadeFile, Progress, gathered
from tensorport_hub.errors import DestinationError


class Unkept:
    """Remembers nothing."""

    progress = Progress()

    def add(self, entry: Entry) -> None:
        """Nothing to keep it in."""

    def save(self) -> None:
        """Nothing to save."""


class JournalFile:
    """A journal on the disk. What a run that died left half-written at its end is cut off.

    Attributes:
        made: how many output files are entered, by this run or one before it.
    """

    def __init__(self, path: Path, *, key: str, outputs: Collection[int]) -> None:
        """Open or begin the journal of the plan `key`, which has these `outputs`.

        Raises:
            DestinationError: it belongs to another plan, is damaged, or can't be written.
        """
        self._path = path
        self._lock = threading.Lock()
        try:
            data = path.read_bytes() if path.exists() else b""
            found = journal.key_of(data, name=str(path))
            if found is not None and found != key:
                raise DestinationError(
                    f"`{path.parent}` holds the interrupted run of another plan: expected {key[:16]},"
                    f" got {found[:16]}",
                    hint="`--restart` gives it up; the command that was interrupted continues it",
                )
            entries = journal.entries(data, outputs=outputs, name=str(path)) if found else []
            self.progress = gathered(entries)
            self.made = len(self.progress.made)
            self._file = open(path, "r+b" if data else "w+b", buffering=0)  # noqa: SIM115 (closed by `close`)
            self._end = journal.whole_lines(data)
            self._file.truncate(self._end)
            if found is None:
                self._append(journal.heading(key))
        except OSError as error:
            raise self._refused(error) from None

    def add(self, entry: Entry) -> None:
        with self._lock:
            try:
                self._append(journal.lines([entry]))
            except OSError as error:
                raise self._refused(error) from None
            self.made += isinstance(entry, MadeFile)

    def _append(self, line: bytes) -> None:
        """Write one line; where the disk is full nothing of it stays."""
        try:
            done = 0
            while done < len(line):
                done += os.pwrite(self._file.fileno(), line[done:], self._end + done)
            os.fsync(self._file.fileno())
        except OSError:
            with suppress(OSError):
                self._file.truncate(self._end)
            raise
        self._end += len(line)

    def _refused(self, error: OSError) -> DestinationError:
        return DestinationError(f"journal `{self._path}` can't be written: {error.strerror}")

    def save(self) -> None:
        """Every entry is on the disk already."""

    def close(self) -> None:
        self._file.close()
