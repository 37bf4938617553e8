"""The files of a mirror that is read: mapped where they lie on this machine, by range where they don't.

Every file is held against the manifest before its first use: the size of one that lies here, the size and
digest that the Hub states of one that does not; with `verify` its bytes, once, which for a file on the Hub
means one more download of it. Everything may be called from any thread.
"""

from __future__ import annotations

import hashlib
import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

from tensorport_hub.core import proof
from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.manifest import FileEntry
from tensorport_hub.core.ranges import pieces
from tensorport_hub.core.tensor import shorten
from tensorport_hub.edge.mapped import map_file, read_into
from tensorport_hub.errors import SourceError, UseError, VerificationError
from tensorport_hub.ports import Source

_BLOCK = 8 << 20
_KEPT = 16
"""Mappings that are kept for the next use; the others live as long as arrays made of them."""


class Files:
    """What the files of one mirror hold.

    Args:
        name: of the mirror, for errors.
        find: where a file lies on this machine; None: it does not.
        source: the repository, which has all of them; None: there are no others.
        verify: compare the sha256 of each file before its first use.
    """

    def __init__(
        self, name: str, find: Callable[[str], Path | None], source: Source | None, *, verify: bool
    ) -> None:
        self._name, self._find, self._source, self._verify = name, find, source, verify
        self._listed: Mapping[str, SourceFile] = {f.path: f for f in source.files} if source else {}
        self._checked: dict[str, Path | None] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._kept: OrderedDict[str, mmap.mmap] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False

    def mapped(self, entry: FileEntry) -> mmap.mmap | None:
        """The whole file as memory; None where it is not on this machine, or can't be mapped.

        Raises:
            SourceError: it is not there, or can't be read.
            VerificationError: it is not the file that the manifest lists.
        """
        local = self._local(entry)
        if local is None:
            return None
        with self._lock:
            if (kept := self._kept.get(entry.path)) is not None:
                self._kept.move_to_end(entry.path)
                return kept
        made = map_file(local, entry.size)
        if made is not None:
            with self._lock:
                self._kept[entry.path] = made
                if len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
        return made

    def read_into(self, entry: FileEntry, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with exactly the file's bytes from `start`; errors as of `mapped`."""
        self._read_into(entry, self._local(entry), start, buffer)

    def read(self, entry: FileEntry) -> bytes:
        """A whole small file, always compared with its sha256; errors as of `mapped`."""
        content = bytearray(entry.size)
        self.read_into(entry, 0, memoryview(content))
        self._compare(entry, hashlib.sha256(content).hexdigest())
        return bytes(content)

    def is_here(self, entry: FileEntry) -> bool:
        """Whether reading asks the Hub for nothing."""
        return self._local(entry) is not None

    def check_open(self, entry: FileEntry) -> None:
        """Raise a `UseError` where the files were closed, by whatever thread, before `entry` was read."""
        with self._lock:
            if self._closed:
                raise UseError(f"`{self._name}` was closed, `{shorten(entry.path)}` can't be read any more")

    def _local(self, entry: FileEntry) -> Path | None:
        """Where the file lies on this machine; it is the right one."""
        self.check_open(entry)
        with self._lock:
            lock = self._locks.setdefault(entry.path, threading.Lock())
        with lock:
            if entry.path not in self._checked:
                self._checked[entry.path] = self._check(entry)
            return self._checked[entry.path]

    def _check(self, entry: FileEntry) -> Path | None:
        local = self._find(entry.path)
        if self._source is not None:
            fault = proof.check_file(entry, self._listed.get(entry.path))
            if fault is not None:
                raise VerificationError(f"`{shorten(fault.what)}` of `{self._name}` {fault.message}")
        elif local is None:
            raise SourceError(f"`{shorten(entry.path)}` of `{self._name}` is not on this machine")
        if local is not None:
            read_into(local, entry.size, 0, memoryview(b""))  # which checks the size
        if self._verify:
            self._compare(entry, self._digest(entry, local))
        return local

    def _digest(self, entry: FileEntry, local: Path | None) -> str:
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(min(_BLOCK, entry.size)))
        for start, stop in pieces(0, entry.size, _BLOCK):
            block = buffer[: stop - start]
            self._read_into(entry, local, start, block)
            digest.update(block)
        return digest.hexdigest()

    def _compare(self, entry: FileEntry, sha256: str) -> None:
        if sha256 != entry.sha256:
            raise VerificationError(
                f"`{shorten(entry.path)}` of `{self._name}` holds wrong bytes: expected sha256"
                f" {entry.sha256}, got {sha256}"
            )

    def _read_into(self, entry: FileEntry, local: Path | None, start: int, buffer: memoryview) -> None:
        if local is not None:
            read_into(local, entry.size, start, buffer)
        else:
            assert self._source is not None
            self._source.read_into(entry.path, start, buffer)

    def close(self) -> None:
        """Give connections back; arrays that were made of mapped files stay as they are."""
        with self._lock:
            self._closed = True
            self._kept.clear()
        if self._source is not None:
            self._source.close()
