"""From a decoder's items, as they come, to those of an output: rows chosen, axes swapped.

Both are streams: items come in C order, in ranges that end anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorport_hub.core.recipe import Recipe

Items = npt.NDArray[Any]


@dataclass(frozen=True)
class Choice:
    """Every `step`-th run of `width` items, from number `first` on."""

    first: int
    step: int
    width: int

    @classmethod
    def of(cls, recipe: Recipe) -> Choice | None:
        """What a recipe takes of its decoder's items; None: all."""
        if recipe.every is None:
            return None
        return cls(*recipe.every, 1 if recipe.swapped else prod(recipe.source_shape[2:]))

    @property
    def period(self) -> int:
        return self.step * self.width

    def among(self, items: Items, start: int) -> Items:
        """The chosen ones of `items`, of which the first is number `start`; 1-D, contiguous."""
        if not self.period:
            return items
        head = min(-start % self.period, items.size)
        body = (items.size - head) // self.period * self.period
        whole = items[head : head + body].reshape(-1, self.step, self.width)[:, self.first].reshape(-1)
        if not head and body == items.size:
            return np.ascontiguousarray(whole)
        before, after = items[:head], items[head + body :]
        pieces = (self._masked(before, start), whole, self._masked(after, start + head + body))
        return np.concatenate(pieces)

    def _masked(self, items: Items, start: int) -> Items:
        runs = np.arange(start, start + items.size) // self.width
        masked: Items = items[runs % self.step == self.first]
        return masked


class Swap:
    """Matrices [rows, columns] one after another, handed on as [columns, rows]; holds one of them."""

    def __init__(self, rows: int, columns: int) -> None:
        self._shape = rows, columns
        self._matrix: Items | None = None
        self._filled = 0

    def through(self, items: Items) -> Iterator[Items]:
        """Take the next items; each matrix that they complete."""
        size = prod(self._shape)
        while items.size:
            if self._matrix is None:
                self._matrix = np.empty(size, items.dtype)
            taken = items[: size - self._filled]
            self._matrix[self._filled : self._filled + taken.size] = taken
            self._filled += taken.size
            items = items[taken.size :]
            if self._filled == size:
                yield np.ascontiguousarray(self._matrix.reshape(self._shape).T).reshape(-1)
                self._filled = 0
