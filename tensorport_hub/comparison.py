"""Weights that are made again to be compared: a sink that holds nothing but what differs.

A run writes into it as into a mirror; each file's sha256 is taken as its bytes pass, and held against the one
that the mirror's manifest lists. Whatever differs is a fault, by the tensor's name where a file has only one.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from tensorport_hub.core.proof import Fault
from tensorport_hub.ports import Published, Receipt


@dataclass
class Comparison:
    """A sink that holds nothing: what is written is compared with the digests of a mirror's files."""

    expected: dict[str, str]
    tensors: dict[str, str]

    def __post_init__(self) -> None:
        self.faults: list[Fault] = []
        self.lock = threading.Lock()

    def open(self, path: str, size: int) -> _Digesting:
        return _Digesting(self, path, size)

    def has(self, receipt: Receipt) -> bool:
        return False

    def put(self, path: str, content: bytes) -> Receipt:
        raise AssertionError("only weights are compared")

    def commit(self, receipts: Sequence[Receipt]) -> Published:
        raise AssertionError("nothing is published")

    def discard(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is held."""


class _Digesting:
    """A file that is made again."""

    def __init__(self, sink: Comparison, path: str, size: int) -> None:
        self._sink, self._path, self._size = sink, path, size
        self._digest = hashlib.sha256()

    def write(self, block: memoryview) -> None:
        self._digest.update(block)

    def finish(self) -> Receipt:
        got, expected = self._digest.hexdigest(), self._sink.expected[self._path]
        if got != expected:
            message = f"`{self._path}` is not what the source makes: expected sha256 {got}, got {expected}"
            with self._sink.lock:
                self._sink.faults.append(Fault(self._sink.tensors[self._path], message))
        return Receipt(self._path, self._size, got)

    def abort(self) -> None:
        """Nothing is held."""
