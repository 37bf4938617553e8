"""Blobs: immutable bytes known by their sha256, wherever they lie.

`Blob` is the one face that the rest of the devhub sees: a size, a digest, and `read(start, stop)`;
`path` is set only where a plain file holds the bytes, so that it can be sent by `sendfile`, and
`xet_hash` only where the Xet storage holds them. Nothing may assume a plain file.

`ObjectStore` keeps plain blobs as `objects/aa/bb/<sha256>`. Bytes are written to a temporary file,
hashed as they pass, refused when the digest is not the announced one, and renamed into place: an
object that exists is whole and right. A store that drops large objects hashes them all the same, and
remembers size and digest. `Blobs` asks the store first and then each other place.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

BLOCK = 4 << 20
ABANDONED_SECONDS = 3600


class WrongDigest(ValueError):
    """Bytes that are not what their announced sha256 or size says."""


class Blob(Protocol):
    """Immutable bytes. `read` blocks; it yields exactly the bytes `start:stop`, in blocks."""

    @property
    def sha256(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def xet_hash(self) -> str | None: ...
    @property
    def path(self) -> Path | None: ...
    def read(self, start: int, stop: int) -> Iterator[bytes]: ...


class Place(Protocol):
    """A place that may hold a blob: the Xet storage, a generator of synthetic bytes."""

    def find(self, sha256: str) -> Blob | None: ...


@dataclass(frozen=True)
class FileBlob:
    """A blob in a plain file."""

    sha256: str
    size: int
    path: Path
    xet_hash: str | None = None

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(start)
            while start < stop:
                block = file.read(min(BLOCK, stop - start))
                if not block:
                    raise OSError(f"`{self.path.name}` ends at {start}, expected {stop}")
                start += len(block)
                yield block


@dataclass(frozen=True)
class MemoryBlob:
    """A blob in memory: the body of a small answer."""

    data: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def xet_hash(self) -> str | None:
        return None

    @property
    def path(self) -> Path | None:
        return None

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        yield self.data[start:stop]


@dataclass(frozen=True)
class DroppedBlob:
    """A blob that was checked when it came, and not kept."""

    sha256: str
    size: int
    xet_hash: str | None = None
    path: Path | None = None

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        raise OSError(f"the bytes of `{self.sha256}` were checked and dropped")


class ObjectStore:
    """Plain files, content-addressed. Safe from several threads and processes.

    Args:
        drop_above: bytes above which an uploaded object is checked and dropped; None keeps all.
    """

    def __init__(self, root: Path, *, drop_above: int | None = None) -> None:
        self.root, self.drop_above = root, drop_above
        self._dropped: dict[str, DroppedBlob] = {}
        self.incoming = root / "incoming"
        self.incoming.mkdir(parents=True, exist_ok=True)

    def sweep(self) -> None:
        """Remove what broken-off uploads left, once it is old enough to belong to nobody."""
        for file in self.incoming.iterdir():
            if time.time() - file.stat().st_mtime > ABANDONED_SECONDS:
                file.unlink(missing_ok=True)

    def path(self, sha256: str) -> Path:
        return self.root / sha256[:2] / sha256[2:4] / sha256

    def find(self, sha256: str) -> Blob | None:
        path = self.path(sha256)
        try:
            return FileBlob(sha256, path.stat().st_size, path)
        except FileNotFoundError:
            return self._dropped.get(sha256)

    def drop(self, sha256: str, size: int) -> DroppedBlob:
        """Remember an object that was not kept."""
        return self._dropped.setdefault(sha256, DroppedBlob(sha256, size))

    def receive(self, limit: int | None = None) -> Incoming:
        """A new object under way, of at most `limit` bytes; its digest need not be known yet."""
        return Incoming(self, limit)

    def put(self, blocks: Iterable[bytes], expected: str | None = None) -> Blob:
        """Store `blocks`; with `expected`, refuse bytes of another sha256."""
        incoming = self.receive()
        try:
            for block in blocks:
                incoming.write(block)
            return incoming.finish(expected)
        finally:
            incoming.abort()

    def adopt(self, file: Path, sha256: str) -> FileBlob:
        """Rename a complete, already hashed file into place."""
        path = self.path(sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        size = file.stat().st_size
        os.replace(file, path)
        return FileBlob(sha256, size, path)


class Incoming:
    """One object being written. `finish` or `abort` ends it; `abort` after `finish` does nothing."""

    def __init__(self, store: ObjectStore, limit: int | None) -> None:
        self._store = store
        self._limit = limit
        self._temporary = store.incoming / secrets.token_hex(16)
        self._drops = limit is not None and store.drop_above is not None and limit > store.drop_above
        target = os.devnull if self._drops else self._temporary
        self._file = open(target, "wb", buffering=0)  # noqa: SIM115 (closed by finish or abort)
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, block: bytes | bytearray) -> None:
        if self._limit is not None and self.size + len(block) > self._limit:
            raise WrongDigest(f"more than the announced {self._limit} bytes")
        self._hash.update(block)
        view = memoryview(block)
        while view:
            view = view[self._file.write(view) :]
        self.size += len(block)

    def finish(self, expected: str | None = None) -> Blob:
        self._file.close()
        found = self._hash.hexdigest()
        if expected is not None and found != expected:
            raise WrongDigest(f"expected sha256 `{expected}`, got `{found}` ({self.size} bytes)")
        if self._drops:
            return self._store.drop(found, self.size)
        return self._store.adopt(self._temporary, found)

    def abort(self) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)


class Blobs:
    """Every place where bytes may lie, asked in order."""

    def __init__(self, objects: ObjectStore) -> None:
        self.objects = objects
        self._places: list[Place] = []
        self._xet_hashes: dict[str, str] = {}

    def add(self, place: Place) -> None:
        self._places.append(place)

    def find(self, sha256: str) -> Blob | None:
        plain = self.objects.find(sha256)
        if plain is not None:
            return plain
        for place in self._places:
            blob = place.find(sha256)
            if blob is not None:
                return blob
        return None

    def xet_hash(self, sha256: str) -> str | None:
        """The Xet hash of these bytes if the Xet storage has them; remembered, for long listings."""
        known = self._xet_hashes.get(sha256)
        if known is not None:
            return known
        for place in self._places:
            blob = place.find(sha256)
            if blob is not None and blob.xet_hash is not None:
                self._xet_hashes[sha256] = blob.xet_hash
                return blob.xet_hash
        return None
