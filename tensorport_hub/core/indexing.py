"""A basic index of an array, as what must be read for it.

numpy's rules for integers, slices, `...` and `newaxis` (https://numpy.org/doc/stable/user/basics.indexing.html,
"Basic indexing"). An index is split in two: which positions of every axis are wanted (`axes`; together a
*block*), and what numpy makes of that block without reading (`finish`: integers drop their axis, `newaxis`
adds one, `...` keeps a 0-d array from becoming a scalar).

`runs` turns a block into byte ranges: those that lie at most `gap` bytes apart are one range, which stays
within `longest` bytes. With steps of 1 on axis 0 no byte outside the block's rows is ever in a range.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Axis:
    """Positions `start`, `start + step`, ... of one axis, `count` of them; `step` may be negative."""

    start: int
    step: int
    count: int

    @property
    def lowest(self) -> int:
        return min(self.start, self.start + (self.count - 1) * self.step)

    @property
    def as_slice(self) -> slice:
        """The same positions for numpy."""
        stop = self.start + self.count * self.step
        return slice(self.start, stop if stop >= 0 else None, self.step)

    def part(self, where: slice) -> Axis:
        """Positions number `where.start` up to `where.stop`."""
        return Axis(self.start + where.start * self.step, self.step, where.stop - where.start)

    def within(self, start: int, stop: int) -> tuple[Axis, slice]:
        """The positions in `start:stop`, counted from `start`, and which of this axis' positions they are."""
        if self.step > 0:
            first, last = -((self.start - start) // self.step), -((self.start - stop) // self.step)
        else:
            first, last = -((stop - 1 - self.start) // -self.step), (self.start - start) // -self.step + 1
        first = min(max(first, 0), self.count)
        where = slice(first, min(max(last, first), self.count))
        found = self.part(where)
        return Axis(found.start - start, found.step, found.count), where


Axes = tuple[Axis, ...]


@dataclass(frozen=True)
class Selection:
    """What an index selects: positions on every axis, and the index that numpy applies to their block."""

    axes: Axes
    finish: tuple[Any, ...]


def block_shape(axes: Axes) -> tuple[int, ...]:
    """Shape of a block, before numpy drops and adds axes."""
    return tuple(axis.count for axis in axes)


def select(index: object, shape: Sequence[int]) -> Selection:
    """What `index` selects of an array of `shape`.

    Raises:
        IndexError: it is out of bounds, has too many axes, or is no basic index.
        ValueError: a step of 0.
    """
    items = index if isinstance(index, tuple) else (index,)
    dots = [number for number, item in enumerate(items) if item is Ellipsis]
    if len(dots) > 1:
        raise IndexError("an index has at most one `...`")
    named = sum(item is not None for item in items) - len(dots)
    if named > len(shape):
        raise IndexError(f"too many indices: the array has {len(shape)} axes, {named} were indexed")
    at = dots[0] if dots else len(items)
    rest = [slice(None)] * (len(shape) - named)
    axes: list[Axis] = []
    finish: list[Any] = []
    for item in (*items[:at], *rest, *items[at + 1 :]):
        if item is None:
            finish.append(None)
            continue
        axis, kept = _axis(item, len(axes), shape[len(axes)])
        axes.append(axis)
        finish.append(kept)
    if dots:
        finish.insert(at, Ellipsis)
    return Selection(tuple(axes), tuple(finish))


def _axis(item: Any, number: int, length: int) -> tuple[Axis, int | slice]:
    """Positions on one axis, and what is left to do with it."""
    if isinstance(item, slice):
        positions = range(*item.indices(length))
        return Axis(positions.start if positions else 0, positions.step, len(positions)), slice(None)
    try:
        if isinstance(item, bool | np.bool_):
            raise TypeError
        position = operator.index(item)
    except TypeError:
        raise IndexError(
            f"only integers, slices, `...` and `newaxis` index a lazy array, got {type(item).__name__}:"
            " `numpy.asarray(array)[index]` takes any index"
        ) from None
    if not -length <= position < length:
        raise IndexError(f"index {position} is out of bounds for axis {number} of length {length}")
    return Axis(position % length, 1, 1), 0


@dataclass(frozen=True)
class Run:
    """Bytes `start:stop` of an array's data, and the wanted items among them.

    Attributes:
        place: where the items go in the block.
        shape: theirs; of all axes.
        offset: of the first one, from `start`.
        strides: bytes from one to the next, on every axis.
    """

    start: int
    stop: int
    place: tuple[slice, ...]
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]

    def items(self, data: memoryview, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """The wanted items, as a view of the run's bytes."""
        return np.ndarray(self.shape, dtype, data, self.offset, self.strides)

    def is_dense(self, itemsize: int) -> bool:
        """Whether the bytes are the items, in the block's own order."""
        forward = all(s > 0 for s, count in zip(self.strides, self.shape, strict=True) if count > 1)
        return forward and self.stop - self.start == prod(self.shape) * itemsize


def runs(
    axes: Axes, shape: Sequence[int], itemsize: int, *, gap: int = 0, longest: int | None = None
) -> Iterator[Run]:
    """The byte ranges that hold a block of an array of `shape` in C order; none where it is empty."""
    steps = [prod(shape[number + 1 :]) * itemsize for number in range(len(shape))]
    waiting = [tuple(slice(0, axis.count) for axis in axes)] if all(axis.count for axis in axes) else []
    while waiting:
        place = waiting.pop()
        part = tuple(axis.part(where) for axis, where in zip(axes, place, strict=True))
        rows = _rows(part, steps, itemsize, gap, longest)
        if rows is None:
            yield _run(part, place, steps, itemsize)
            continue
        number, count = rows
        first, last = place[number].start, place[number].stop
        waiting += [
            (*place[:number], slice(start, min(start + count, last)), *place[number + 1 :])
            for start in reversed(range(first, last, count))
        ]


def _rows(
    part: Axes, steps: Sequence[int], itemsize: int, gap: int, longest: int | None
) -> tuple[int, int] | None:
    """Into how many positions of which axis a block must be cut to be a run; None where it is one."""
    extent, widest, cut = itemsize, 0, None
    for number in reversed(range(len(part))):
        axis, distance = part[number], abs(part[number].step) * steps[number]
        if axis.count > 1:
            widest = max(widest, distance - extent)
            most = max((longest - extent) // distance + 1, 1) if longest is not None else axis.count
            cut = (number, most)
            extent += (axis.count - 1) * distance
    if cut is None or (widest <= gap and (longest is None or extent <= longest)):
        return None
    return cut if widest <= gap else (cut[0], 1)


def _run(part: Axes, place: tuple[slice, ...], steps: Sequence[int], itemsize: int) -> Run:
    lowest = sum(axis.lowest * step for axis, step in zip(part, steps, strict=True))
    extent = sum((axis.count - 1) * abs(axis.step) * step for axis, step in zip(part, steps, strict=True))
    return Run(
        lowest,
        lowest + extent + itemsize,
        place,
        block_shape(part),
        sum(axis.start * step for axis, step in zip(part, steps, strict=True)) - lowest,
        tuple(axis.step * step for axis, step in zip(part, steps, strict=True)),
    )
