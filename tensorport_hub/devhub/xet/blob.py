"""A file in Xet storage, readable by range: terms, each a run of chunks of one xorb.

`XetBlob.read` is a blocking generator: it unpacks from the first chunk that the range touches to the last
one, in blocks of about 1 MiB, and holds one block. Every chunk it yields was hashed when its xorb came in.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from tensorport_hub.devhub.xet.hashing import Buffer
from tensorport_hub.devhub.xet.shard import Term
from tensorport_hub.devhub.xet.xorb import Xorb

OpenXorb = Callable[[bytes], Xorb]

_BLOCK_NBYTES = 1 << 20


@dataclass(frozen=True)
class Slice:
    """A term cut to the chunks [start, stop) that a range touches; `skip` of their bytes come before it."""

    term: Term
    xorb: Xorb
    start: int
    stop: int
    skip: int

    @property
    def nbytes(self) -> int:
        return self.xorb.layout.nbytes(self.start, self.stop)


@dataclass(frozen=True)
class XetBlob:
    """A file whose shard was accepted."""

    sha256: str
    size: int
    xet_hash: str
    terms: tuple[Term, ...]
    open_xorb: OpenXorb
    path: None = None  # there is no file that holds these bytes as they are

    @cached_property
    def _starts(self) -> list[int]:
        """Where each term begins in the file, and the end."""
        return list(accumulate((term.nbytes for term in self.terms), initial=0))

    def slices(self, start: int, stop: int) -> Iterator[Slice]:
        """What must be unpacked to have the bytes [start, stop), in order."""
        self._check(start, stop)
        for i in range(bisect_right(self._starts, start) - 1, len(self.terms)):
            base = self._starts[i]
            if base >= stop:
                return
            term = self.terms[i]
            xorb = self.open_xorb(term.xorb)
            bounds = (
                xorb.layout.unpacked[term.start : term.stop + 1] - xorb.layout.unpacked[term.start] + base
            )
            first = int(np.searchsorted(bounds, max(start, base), side="right")) - 1
            last = int(np.searchsorted(bounds, min(stop, self._starts[i + 1]), side="left"))
            skip = max(start - int(bounds[first]), 0)
            yield Slice(term, xorb, term.start + first, term.start + last, skip)

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes [start, stop), in blocks of about 1 MiB. Raises `ValueError` outside the file."""
        self._check(start, stop)
        left = stop - start
        block: list[Buffer] = []
        held = 0
        for piece in self.slices(start, stop):
            skip = piece.skip
            for chunk in piece.xorb.chunks(piece.start, piece.stop):
                wanted = memoryview(chunk)[skip : skip + left]
                skip = 0
                left -= len(wanted)
                held += len(wanted)
                block.append(wanted)
                if held >= _BLOCK_NBYTES:
                    yield b"".join(block)
                    block, held = [], 0
        if block:
            yield b"".join(block)
        if left:
            raise OSError(f"xet file `{self.xet_hash}`: {left} bytes short of [{start}, {stop})")

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.size:
            raise ValueError(f"xet file `{self.xet_hash}`: range [{start}, {stop}) outside {self.size} bytes")
