"""A commit of a git remote, as a source: for proving a mirror, read front to back.

git's own files come with the commit, LFS objects one by one when they are read: each is dropped once its last
byte was, so the disk holds as many as are read at a time. git-lfs compares their bytes. It is a destination
that is read here, so what fails is its fault.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO

from tensorport_hub.core.digest import POINTER_NBYTES, SourceFile, parse_pointer
from tensorport_hub.edge.git import Git
from tensorport_hub.edge.git_lfs import GitObjects
from tensorport_hub.edge.git_remote import HEADS, GitRemote
from tensorport_hub.errors import DestinationError
from tensorport_hub.ports import Receipt, Report


class GitSource:
    """One commit of a remote; by default that of its default branch.

    Raises:
        DestinationError: it can't be had.
    """

    repo = None
    stamp = ""

    def __init__(self, url: str, revision: str | None, report: Report) -> None:
        self._open: dict[str, IO[bytes]] = {}
        self._lock = threading.Lock()
        with ExitStack() as undo:
            self._git = Git(url)
            undo.callback(self._git.close)
            self._remote = GitRemote(self._git, report)
            self._objects = GitObjects(self._remote, max_disk=0)
            self._tree = self._remote.tree(revision or self._default(), blobs=True)
            self.files: Sequence[SourceFile] = self._listed()
            self._named = {file.path: file for file in self.files}
            undo.pop_all()
        self.commit = self._tree.commit or ""

    def _default(self) -> str:
        refs, default = self._remote.refs()
        if not refs:
            raise DestinationError(f"`{self._remote.name}` is empty")
        return default or f"{HEADS}main"

    def _listed(self) -> list[SourceFile]:
        regular = self._tree.regular
        sizes = dict(zip(regular, self._remote.sizes(self._tree, regular), strict=True))
        small = [path for path, size in sizes.items() if size <= POINTER_NBYTES]
        said = dict(zip(small, map(parse_pointer, self._remote.read(self._tree, small)), strict=True))
        files = []
        for path, oid in sorted(self._tree.files.items()):
            pointed = said.get(path)
            if pointed is None:
                files.append(SourceFile(path, sizes.get(path, 0), git_oid=oid))
            else:
                files.append(SourceFile(path, pointed[1], pointed[0]))
        return files

    def read_into(self, path: str, start: int, buffer: memoryview) -> None:
        file = self._named.get(path)
        if file is None or not 0 <= start <= start + len(buffer) <= file.size:
            where = f"bytes {start}:{start + len(buffer)} of `{path}`"
            raise DestinationError(f"`{self._remote.name}` has no {where}")
        if file.sha256 is None:
            buffer[:] = self._remote.read(self._tree, [path])[0][start : start + len(buffer)]
            return
        with self._lock:
            held = self._open.pop(path, None)
        held = held or self._objects.fetch(Receipt(path, file.size, file.sha256))
        done = 0
        while done < len(buffer):
            got = os.preadv(held.fileno(), [buffer[done:]], start + done)
            if not got:
                raise DestinationError(f"`{path}` of `{self._remote.name}` is shorter than {file.size} bytes")
            done += got
        if start + len(buffer) == file.size:
            held.close()
        else:
            with self._lock:
                self._open[path] = held

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._git.close()
