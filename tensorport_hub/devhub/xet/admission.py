"""What a body must prove before the store takes it.

A xorb: every chunk unpacks to the length its header says, and the tree over the chunks' hashes is the hash
in the URL. A shard: each xorb it lists is here, with these chunks; each file's terms lie inside xorbs that
are here, with the lengths and verification hashes they claim; the file's hash is that of its chunks; and
its sha256 is that of its bytes, which are unpacked and hashed for this. A file already registered is not
hashed again: its Xet hash fixes its bytes.

Rules: blocking, for worker threads; some chunks in memory; the first thing that differs is named in
`Refused`.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from tensorport_hub.devhub.xet.blob import XetBlob
from tensorport_hub.devhub.xet.errors import Refused
from tensorport_hub.devhub.xet.hashing import (
    HASH_NBYTES,
    Buffer,
    Node,
    file_hash,
    hash_text,
    nodes_of,
    term_hash,
    xorb_hash,
)
from tensorport_hub.devhub.xet.shard import FILE_MAX_NBYTES, FileRecord, XorbRecord, parse_shard
from tensorport_hub.devhub.xet.store import Store
from tensorport_hub.devhub.xet.xorb import chunk_hashes, scan

_BLOCK_CHUNKS = 16  # about 1 MiB


def admit_xorb(store: Store, digest: bytes, body: Path) -> bool:
    """Verify a serialized xorb and take it into the store; False when it was there. Raises `Refused`."""
    if body.stat().st_size == 0:
        raise Refused("xorb: no chunks")
    with body.open("rb") as file:
        # not closed by hand: a refusal on its way out still holds slices of it
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    layout = scan(view)
    hashes = chunk_hashes(view, layout)
    got = xorb_hash(nodes_of(hashes, np.diff(layout.unpacked)))
    if got != digest:
        raise Refused(f"xorb: expected hash `{hash_text(digest)}`, the chunks have `{hash_text(got)}`")
    return store.add_xorb(digest, body, layout, hashes)


def admit_shard(store: Store, body: Path) -> bool:
    """Verify a serialized shard and register its files; False when all were known. Raises `Refused`."""
    shard = parse_shard(memoryview(body.read_bytes()))
    for xorb in shard.xorbs:
        _check_xorb(store, xorb)
    blobs = [_check_file(store, record) for record in shard.files]
    return store.add_files(blobs) > 0


def _check_xorb(store: Store, record: XorbRecord) -> None:
    """The chunks a shard lists for a xorb are those the store has."""
    what = f"xorb `{hash_text(record.hash)}`"
    starts = store.open_xorb(record.hash).layout.unpacked
    if len(record.chunks) != len(starts) - 1:
        raise Refused(f"{what}: expected {len(starts) - 1} chunks, the shard lists {len(record.chunks)}")
    if record.nbytes != starts[-1]:
        raise Refused(f"{what}: expected {starts[-1]} unpacked bytes, the shard says {record.nbytes}")
    if not np.array_equal(record.chunks["start"], starts[:-1]):
        raise Refused(f"{what}: the shard's chunk offsets are not those of the xorb")
    if not np.array_equal(record.chunks["nbytes"], np.diff(starts)):
        raise Refused(f"{what}: the shard's chunk lengths are not those of the xorb")
    if record.chunks["hash"].tobytes() != store.chunk_hashes(record.hash):
        raise Refused(f"{what}: the shard's chunk hashes are not those of the xorb")


def _check_file(store: Store, record: FileRecord) -> XetBlob:
    """A file whose every claim holds."""
    text = hash_text(record.hash)
    what = f"file `{text}`"
    if record.size > FILE_MAX_NBYTES:
        raise Refused(f"{what}: expected at most {FILE_MAX_NBYTES} bytes, got {record.size}")
    got = file_hash(_term_nodes(store, record, what))
    if got != record.hash:
        raise Refused(f"{what}: its chunks have the file hash `{hash_text(got)}`")
    blob = store.file(record.hash) or _hashed(store, record, text)
    if record.sha256 not in (None, blob.sha256):
        raise Refused(f"{what}: expected sha256 `{record.sha256}`, the bytes have `{blob.sha256}`")
    return blob


def _term_nodes(store: Store, record: FileRecord, what: str) -> Iterator[Node]:
    """The file's chunks, from terms that fit their xorbs."""
    if record.term_hashes is None and record.terms:
        raise Refused(f"{what}: no verification hashes")
    for i, term in enumerate(record.terms):
        where = f"{what}: term {i}"
        layout = store.open_xorb(term.xorb).layout
        if not term.start < term.stop <= layout.count:
            chunks = f"[{term.start}, {term.stop})"
            raise Refused(f"{where}: chunks {chunks} outside the {layout.count} of `{hash_text(term.xorb)}`")
        nbytes = layout.nbytes(term.start, term.stop)
        if nbytes != term.nbytes:
            raise Refused(f"{where}: expected {term.nbytes} unpacked bytes, the chunks have {nbytes}")
        hashes = store.chunk_hashes(term.xorb)[term.start * HASH_NBYTES : term.stop * HASH_NBYTES]
        if record.term_hashes is not None and term_hash(hashes) != record.term_hashes[i]:
            raise Refused(f"{where}: the verification hash is not that of its chunks")
        yield from nodes_of(hashes, np.diff(layout.unpacked[term.start : term.stop + 1]))


def _hashed(store: Store, record: FileRecord, text: str) -> XetBlob:
    """The file with the sha256 of its bytes: unpacked here, hashed one block behind in a second thread."""
    sha256 = hashlib.sha256()
    behind: Future[None] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="cas-sha256") as hasher:
        for block in _blocks(store, record):
            if behind is not None:
                behind.result()
            behind = hasher.submit(_feed, sha256.update, block)
        if behind is not None:
            behind.result()
    return XetBlob(sha256.hexdigest(), record.size, text, record.terms, store.open_xorb)


def _blocks(store: Store, record: FileRecord) -> Iterator[list[Buffer]]:
    """The file's chunks in order, some at a time."""
    for term in record.terms:
        chunks = store.open_xorb(term.xorb).chunks(term.start, term.stop)
        while block := list(islice(chunks, _BLOCK_CHUNKS)):
            yield block


def _feed(update: Callable[[Buffer], None], block: list[Buffer]) -> None:
    for chunk in block:
        update(chunk)
