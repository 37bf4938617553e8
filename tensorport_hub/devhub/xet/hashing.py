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
from collections.abc import Iterable, Iterator

from blake3 import blake3

from tensorport_hub.devhub.xet.errors import Refused

HASH_NBYTES = 32
ZERO_HASH = bytes(HASH_NBYTES)

_DATA_KEY = bytes.fromhex("6697f5775b9550de3135cbaca597181c9de421109beb2b58b4d0b04b93adf229")
_NODE_KEY = bytes.fromhex("017ec5c7a5472996fd946666b48a02e65ddd536f37c76dd2f86352e64a53713f")
_TERM_KEY = bytes.fromhex("7f1857d6ce56ed66127ff913e7a5c3f3a4cd26d5b5db49e64124987f28fb94c3")

_MEAN_BRANCHING = 4
_GROUP_MIN = 3  # the last group of a level can be smaller
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


def xorb_hash(nodes: Iterable[Node]) -> bytes:
    """The hash of a xorb: the root over its chunks; 32 zero bytes when there are none."""
    tree = _Tree()
    for node in nodes:
        tree.add(node, 0)
    return tree.root()


def file_hash(nodes: Iterable[Node]) -> bytes:
    """The hash of a file: the root over its chunks under the zero key; 32 zero bytes for the empty file."""
    root = xorb_hash(nodes)
    return ZERO_HASH if root == ZERO_HASH else blake3(root, key=ZERO_HASH).digest()


def term_hash(chunk_hashes: Buffer) -> bytes:
    """The verification hash of a term: over the concatenated hashes of its chunks."""
    return blake3(chunk_hashes, key=_TERM_KEY).digest()


def nodes_of(chunk_hashes: bytes, lengths: Iterable[int]) -> Iterator[Node]:
    """(hash, length) nodes from concatenated chunk hashes and their lengths."""
    starts = range(0, len(chunk_hashes), HASH_NBYTES)
    for start, nbytes in zip(starts, lengths, strict=True):
        yield chunk_hashes[start : start + HASH_NBYTES], int(nbytes)


class _Tree:
    """The tree as it grows: a level holds only its last group, so a file of any size takes no memory."""

    def __init__(self) -> None:
        self._open: list[list[Node]] = []
        self._count: list[int] = []

    def add(self, node: Node, level: int) -> None:
        if level == len(self._open):
            self._open.append([])
            self._count.append(0)
        group = self._open[level]
        group.append(node)
        self._count[level] += 1
        # the remainder by 4 of the last little-endian word is in the two low bits of its first byte
        ends = node[0][24] % _MEAN_BRANCHING == 0 and len(group) >= _GROUP_MIN
        if ends or len(group) == _GROUP_MAX:
            self._close(level)

    def root(self) -> bytes:
        """The hash of the level that has one node alone; closes what is open below it."""
        level = 0
        while level < len(self._open):
            if self._count[level] == 1:
                return self._open[level][0][0]
            if self._open[level]:
                self._close(level)
            level += 1
        return ZERO_HASH

    def _close(self, level: int) -> None:
        group, self._open[level] = self._open[level], []
        lines = "".join([f"{hash_text(digest)} : {nbytes}\n" for digest, nbytes in group])
        parent = blake3(lines.encode("ascii"), key=_NODE_KEY).digest(), sum(nbytes for _, nbytes in group)
        self.add(parent, level + 1)
