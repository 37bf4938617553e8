"""A file before its data: the literal bytes around the tensors, and where each tensor's bytes will stand.

A frame is an alternation of literal bytes and data: what a writer has to do is to put a tensor's bytes, in C
order, into its segments one after another. Sizes and offsets follow from names, dtypes and shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod

from tensorport_hub.core.tensor import DType


@dataclass(frozen=True)
class Entry:
    """An array in a file: its name there, and its stored items (bytes of packed dtypes)."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def rows(self) -> int:
        """Length of axis 0; a 0-d array is one row."""
        return self.shape[0] if self.shape else 1


@dataclass(frozen=True)
class Segment:
    """`nbytes` of entry number `entry`, its rows `rows[0]:rows[1]`, after the literal bytes `before`."""

    before: bytes
    nbytes: int
    entry: int
    rows: tuple[int, int]


@dataclass(frozen=True)
class Frame:
    """The segments of a file in order, and the literal bytes that end it."""

    segments: tuple[Segment, ...]
    after: bytes = b""

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where the data of each segment begins."""
        stops = accumulate(len(s.before) + s.nbytes for s in self.segments)
        return tuple(stop - s.nbytes for stop, s in zip(stops, self.segments, strict=True))

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return sum(len(s.before) + s.nbytes for s in self.segments) + len(self.after)


def whole(entry: Entry, number: int, before: bytes) -> Segment:
    """All of an entry as one segment."""
    return Segment(before, entry.nbytes, number, (0, entry.rows))


@dataclass(frozen=True)
class Encoding:
    """A file format.

    Attributes:
        name: of the format, as the option says it.
        container: one file holds all tensors of a shard; else each has its own.
        cuts: a tensor above the shard size is cut along axis 0.
        base: most bytes that a file has beside its entries.
        overhead: most bytes that an entry adds beside its data.
        frame: the layout of a file of these entries.
        path: of shard number `shard` of `shards`.
    """

    name: str
    container: bool
    cuts: bool
    base: int
    overhead: Callable[[Entry], int]
    frame: Callable[[Sequence[Entry]], Frame]
    path: Callable[[int, int], str]
