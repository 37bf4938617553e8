"""Strided rectangles of stored bytes: what output rows need of a matrix that is stored the other way round.

A *strip* is bytes `first:last` of each of `rows` stored rows, which follow one another every `pitch` bytes
from `origin` on. A plain byte range is a strip of one row, and a strip of whole rows is a plain byte range:
there is one spelling for each. Held, a strip is its rows one after another, without what lies between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from tensorport_hub.core.ranges import Range, pieces

Bytes = npt.NDArray[np.uint8]

GAP = 64 * 1024
"""Bytes that are rather read than asked around."""


@dataclass(frozen=True, slots=True)
class Strip:
    """Bytes `first:last` of each of `rows` rows; made by `strip` or `contiguous`."""

    origin: int
    pitch: int
    rows: int
    first: int
    last: int

    @property
    def width(self) -> int:
        return self.last - self.first

    @property
    def nbytes(self) -> int:
        return self.rows * self.width

    @property
    def start(self) -> int:
        """Its first byte."""
        return self.origin + self.first

    @property
    def stop(self) -> int:
        """The byte after its last one."""
        return self.origin + (self.rows - 1) * self.pitch + self.last

    @property
    def region(self) -> Range:
        """The rows that it is cut from, whole: the same for all strips of a matrix."""
        return self.origin, self.origin + self.rows * self.pitch

    @property
    def asked(self) -> int:
        """Bytes that reading it asks for."""
        return self.stop - self.start if self._is_read_through else self.nbytes

    @property
    def _is_read_through(self) -> bool:
        return self.rows == 1 or self.pitch - self.width <= GAP

    def moved(self, nbytes: int) -> Strip:
        """The same, further on."""
        return replace(self, origin=self.origin + nbytes)

    def reads(self, longest: int) -> Iterator[Range]:
        """The ranges to ask for, in order: gaps are read over where that is cheaper than a request."""
        if self._is_read_through:
            yield from pieces(self.start, self.stop, longest)
            return
        for row in range(self.rows):
            start = self.start + row * self.pitch
            yield from pieces(start, start + self.width, longest)


def contiguous(start: int, stop: int) -> Strip:
    """A byte range."""
    return Strip(start, stop - start, 1, 0, stop - start)


def strip(origin: int, pitch: int, rows: int, first: int, last: int) -> Strip:
    """Bytes `first:last` of each row."""
    if rows == 1 or first == last:
        return contiguous(origin + first, origin + last)
    if first == 0 and last == pitch:
        return contiguous(origin, origin + rows * pitch)
    return Strip(origin, pitch, rows, first, last)


def within(wanted: Strip, data: Bytes, at: int) -> Iterator[tuple[int, Bytes]]:
    """What `data`, the bytes from `at` on, holds of a strip, in order: views [n], or [rows, width].

    Yields:
        Each with its place in the strip as it is held.
    """
    start, width, pitch, end = wanted.start, wanted.width, wanted.pitch, at + data.size
    if wanted.rows == 1:
        first, last = max(at, start), min(end, wanted.stop)
        if first < last:
            yield first - start, data[first - at : last - at]
        return
    touched = max(0, (at - start - width) // pitch + 1)  # the first row that ends after `at`
    until = max(touched, min(wanted.rows, -(-(end - start) // pitch)))
    whole = min(until, max(touched, -(-(at - start) // pitch)))
    after = max(whole, min(until, (end - start - width) // pitch + 1))

    def row_in(row: int) -> tuple[int, Bytes]:
        begin = start + row * pitch
        first, last = max(at, begin), min(end, begin + width)
        return row * width + first - begin, data[first - at : last - at]

    yield from map(row_in, range(touched, whole))
    if whole < after:
        view = data[start + whole * pitch - at :]
        yield whole * width, as_strided(view, (after - whole, width), (pitch, 1), writeable=False)
    yield from map(row_in, range(after, until))


def gather(wanted: Strip, into: Bytes, data: Bytes, at: int) -> None:
    """Copy into `into` [nbytes], in its place, what `data`, the bytes from `at` on, holds of a strip."""
    for place, view in within(wanted, data, at):
        into[place : place + view.size].reshape(view.shape)[...] = view


def cut(held: Strip, data: Bytes, wanted: Strip) -> Bytes:
    """A strip out of a held one that covers it: a view [nbytes], or [rows, width] of more than one row."""
    if wanted.rows == 1:
        return data[wanted.start - held.start : wanted.stop - held.start]
    if held.rows == 1:
        view = data[wanted.start - held.start : wanted.stop - held.start]
        return as_strided(view, (wanted.rows, wanted.width), (wanted.pitch, 1), writeable=False)
    return data.reshape(held.rows, held.width)[:, wanted.first - held.first : wanted.last - held.first]
