"""Reading what hf_xet's own `local://` store wrote.

The store of `local:///dir` keeps shards in `dir/xet/xorbs/shards/<hash>.mdb` and xorbs (with footers) in
`dir/xet/xorbs/xorbs/default.<hash>`, next to a database it holds under an exclusive lock while it is in
use.

Rules: only those plain files are read, never the database. The store is hf_xet's: nothing is verified
again, and a file that is not complete yet is passed over and looked at the next time. A file uploaded
without its sha256 cannot be found.
"""

from __future__ import annotations

import mmap
from functools import lru_cache
from pathlib import Path
from threading import Lock

from tensorport_hub.devhub.xet.blob import XetBlob
from tensorport_hub.devhub.xet.errors import Refused
from tensorport_hub.devhub.xet.hashing import hash_text
from tensorport_hub.devhub.xet.shard import FileRecord, parse_shard
from tensorport_hub.devhub.xet.xorb import Xorb, scan

_CACHED_XORBS = 64


class LocalCas:
    """The files of a `local://` store, by sha256."""

    def __init__(self, root: Path) -> None:
        self._shards = root / "xet" / "xorbs" / "shards"
        self._xorbs = root / "xet" / "xorbs" / "xorbs"
        self._lock = Lock()
        self._read: set[str] = set()
        self._files: dict[str, FileRecord] = {}
        self._open_xorb = lru_cache(maxsize=_CACHED_XORBS)(self._scan_xorb)

    def find(self, sha256: str) -> XetBlob | None:
        """A file whose shard was written, by the sha256 of its bytes; reads new shards when it is unknown."""
        with self._lock:
            if sha256 not in self._files:
                self._read_new_shards()
            record = self._files.get(sha256)
        if record is None:
            return None
        return XetBlob(sha256, record.size, hash_text(record.hash), record.terms, self._open_xorb)

    def _read_new_shards(self) -> None:
        for path in sorted(self._shards.glob("*.mdb")):
            if path.name in self._read:
                continue
            try:
                shard = parse_shard(memoryview(path.read_bytes()))
            except (Refused, FileNotFoundError):
                continue  # still being written, or replaced by a merged shard
            self._read.add(path.name)
            self._files |= {record.sha256: record for record in shard.files if record.sha256}

    def _scan_xorb(self, digest: bytes) -> Xorb:
        path = self._xorbs / f"default.{hash_text(digest)}"
        with path.open("rb") as file:
            return Xorb(path, scan(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))))
