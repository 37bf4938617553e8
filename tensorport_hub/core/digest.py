"""Digests of files as the Hub and git state them.

A file in a Hub repository is either an LFS file, known by the sha256 of its content, or a regular one, known
by its git blob id. For an LFS file git itself stores a small pointer text; `git_oid` of one is the pointer's.
Sources: git "object format" (`blob <size>\\0<content>`), git-lfs "specification" (pointer v1).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash

POINTER_NBYTES = 1024
"""A larger file is no pointer."""

_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\n(?:ext-[^\n]*\n)*"
    rb"oid sha256:([0-9a-f]{64})\nsize (\d{1,18})\n"
)


@dataclass(frozen=True)
class SourceFile:
    """One file of a source: its size, and what the source states of its content."""

    path: str
    size: int
    sha256: str | None = None
    git_oid: str | None = None


def blob_digest(size: int) -> _Hash:
    """The git blob id (sha1) of a regular file of `size` bytes, to be fed with them."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def blob_oid(content: bytes) -> str:
    """The git blob id (sha1, hex) of a regular file."""
    digest = blob_digest(len(content))
    digest.update(content)
    return digest.hexdigest()


def differing(file: SourceFile, content: bytes) -> tuple[str, str] | None:
    """The digest that is stated of a file and the one that its content has, where they differ.

    None: they are equal, or none is stated.
    """
    if file.sha256 is not None:
        stated, got = file.sha256, hashlib.sha256(content).hexdigest()
    elif file.git_oid is not None:
        stated, got = file.git_oid, blob_oid(content)
    else:
        return None
    return None if got == stated else (stated, got)


def pointer(sha256: str, size: int) -> bytes:
    """The text that stands for an LFS file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode("ascii")


def pointer_oid(sha256: str, size: int) -> str:
    """The git blob id (sha1, hex) of the pointer that stands for an LFS file."""
    return blob_oid(pointer(sha256, size))


def parse_pointer(data: bytes) -> tuple[str, int] | None:
    """The sha256 and size of the file that a pointer stands for; None where it is no pointer."""
    match = _POINTER.fullmatch(data)
    return (match.group(1).decode(), int(match.group(2))) if match else None
