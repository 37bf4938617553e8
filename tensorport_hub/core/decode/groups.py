"""Groups of the input axis: the columns of a row that share a scale and a zero point.

Arithmetic: (code - zero) * scale in float32, in this order. Codes and zero points are small integers, so the
difference is exact and the product of an F16 or BF16 scale is too. 0 times a negative scale is -0.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorport_hub.core.decode.bits import Floats
from tensorport_hub.core.decode.decoder import Bytes, Decoder, Dense
from tensorport_hub.core.decode.ordinary import PRESCALE, is_ordinary, magnitudes, narrow
from tensorport_hub.core.tensor import DType

Indices = npt.NDArray[np.int32]

_WIDE = 96
"""From this many columns a group is faster as one inner loop than as repeated operands."""

_DIFFERENCES = (1.0, 1024.0)
"""Magnitudes that a code minus its zero point may have, beside 0: both are of at most 8 bits."""


@dataclass(frozen=True)
class ColumnGroups:
    """Which group a column belongs to: `column // size`, the last may be short, or `index[column]`."""

    size: int
    index: Indices | None = None

    @classmethod
    def ordered(cls, index: Indices) -> ColumnGroups:
        """By an index, in range. Where groups lie side by side, as they do without act-order, by size."""
        size = int(np.count_nonzero(index == index[0])) if index.size else 0
        if size and np.array_equal(index, np.arange(index.size) // size):
            return cls(size)
        return cls(0, index)

    def combine(self, operation: np.ufunc, items: npt.NDArray[Any], each: npt.NDArray[Any]) -> None:
        """In place, `items = operation(items, value of its group)`.

        Args:
            operation: takes the item first.
            items: [rows, columns], C order.
            each: [rows, groups], or [.., 1] where all columns share one.
        """
        columns = items.shape[1]
        if each.shape[1] == 1:
            operation(items, each, out=items)
        elif self.index is not None:
            operation(items, np.take(each, self.index, axis=1), out=items)
        elif columns % self.size or self.size < _WIDE:
            operation(items, np.repeat(each, self.size, axis=1)[:, :columns], out=items)
        else:
            blocks = items.reshape(*each.shape, self.size)
            operation(blocks, each[:, :, None], out=blocks)


@dataclass(frozen=True)
class Rows:
    """Whole rows of a weight.

    Attributes:
        codes: unpacks them: [rows, columns] of `bits` bits.
        zeros: [rows, groups], or [1, 1] for one in all.
        scales: [rows, groups].
    """

    groups: ColumnGroups
    bits: int
    zeros: Floats
    scales: Floats
    codes: Callable[[], Bytes]

    def times(self, scales: Floats) -> Floats:
        """Each code less its zero point, times its group's factor; 1-D."""
        lowest, highest = self.zeros.min(initial=0), self.zeros.max(initial=(1 << self.bits) - 1)
        integers = self.codes().astype(np.int8 if lowest >= 0 and highest < 128 else np.int16)
        self.groups.combine(np.subtract, integers, self.zeros.astype(integers.dtype))
        values = integers.astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            self.groups.combine(np.multiply, values, scales)
        return values.reshape(-1)

    def rounded(self, target: DType) -> Dense | None:
        """The same in `target`; None where something might be lost."""
        if not is_ordinary(target, _DIFFERENCES, magnitudes(self.scales)):
            return None
        return narrow(self.times(self.scales * PRESCALE[target.name]), target)


class Grouped(Decoder):
    """A layout of rows whose columns fall into groups."""

    @abstractmethod
    def _rows(self, inputs: Sequence[Bytes], start: int, stop: int) -> Iterator[Rows]:
        """Items `start:stop`, in order."""

    def decode(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Dense, int]:
        parts = [rows.times(rows.scales) for rows in self._rows(inputs, start, stop)]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.float32), *parts]), 0

    def rounded(self, inputs: Sequence[Bytes], start: int, stop: int, target: DType) -> Dense | None:
        parts = []
        for rows in self._rows(inputs, start, stop):
            part = rows.rounded(target)
            if part is None:
                return None
            parts.append(part)
        return np.concatenate(parts) if len(parts) > 1 else parts[0] if parts else None
