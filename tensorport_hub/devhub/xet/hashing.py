"""The hashes of the Xet protocol: chunk, xorb, file, term.

All are BLAKE3 in keyed mode, 32 bytes long. A xorb's hash is the root of a Merkle tree over its chunks
whose groups are cut by content (a node whose last 64-bit word divides by 4 ends its group; groups have 2
to 9 nodes, those before the last at least 3); an inner node hashes one line of text a child. A file's hash
is the same root over the file's chunks, hashed once more under the zero key. The text form of a hash is
four little-endian 64-bit words, each as 16 hex digits: it is not the hex of the bytes.

Source: the Xet protocol specification of the Hugging Face Hub (huggingface.co/docs/xet, "Hashing", "API").
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence

from blake3 import blake3

from tensorport_hub.devhub.xet.errors import Refused

HASH_NBYTES = 32
ZERO_HASH = bytes(HASH_NBYTES)

_DATA_KEY = bytes.fromhex("6697f5775b9550de3135cbaca597181c9de421109beb2b58b4d0b04b93adf229")
_NODE_KEY = bytes.fromhex("017ec5c7a5472996fd946666b48a02e65ddd536f37c76dd2f86352e64a53713f")
_TERM_KEY = bytes.fromhex("7f1857d6ce56ed66127ff913e7a5c3f3a4cd26d5b5db49e64124987f28fb94c3")

_MEAN_BRANCHING = 4
_GROUP_MAX = 2 * _MEAN_BRANCHING + 1
_WORDS = struct.Struct("<4Q")
_TEXT = re.compile(r"[0-9a-f]{64}")

Buffer = bytes | bytearray | memoryview
Node = tuple[bytes, int]  # hash, length in file bytes


def hash_text(digest: bytes) -> str:
    """The text form of a 32-byte hash, as in URLs and JSON."""
    return "{:016x}{:016x}{:016x}{:016x}".format(*_WORDS.unpack(digest))


def hash_bytes(text: str) -> bytes:
    """The 32 bytes of a hash in text form. Raises `Refused` when it is not 64 lower-case hex digits."""
    if not _TEXT.fullmatch(text):
        raise Refused(f"hash `{text[:80]}`: expected 64 lower-case hex digits")
    return _WORDS.pack(*(int(text[i : i + 16], 16) for i in range(0, 64, 16)))


def chunk_hash(data: Buffer) -> bytes:
    """The hash of one chunk's unpacked bytes."""
    return blake3(data, key=_DATA_KEY).digest()


def merkle_root(nodes: Sequence[Node]) -> bytes:
    """The root over (hash, length) nodes; 32 zero bytes when there are none, the node's own hash for one."""
    if not nodes:
        return ZERO_HASH
    level = list(nodes)
    while len(level) > 1:
        parents: list[Node] = []
        start = 0
        while start < len(level):
            stop = _group_stop(level, start)
            parents.append(_parent(level[start:stop]))
            start = stop
        level = parents
    return level[0][0]


def xorb_hash(nodes: Sequence[Node]) -> bytes:
    """The hash of a xorb from its chunks."""
    return merkle_root(nodes)


def file_hash(nodes: Sequence[Node]) -> bytes:
    """The hash of a file from its chunks; 32 zero bytes for the empty file."""
    return blake3(merkle_root(nodes), key=ZERO_HASH).digest() if nodes else ZERO_HASH


def term_hash(chunk_hashes: Buffer) -> bytes:
    """The verification hash of a term: over the concatenated hashes of its chunks."""
    return blake3(chunk_hashes, key=_TERM_KEY).digest()


def nodes_of(chunk_hashes: bytes, lengths: Iterable[int]) -> list[Node]:
    """(hash, length) nodes from concatenated chunk hashes and their lengths."""
    starts = range(0, len(chunk_hashes), HASH_NBYTES)
    hashes = (chunk_hashes[i : i + HASH_NBYTES] for i in starts)
    return [(digest, int(nbytes)) for digest, nbytes in zip(hashes, lengths, strict=True)]


def _group_stop(level: Sequence[Node], start: int) -> int:
    """Where the group that starts at `start` ends: after a cutting node, at 9 nodes, or with the level."""
    end = min(start + _GROUP_MAX, len(level))
    for i in range(start + 2, end):
        # the remainder by 4 of the last little-endian word is in the two low bits of its first byte
        if level[i][0][24] % _MEAN_BRANCHING == 0:
            return i + 1
    return end


def _parent(group: Sequence[Node]) -> Node:
    lines = "".join([f"{hash_text(digest)} : {nbytes}\n" for digest, nbytes in group])
    return blake3(lines.encode("ascii"), key=_NODE_KEY).digest(), sum(nbytes for _, nbytes in group)
