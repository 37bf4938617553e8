"""Trees: what a commit holds, as one flat map from path to entry.

An `Entry` is one file: a regular one is known by its git blob id, an LFS one by the blob id of its
pointer (`oid`) and by the sha256 of its bytes. A `Snapshot` is every file of one commit; folders
are computed from it: sorted order, listings with or without their depths, and folder ids, which are
git's own tree ids. Snapshots are immutable and share their entries, so that a commit that changes
ten of 100,000 files costs ten entries.

Source of the ids and the pointer text: git's object format and the git-LFS specification.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import NamedTuple


class Entry(NamedTuple):
    """One file of a tree. `commit` is the commit that last changed it."""

    path: str
    size: int
    oid: str
    sha256: str
    lfs: bool
    commit: str

    @property
    def remote_oid(self) -> str:
        """What a client compares its own file with before it uploads it."""
        return self.sha256 if self.lfs else self.oid

    @property
    def pointer_size(self) -> int:
        return len(pointer(self.sha256, self.size))


class Folder(NamedTuple):
    """One folder of a tree."""

    path: str
    oid: str


def git_blob_oid(data: bytes) -> str:
    """The git blob id of a content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """The text that git stores in place of an LFS file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def lfs_entry(path: str, sha256: str, size: int) -> Entry:
    """The tree entry of an LFS file: git sees its pointer."""
    return Entry(path, size, git_blob_oid(pointer(sha256, size)), sha256, True, "")


class Snapshot:
    """Every file of one commit."""

    def __init__(self, files: Mapping[str, Entry]) -> None:
        self.files = files
        self._told: tuple[str, bool, list[Entry | Folder]] | None = None

    @cached_property
    def paths(self) -> list[str]:
        return sorted(self.files)

    @cached_property
    def folders(self) -> dict[str, str]:
        """Folder path -> git tree id; the root is the empty path."""
        children: dict[str, list[tuple[bytes, bytes]]] = {"": []}
        for path in self.paths:
            folder, _, name = path.rpartition("/")
            entry = self.files[path]
            row = b"100644 " + name.encode() + b"\0" + bytes.fromhex(entry.oid)
            children.setdefault(folder, []).append((name.encode(), row))
            while folder:
                folder = folder.rpartition("/")[0]
                if folder in children:
                    break
                children[folder] = []
        oids: dict[str, str] = {}
        for folder in sorted(children, key=lambda path: path.count("/") + bool(path), reverse=True):
            rows = b"".join(row for _, row in sorted(children[folder]))
            oid = hashlib.sha1(b"tree %d\0" % len(rows) + rows, usedforsecurity=False).digest()
            oids[folder] = oid.hex()
            if folder:
                parent, _, name = folder.rpartition("/")
                # git sorts a folder as if its name ended in a slash.
                children[parent].append((name.encode() + b"/", b"40000 " + name.encode() + b"\0" + oid))
        return oids

    def under(self, folder: str) -> Iterator[str]:
        """The paths of the files below `folder`, at any depth, in order."""
        if not folder:
            yield from self.paths
            return
        prefix = folder + "/"
        for index in range(bisect_left(self.paths, prefix), len(self.paths)):
            if not self.paths[index].startswith(prefix):
                return
            yield self.paths[index]

    def listing(self, folder: str, *, recursive: bool) -> list[Entry | Folder]:
        """What lies in `folder`; with `recursive`, every depth, folders before what they hold.

        The last answer is kept: a client reads a long listing page by page.
        """
        told = self._told
        if told is None or told[:2] != (folder, recursive):
            told = self._told = (folder, recursive, self._list(folder, recursive))
        return told[2]

    def _list(self, folder: str, recursive: bool) -> list[Entry | Folder]:
        rows: list[Entry | Folder] = []
        told: set[str] = set()
        skip = len(folder) + 1 if folder else 0
        for path in self.under(folder):
            slash = path.find("/", skip)
            while slash >= 0:
                inner = path[:slash]
                if inner not in told:
                    told.add(inner)
                    rows.append(Folder(inner, self.folders[inner]))
                slash = path.find("/", slash + 1) if recursive else -1
            if recursive or "/" not in path[skip:]:
                rows.append(self.files[path])
        return rows

    def find(self, path: str) -> Entry | Folder | None:
        entry = self.files.get(path)
        if entry is not None:
            return entry
        if path in self.folders:
            return Folder(path, self.folders[path])
        return None

    def with_changes(self, changes: Mapping[str, Entry | None]) -> Snapshot:
        """This snapshot with entries put in place; None takes a file away."""
        files = dict(self.files)
        for path, entry in changes.items():
            if entry is None:
                files.pop(path, None)
            else:
                files[path] = entry
        return Snapshot(files)

    def differences(self, later: Snapshot) -> dict[str, Entry | None]:
        """The changes that make `later` of this snapshot."""
        found: dict[str, Entry | None] = {}
        for path, entry in later.files.items():
            before = self.files.get(path)
            if before is None or (before.oid, before.lfs) != (entry.oid, entry.lfs):
                found[path] = entry
        for path in self.files:
            if path not in later.files:
                found[path] = None
        return found
