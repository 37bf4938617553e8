"""Groups that share a scale and an offset, where the reference rounds after each of two operations.

The weight is seen as a matrix in which each row (`axis` 1) or each column (`axis` 0) is a group. torch
computes with 16-bit floats in float32 and rounds each result, so an operation here is: widen, compute, round
to T. HQQ is `(q - zero) * scale`, quanto `q * scale - shift`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorport_hub.core.decode.bits import Floats, rectangles
from tensorport_hub.core.decode.decoder import Dense
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.tensor import DTYPES, DType

Step = tuple[Callable[..., Any], Floats]
"""An operation in place, and its second operands: those of the groups that are needed, in order."""


@dataclass(frozen=True)
class Groups:
    """A matrix of `rows` x `width` items whose rows (`axis` 1) or columns (`axis` 0) are groups."""

    rows: int
    width: int
    axis: int

    @property
    def factors(self) -> tuple[int, int]:
        """Shape of one factor per group."""
        return (self.rows, 1) if self.axis == 1 else (1, self.width)

    def needed(self, start: int, stop: int) -> Range:
        """The groups that items `start:stop` belong to."""
        if self.axis == 1:
            return start // self.width, -(-stop // self.width)
        if start // self.width == max(stop - 1, start) // self.width:
            return start % self.width, start % self.width + stop - start
        return 0, self.width

    def apply(self, codes: Dense, start: int, steps: tuple[Step, Step], dtype: DType) -> tuple[Dense, int]:
        """Apply two operations to the codes of items from `start` on, rounding to `dtype` after each.

        Returns:
            The items in `dtype.numpy`, and how many are infinite.
        """
        stop = start + codes.size
        first = self.needed(start, stop)[0]
        values = codes.astype(np.float32)
        with np.errstate(over="ignore", under="ignore"):
            for operation, factors in steps:
                at = 0
                for row, end, left, right in rectangles(start, stop, self.width):
                    here = (end - row) * (right - left)
                    block = values[at : at + here].reshape(end - row, right - left)
                    rows, columns = slice(row - first, end - first), slice(left - first, right - first)
                    operation(block, factors[rows, None] if self.axis == 1 else factors[columns], out=block)
                    at += here
                result: Dense = values.astype(dtype.numpy, copy=False)
                values = result.astype(np.float32, copy=False)
        finite = not values.size or np.isfinite([values.max(), values.min()]).all()
        return result, 0 if finite else int(np.count_nonzero(np.isinf(values)))


def widest(*dtypes: str) -> DType:
    """The type that torch computes in with operands of these: their own if it is one, else float32."""
    return DTYPES[dtypes[0] if len(set(dtypes)) == 1 else "F32"]
