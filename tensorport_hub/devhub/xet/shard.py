"""Shards: what files are made of, in 48-byte records.

A header (32-byte tag, version 2, footer length), then files, then xorbs; each list ends with a bookend (32
bytes 0xFF, 16 zero bytes); last a footer, whose length is 0 in an upload. A file is a head record (hash,
flags, number of terms), its terms (xorb, flags, unpacked length, chunk range), one verification record a
term (flag bit 31), one record with the sha256 (flag bit 30). A xorb is a head record (hash, flags, chunks,
unpacked and stored length) and one record a chunk (hash, unpacked offset, unpacked length, flags).

Rules: reading checks the structure and nothing else; every count is checked against the bytes that are
there before it is used. The sha256 is stored with its bytes in the order of the hash *text*, so it goes
through `hash_text`. Source: the Xet protocol specification ("Shard format").
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tensorport_hub.devhub.xet.errors import Refused
from tensorport_hub.devhub.xet.hashing import HASH_NBYTES, hash_text

SHARD_MAX_NBYTES = 64 << 20
FILE_MAX_NBYTES = 500 * 10**9  # the Hub's hard limit of a file

_TAG = b"HFRepoMetaData\0" + bytes.fromhex("556967456a7b815783a5bdd95ccdd14aa9")
_HEADER = struct.Struct("<32sQQ")
_FOOTER_NBYTES = 200
_VERSION = 2
_RECORD_NBYTES = 48
_HEAD = struct.Struct("<32sIIII")  # a head of either list, a term
_BOOKEND = b"\xff" * HASH_NBYTES
_WITH_VERIFICATION = 1 << 31
_WITH_METADATA = 1 << 30
_NO_SHA256 = "0" * 64  # what hf_xet writes for an empty file
_SHA256_OF_NOTHING = hashlib.sha256().hexdigest()

CHUNK_RECORD = np.dtype([("hash", "V32"), ("start", "<u4"), ("nbytes", "<u4"), ("flags", "V8")])
ChunkRecords = npt.NDArray[np.void]


@dataclass(frozen=True)
class Term:
    """The chunks [start, stop) of a xorb, `nbytes` long when unpacked."""

    xorb: bytes
    start: int
    stop: int
    nbytes: int


@dataclass(frozen=True)
class FileRecord:
    """A file as a shard states it: its terms in order, and the hashes that prove them."""

    hash: bytes
    terms: tuple[Term, ...]
    term_hashes: tuple[bytes, ...] | None  # None: the shard carries no verification for this file
    sha256: str | None  # None: the client skipped it

    @property
    def size(self) -> int:
        return sum(term.nbytes for term in self.terms)


@dataclass(frozen=True)
class XorbRecord:
    """A xorb as a shard states it."""

    hash: bytes
    nbytes: int
    chunks: ChunkRecords


@dataclass(frozen=True)
class Shard:
    """What one shard states: files, and the xorbs that hold their chunks."""

    files: tuple[FileRecord, ...]
    xorbs: tuple[XorbRecord, ...]


class _Records:
    """A cursor over 48-byte records that refuses to run past the end."""

    def __init__(self, body: memoryview) -> None:
        self.body = body
        self.position = _HEADER.size

    def take(self, count: int, what: str) -> memoryview:
        start, self.position = self.position, self.position + count * _RECORD_NBYTES
        if self.position > len(self.body):
            raise Refused(f"shard: {what} ends at byte {self.position}, the body has {len(self.body)}")
        return self.body[start : self.position]

    def head(self, what: str) -> tuple[bytes, int, int, int, int] | None:
        """The next head record, or None at the bookend."""
        record = self.take(1, what)
        if record[:HASH_NBYTES] == _BOOKEND:
            return None
        digest, a, b, c, d = _HEAD.unpack(record)
        return digest, a, b, c, d


def parse_shard(body: memoryview) -> Shard:
    """The records of a serialized shard, with or without a footer. Raises `Refused`."""
    if len(body) < _HEADER.size:
        raise Refused(f"shard: expected a header of {_HEADER.size} bytes, got {len(body)} bytes")
    tag, version, footer_nbytes = _HEADER.unpack(body[: _HEADER.size])
    if tag != _TAG:
        raise Refused("shard: the header tag is not that of a shard")
    if version != _VERSION:
        raise Refused(f"shard: expected version {_VERSION}, got {version}")
    if footer_nbytes not in (0, _FOOTER_NBYTES):
        raise Refused(
            f"shard: expected a footer of 0 or {_FOOTER_NBYTES} bytes, the header says {footer_nbytes}"
        )
    records = _Records(body)
    files = _files(records)
    xorbs = _xorbs(records)
    # a footer may come after lookup tables of older writers: only its absence fixes where the shard ends
    rest = len(body) - records.position
    if rest < footer_nbytes or (footer_nbytes == 0 and rest):
        raise Refused(
            f"shard: expected a footer of {footer_nbytes} bytes after the records, got {rest} bytes"
        )
    return Shard(files, xorbs)


def _files(records: _Records) -> tuple[FileRecord, ...]:
    files: list[FileRecord] = []
    while head := records.head("the file list"):
        digest, flags, count, _, _ = head
        what = f"file `{hash_text(digest)}`"
        terms = tuple(
            Term(xorb, start, stop, nbytes)
            for xorb, _, nbytes, start, stop in _HEAD.iter_unpack(records.take(count, f"{what}: terms"))
        )
        term_hashes = None
        if flags & _WITH_VERIFICATION:
            block = records.take(count, f"{what}: verification")
            term_hashes = tuple(
                bytes(block[i : i + HASH_NBYTES]) for i in range(0, len(block), _RECORD_NBYTES)
            )
        sha256 = None
        if flags & _WITH_METADATA:
            sha256 = hash_text(bytes(records.take(1, f"{what}: metadata")[:HASH_NBYTES]))
            if count == 0 and sha256 == _NO_SHA256:
                sha256 = _SHA256_OF_NOTHING
        files.append(FileRecord(digest, terms, term_hashes, sha256))
    return tuple(files)


def _xorbs(records: _Records) -> tuple[XorbRecord, ...]:
    xorbs: list[XorbRecord] = []
    while head := records.head("the xorb list"):
        digest, _, count, nbytes, _ = head
        block = records.take(count, f"xorb `{hash_text(digest)}`: chunks")
        xorbs.append(XorbRecord(digest, nbytes, np.frombuffer(block, dtype=CHUNK_RECORD)))
    return tuple(xorbs)
