"""Objects that come in parts.

Each part is written at its place in one file of the object's size and answered with an ETag, new at
every PUT, so that a completion that names an older one is found out. Parts that come in order are
hashed as they pass; what is left is hashed at completion. Uploads under way live in memory: a
restart forgets them, and the client is told that the upload is not known.

Source: S3's multipart upload, as the Hub offers it to huggingface_hub's `lfs.py`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tensorport_hub.devhub.blobs import BLOCK, ObjectStore, WrongDigest


class UnknownUpload(KeyError):
    """An upload that was never opened, or is over."""


class WrongPart(ValueError):
    """A part that is too long, too short, missing, or named with another ETag."""


@dataclass
class Upload:
    """One object in parts, under way."""

    oid: str
    size: int
    part_size: int
    path: Path
    etags: dict[int, str] = field(default_factory=dict)
    hashed: int = 0  # so many bytes from the start are in `digest`
    digest: Any = field(default_factory=hashlib.sha256)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def count(self) -> int:
        return -(-self.size // self.part_size)

    def part(self, number: int) -> Part:
        if not 1 <= number <= self.count:
            raise WrongPart(f"no part {number} of {self.count}")
        return Part(self, number)

    def check(self, named: Mapping[int, str]) -> None:
        """Every part is here, and named with the ETag of its last PUT."""
        for number in range(1, self.count + 1):
            if number not in self.etags:
                raise WrongPart(f"part {number} is missing")
            if named.get(number) != self.etags[number]:
                raise WrongPart(f"part {number} has another ETag")
        if len(named) != self.count:
            raise WrongPart(f"{len(named)} parts are named, expected {self.count}")

    def sha256(self) -> str:
        digest = self.digest.copy()
        with self.path.open("rb") as file:
            file.seek(self.hashed)
            while block := file.read(BLOCK):
                digest.update(block)
        return str(digest.hexdigest())


class Part:
    """One part being written."""

    def __init__(self, upload: Upload, number: int) -> None:
        self._upload = upload
        self._number = number
        self._start = self._at = (number - 1) * upload.part_size
        self._stop = min(self._start + upload.part_size, upload.size)
        self._digest = upload.digest.copy() if upload.hashed == self._start else None
        self._file: IO[bytes] = upload.path.open("r+b", buffering=0)
        self._file.seek(self._start)

    def write(self, block: bytearray) -> None:
        if self._at + len(block) > self._stop:
            raise WrongPart(f"part {self._number} is longer than {self._stop - self._start} bytes")
        if self._digest is not None:
            self._digest.update(block)
        view = memoryview(block)
        while view:
            view = view[self._file.write(view) :]
        self._at += len(block)

    def finish(self) -> str:
        """The part's ETag."""
        if self._at != self._stop:
            got, expected = self._at - self._start, self._stop - self._start
            raise WrongPart(f"part {self._number} has {got} bytes, expected {expected}")
        upload, etag = self._upload, secrets.token_hex(16)
        with upload.lock:
            upload.etags[self._number] = etag
            if self._digest is not None and upload.hashed == self._start:
                upload.digest, upload.hashed = self._digest, self._stop
            elif upload.hashed > self._start:
                upload.digest, upload.hashed = hashlib.sha256(), 0  # it came a second time
        return etag

    def close(self) -> None:
        self._file.close()


class Uploads:
    """The uploads of one devhub."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._open: dict[str, Upload] = {}
        self._lock = threading.Lock()

    def open(self, oid: str, size: int, part_size: int) -> tuple[str, Upload]:
        upload_id = secrets.token_hex(16)
        path = self._objects.incoming / f"parts-{upload_id}"
        with path.open("wb") as file:
            os.truncate(file.fileno(), size)
        upload = Upload(oid, size, part_size, path)
        with self._lock:
            self._open[upload_id] = upload
        return upload_id, upload

    def find(self, upload_id: str) -> Upload:
        with self._lock:
            if upload_id not in self._open:
                raise UnknownUpload(upload_id)
            return self._open[upload_id]

    def complete(self, upload_id: str, named: Mapping[int, str]) -> Upload:
        """Make the object of its parts. A wrong sha256 ends the upload, a wrong part does not."""
        upload = self.find(upload_id)
        with upload.lock:
            upload.check(named)
            found = upload.sha256()
            with self._lock:
                self._open.pop(upload_id, None)
            if found != upload.oid:
                upload.path.unlink(missing_ok=True)
                raise WrongDigest(f"expected sha256 `{upload.oid}`, got `{found}`")
            self._objects.adopt(upload.path, upload.oid)
        return upload
