"""Which scale an element has: the bookkeeping of all layouts that divide a matrix into equal blocks.

A tensor [..., out, in] is a stack of matrices; each is cut from its top left corner into blocks of `rows` x
`cols` elements, those at the right and lower edge cropped, and each block has one factor (a scale or a zero
point), stored in order [matrix, block row, block column]. One scale per tensor, per output row, per group of
columns and per 128 x 128 block are all such grids: a block as large as the matrix, a row, a piece of a row.
Axes of length 1 are spelled differently by different producers, so they don't count when shapes are compared.

Source: DeepSeek-V3 `inference/kernel.py` (`weight_dequant`: blocks are masked at the edges, never stretched).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod

import numpy as np

from tensorport_hub.core.decode.bits import Floats
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.tensor import TensorSpec
from tensorport_hub.errors import CheckpointError

_FEW_COLUMNS = 16
"""Blocks narrower than this cost less repeated than broadcast."""


@dataclass(frozen=True)
class Grid:
    """Blocks of `rows` x `cols` in each of the `stack` equal matrices that `shape` is divided into.

    `stack` divides the product of all axes but the last; with 1 the tensor is one matrix of all its rows.
    """

    shape: tuple[int, ...]
    stack: int
    rows: int
    cols: int

    @property
    def width(self) -> int:
        """Columns: the last axis."""
        return self.shape[-1] if self.shape else 1

    @property
    def height(self) -> int:
        """Rows of one matrix of the stack."""
        return prod(self.shape[:-1]) // max(self.stack, 1)

    @property
    def down(self) -> int:
        """Block rows of one matrix."""
        return -(-self.height // max(self.rows, 1))

    @property
    def across(self) -> int:
        """Block columns."""
        return -(-self.width // max(self.cols, 1))

    @property
    def _is_sound(self) -> bool:
        """Whether blocks have a size and the stack divides the rows."""
        sizes = min(self.rows, self.cols) > 0 <= self.stack
        return sizes and self.stack * self.height == prod(self.shape[:-1])

    @property
    def factors(self) -> tuple[int, ...]:
        """Shape of the factors, as it is usually written."""
        lead = self.shape[:-1]
        for axes in range(len(lead), 0, -1):
            if prod(lead[:axes]) == self.stack * self.down:
                return (*lead[:axes], self.across)
        lead = lead[:-1] if prod(lead[:-1]) == self.stack else (self.stack,)
        return (*lead, self.down, self.across)

    def check(self, scale: TensorSpec, dtypes: Collection[str], *, of: TensorSpec) -> None:
        """Refuse a `scale` that does not hold this grid's factors; axes of length 1 do not matter.

        Raises:
            CheckpointError: its dtype is none of `dtypes`, or its shape is another grid's.
        """
        if scale.dtype.name not in dtypes:
            raise CheckpointError(f"scale {scale} of `{of.name}`: expected {' or '.join(sorted(dtypes))}")
        grids = (_long(self.factors), _long((self.stack, self.down, self.across))) if self._is_sound else ()
        if _long(scale.shape) not in grids:
            blocks = f"blocks of {self.rows} × {self.cols}"
            raise CheckpointError(f"scale {scale}: expected {list(self.factors)} for {blocks} of {of}")

    def span(self, start: int, stop: int) -> Range:
        """The factors that whole rows of items `start:stop` need, counted in elements."""
        if start >= stop:
            return 0, 0
        first, last = start // self.width, (stop - 1) // self.width
        return self._block_row(first) * self.across, (self._block_row(last) + 1) * self.across

    def _block_row(self, row: int) -> int:
        return row // self.height * self.down + row % self.height // self.rows

    def combine(self, ufunc: np.ufunc, values: Floats, factors: Floats, start: int) -> None:
        """In place, `values = ufunc(values, factor of its block)`.

        Args:
            ufunc: takes the value first.
            values: whole rows from item `start` on, 1-D.
            factors: those that `span` names, 1-D.
        """
        if not values.size:
            return
        table = values.reshape(-1, self.width)
        each = factors.reshape(-1, self.across)
        row = start // self.width + np.arange(len(table))
        block = row // self.height * self.down + row % self.height // self.rows
        block -= block[0]
        if len(table) < 4 * len(each):
            self._combine_rows(ufunc, table, each if len(each) == len(table) else each[block])
            return
        edges = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(table)]
        for factor, first, last in zip(each, edges, edges[1:], strict=False):
            piece = table[first:last]
            ufunc(piece, np.repeat(factor, self.cols)[: self.width], out=piece)

    def _combine_rows(self, ufunc: np.ufunc, table: Floats, each: Floats) -> None:
        """Each row of `table` has its own row of factors."""
        if self.across == 1 or self.cols == 1:
            ufunc(table, each, out=table)
        elif self.cols >= _FEW_COLUMNS and self.width % self.cols == 0:
            blocks = table.reshape(-1, self.cols)
            ufunc(blocks, each.reshape(-1, 1), out=blocks)
        else:
            ufunc(table, np.repeat(each, self.cols, axis=1)[:, : self.width], out=table)


def _long(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)
