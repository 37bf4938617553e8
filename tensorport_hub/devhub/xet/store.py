"""Where the CAS keeps things: xorbs as files named by their hash, an index of xorbs and files in SQLite.

    root/xorbs/ab/ab12...      the chunks of a xorb as sent, without the footer
    root/incoming/             bodies that are not verified yet
    root/index.sqlite          xorb -> chunk hashes and offsets; file -> sha256, size, terms

Rules: a row is written after the file it names is in place (rename), so what the index knows can be read;
a hash already known is kept as it is, because equal hashes mean equal bytes. One connection, one lock: the
statements are point look-ups. WAL without fsync on each commit: this is a Hub for trying and for tests.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import tempfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from tensorport_hub.devhub.xet.blob import XetBlob
from tensorport_hub.devhub.xet.errors import Refused
from tensorport_hub.devhub.xet.hashing import hash_text
from tensorport_hub.devhub.xet.shard import Term
from tensorport_hub.devhub.xet.xorb import Layout, Xorb

_TERM = struct.Struct("<32sIII")
_CACHED_XORBS = 64  # layouts held, about 16 KiB each

_SCHEMA = """
CREATE TABLE IF NOT EXISTS xorb (
    hash TEXT PRIMARY KEY, packed BLOB NOT NULL, unpacked BLOB NOT NULL, hashes BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS file (
    hash TEXT PRIMARY KEY, sha256 TEXT NOT NULL, size INTEGER NOT NULL, terms BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS file_sha256 ON file (sha256);
"""


class Store:
    """Verified xorbs and files under one directory; safe to use from several threads."""

    def __init__(self, root: Path) -> None:
        self._xorbs = root / "xorbs"
        self._incoming = root / "incoming"
        self._xorbs.mkdir(parents=True, exist_ok=True)
        self._incoming.mkdir(exist_ok=True)
        self._lock = Lock()
        self._index = sqlite3.connect(
            root / "index.sqlite", check_same_thread=False, timeout=30, isolation_level=None
        )
        self._index.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;" + _SCHEMA)
        self.open_xorb = lru_cache(maxsize=_CACHED_XORBS)(self._open_xorb)

    def close(self) -> None:
        with self._lock:
            self._index.close()

    def incoming(self) -> Path:
        """A new empty file for a body that is not verified yet."""
        handle, name = tempfile.mkstemp(dir=self._incoming)
        os.close(handle)
        return Path(name)

    def xorb_path(self, digest: bytes) -> Path:
        text = hash_text(digest)
        return self._xorbs / text[:2] / text

    def add_xorb(self, digest: bytes, body: Path, layout: Layout, hashes: bytes) -> bool:
        """Move a verified body in; False when the xorb was there."""
        text, path = hash_text(digest), self.xorb_path(digest)
        packed, unpacked = (array.astype("<u4").tobytes() for array in (layout.packed, layout.unpacked))
        os.truncate(body, int(layout.packed[-1]))
        # the same chunks can be packed in more than one way: a file and its offsets change together
        with self._lock:
            known = self._index.execute("SELECT 1 FROM xorb WHERE hash = ?", (text,)).fetchone()
            if known and path.exists():
                return False
            path.parent.mkdir(exist_ok=True)
            body.replace(path)
            self._index.execute(
                "INSERT OR REPLACE INTO xorb VALUES (?, ?, ?, ?)", (text, packed, unpacked, hashes)
            )
            self.open_xorb.cache_clear()
        return True

    def chunk_hashes(self, digest: bytes) -> bytes:
        """The concatenated hashes of a xorb's chunks. Raises `Refused` when it is not here."""
        row = self._row("SELECT hashes FROM xorb WHERE hash = ?", hash_text(digest))
        if row is None:
            raise Refused(f"xorb `{hash_text(digest)}` was not uploaded")
        return bytes(row[0])

    def _open_xorb(self, digest: bytes) -> Xorb:
        """A stored xorb. Raises `Refused` when it is not here."""
        row = self._row("SELECT packed, unpacked FROM xorb WHERE hash = ?", hash_text(digest))
        if row is None:
            raise Refused(f"xorb `{hash_text(digest)}` was not uploaded")
        packed, unpacked = (np.frombuffer(blob, dtype="<u4").astype(np.int64) for blob in row)
        return Xorb(self.xorb_path(digest), Layout(packed, unpacked))

    def add_files(self, blobs: Iterable[XetBlob]) -> int:
        """Register verified files, all or none; how many were new."""
        rows = [
            (blob.xet_hash, blob.sha256, blob.size, b"".join(_TERM.pack(*_fields(t)) for t in blob.terms))
            for blob in blobs
        ]
        with self._lock, self._index:
            self._index.execute("BEGIN IMMEDIATE")
            return self._index.executemany("INSERT OR IGNORE INTO file VALUES (?, ?, ?, ?)", rows).rowcount

    def file(self, digest: bytes) -> XetBlob | None:
        """A registered file by its Xet hash."""
        return self._blob("SELECT hash, sha256, size, terms FROM file WHERE hash = ?", hash_text(digest))

    def find(self, sha256: str) -> XetBlob | None:
        """A registered file by the sha256 of its bytes."""
        return self._blob("SELECT hash, sha256, size, terms FROM file WHERE sha256 = ? LIMIT 1", sha256)

    def _blob(self, query: str, key: str) -> XetBlob | None:
        row = self._row(query, key)
        if row is None:
            return None
        xet_hash, sha256, size, terms = row
        return XetBlob(
            sha256=sha256,
            size=size,
            xet_hash=xet_hash,
            terms=tuple(Term(*fields) for fields in _TERM.iter_unpack(terms)),
            open_xorb=self.open_xorb,
        )

    def _row(self, query: str, key: str) -> tuple[Any, ...] | None:
        with self._lock:
            row: tuple[Any, ...] | None = self._index.execute(query, (key,)).fetchone()
        return row


def _fields(term: Term) -> tuple[bytes, int, int, int]:
    return term.xorb, term.start, term.stop, term.nbytes
