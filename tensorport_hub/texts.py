"""Small files of a source: configuration, card, tokenizer. Each is checked against the digest that the source
states, whether it is held whole (`read_small`) or passes block by block (`read_blocks`).

What a source calls small may be many megabytes, so whatever need not be held whole is not: of a card only its
beginning counts, and a large file that is carried over goes on as it comes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from tensorport_hub.core.digest import POINTER_NBYTES, SourceFile, blob_digest, parse_pointer
from tensorport_hub.errors import CheckpointError, SourceError, VerificationError
from tensorport_hub.ports import Source

_BLOCK = 1 << 20
_LIMIT = 256 << 20


def read_small(source: Source, file: SourceFile, *, limit: int = _LIMIT) -> bytes:
    """A whole small file.

    Raises:
        CheckpointError: it is larger than `limit` bytes.
        VerificationError: it is something else than the source states.
    """
    _refuse_large(file, limit)
    content = bytearray(file.size)
    if file.size:
        source.read_into(file.path, 0, memoryview(content))
    data = bytes(content)
    check = _Check(file)
    check.update(data)
    check.end()
    return data


def read_blocks(source: Source, file: SourceFile) -> Iterator[memoryview]:
    """The same, block by block; a buffer is valid until the next one.

    Raises:
        VerificationError: after the last one: it is something else than the source states.
    """
    _refuse_large(file, _LIMIT)
    check, buffer = _Check(file), memoryview(bytearray(min(_BLOCK, file.size)))
    for start in range(0, file.size, _BLOCK):
        block = buffer[: min(_BLOCK, file.size - start)]
        source.read_into(file.path, start, block)
        check.update(block)
        yield block
    check.end()


def read_beginning(source: Source, file: SourceFile, most: int) -> bytes:
    """Up to `most` bytes from the start of a file, all of which is checked."""
    begins = bytearray()
    for block in read_blocks(source, file):
        begins += block[: most - len(begins)]
    return bytes(begins)


def _refuse_large(file: SourceFile, limit: int) -> None:
    if file.size > limit:
        raise CheckpointError(
            f"`{file.path}` is absurdly large for its kind: expected at most {limit} bytes, got {file.size}"
        )


class _Check:
    """The digest of a file that is read from its first byte to its last."""

    def __init__(self, file: SourceFile) -> None:
        self._file, self._begins = file, b""
        self._digest = hashlib.sha256() if file.sha256 or not file.git_oid else blob_digest(file.size)

    def update(self, block: bytes | memoryview) -> None:
        self._digest.update(block)
        self._begins += bytes(block[: POINTER_NBYTES + 1 - len(self._begins)])

    def end(self) -> None:
        """Compare.

        Raises:
            SourceError: the file is a pointer, of a source that states nothing.
            VerificationError: it is something else than the source states.
        """
        file, got = self._file, self._digest.hexdigest()
        expected = file.sha256 or file.git_oid
        if expected is None and parse_pointer(self._begins) is not None:
            raise SourceError(f"`{file.path}` is only a git-LFS pointer", hint="`git lfs pull` gets the file")
        if expected is not None and got != expected:
            raise VerificationError(
                f"`{file.path}` is not what the source states: expected digest {expected}, got {got}"
            )
