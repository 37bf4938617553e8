"""Digests of files as the Hub and git state them.

A file in a Hub repository is either an LFS file, known by the sha256 of its content, or a regular one, known
by its git blob id. For an LFS file git itself stores a small pointer text; `git_oid` of one is the pointer's.
Sources: git "object format" (`blob <size>\\0<content>`), git-lfs "specification" (pointer v1).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class SourceFile:
    """One file of a source: its size, and what the source states of its content."""

    path: str
    size: int
    sha256: str | None = None
    git_oid: str | None = None


def blob_oid(content: bytes) -> str:
    """The git blob id (sha1, hex) of a regular file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def pointer_oid(sha256: str, size: int) -> str:
    """The git blob id (sha1, hex) of the pointer that stands for an LFS file."""
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return blob_oid(text.encode("ascii"))
