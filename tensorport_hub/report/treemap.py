"""A squarified treemap: a box cut into boxes in proportion to sizes, each as near to a square as may be.

Source: Bruls, Huizing, van Wijk, "Squarified Treemaps" (2000). Sizes are laid along the shorter side in rows;
a row takes one more as long as its worst aspect ratio gets no worse. Falling sizes give the best boxes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """A rectangle; `x` and `y` are its upper left corner."""

    x: float
    y: float
    width: float
    height: float

    @property
    def area(self) -> float:
        return self.width * self.height


def squarify(sizes: Sequence[float], box: Box) -> list[Box]:
    """A box for each size, in their order: areas in proportion, filling `box` without overlap.

    A size of 0 gets an empty box. Nothing is laid out where all are 0.
    """
    total = float(sum(sizes))
    if total <= 0:
        return [Box(box.x, box.y, 0.0, 0.0) for _ in sizes]
    left = [(i, size / total * box.area) for i, size in enumerate(sizes) if size > 0]
    made: dict[int, Box] = {}
    free = box
    for row in _rows([area for _, area in left], free):
        boxes, free = _laid(row, free, last=len(made) + len(row) == len(left))
        for found in boxes:
            made[left[len(made)][0]] = found
    return [made.get(i, Box(box.x, box.y, 0.0, 0.0)) for i in range(len(sizes))]


def _rows(areas: Sequence[float], box: Box) -> Iterator[list[float]]:
    """Areas in rows; the shorter side of what is left decides where a row ends."""
    width, height = box.width, box.height
    row: list[float] = []
    total = least = most = 0.0
    for area in areas:
        side = min(width, height)
        grown = total + area
        if row and _worst(grown, min(least, area), max(most, area), side) > _worst(total, least, most, side):
            yield row
            depth = total / side if side else 0.0
            width, height = (width - depth, height) if height <= width else (width, height - depth)
            width, height = max(width, 0.0), max(height, 0.0)
            row, grown, least, most = [], area, area, area
        row.append(area)
        total = grown
        least, most = (min(least, area), max(most, area)) if len(row) > 1 else (area, area)
    if row:
        yield row


def _worst(total: float, least: float, most: float, side: float) -> float:
    """The worst aspect ratio in a row of areas between `least` and `most` along `side`."""
    if not total or not side or not least:
        return float("inf")
    return max(side * side * most / (total * total), total * total / (side * side * least))


def _laid(row: Sequence[float], box: Box, *, last: bool) -> tuple[list[Box], Box]:
    """A row's boxes along the shorter side of `box`, and what is left of it; the last row takes all."""
    total = sum(row)
    upright = box.height <= box.width
    side = box.height if upright else box.width
    deep = box.width if upright else box.height
    depth = deep if last else min(total / side, deep) if side else 0.0
    boxes, at = [], 0.0
    for i, area in enumerate(row):
        end = side if i == len(row) - 1 else min(at + area / total * side, side)
        boxes.append(
            Box(box.x, box.y + at, depth, end - at) if upright else Box(box.x + at, box.y, end - at, depth)
        )
        at = end
    rest = (
        Box(box.x + depth, box.y, max(box.width - depth, 0.0), box.height)
        if upright
        else Box(box.x, box.y + depth, box.width, max(box.height - depth, 0.0))
    )
    return boxes, rest
