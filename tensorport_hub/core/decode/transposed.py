"""Codes stored [..., in, out] that come out [..., out, in]: what GPTQ, AWQ gemm and Quark int4 share.

Layout: a packed weight, packed zero points with a row for each group, and `scales` [..., G, O]. A leading
axis counts experts. A range of output rows is a strip of stored columns, so every input is held whole; of
it, only the strip is unpacked.

Arithmetic: f32(q - z) * f32(scale) in float32, the difference exact. Output in the scale's dtype; 0 times a
negative scale is -0. A NaN scale is an error.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tensorport_hub.core.decode.bits import Floats, as_float32
from tensorport_hub.core.decode.decoder import Bytes
from tensorport_hub.core.decode.groups import ColumnGroups, Grouped, Rows
from tensorport_hub.core.tensor import DType, TensorSpec
from tensorport_hub.errors import CheckpointError

Matrix = npt.NDArray[Any]

SCALES = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class Transposed(Grouped):
    """A packed weight, its zero points and its scales; `size` columns share a scale."""

    qweight: TensorSpec
    qzeros: TensorSpec
    scales: TensorSpec
    size: int = field(kw_only=True)
    held: ClassVar[bool] = True

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (self.qweight, self.qzeros, self.scales)

    @property
    def dtype(self) -> DType:
        return self.scales.dtype

    @property
    @abstractmethod
    def columns(self) -> int:
        """I."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Bits of a code."""

    @property
    def rows(self) -> int:
        """O."""
        return self.scales.shape[-1]

    @property
    def groups(self) -> int:
        return self.scales.shape[-2]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.scales.shape[:-2], self.rows, self.columns)

    def _rows(self, inputs: Sequence[Bytes], start: int, stop: int) -> Iterator[Rows]:
        stacks = [
            stored.view(tensor.dtype.numpy).reshape(-1, *tensor.shape[-2:])
            for tensor, stored in zip(self.inputs[:3], inputs[:3], strict=True)
        ]
        columns = max(self.columns, 1)
        row, end = start // columns, -(-stop // columns)
        while row < end:  # once an expert
            expert, first = divmod(row, self.rows)
            last = min(self.rows, first + end - row)
            weight, zeros, scales = (stack[expert] for stack in stacks)
            yield Rows(
                self._column_groups(inputs, expert),
                self.width,
                self._zero_points(zeros, first, last),
                self._factors(scales, first, last),
                partial(self._codes, weight, first, last),
            )
            row += last - first

    def _factors(self, stored: Matrix, first: int, last: int) -> Floats:
        """Scales of output rows `first:last` of one expert: [last - first, G].

        Raises:
            CheckpointError: one is NaN.
        """
        found = as_float32(turned(stored, first, last).reshape(-1).view(np.uint8), self.dtype.name)
        if np.isnan(found).any():
            raise CheckpointError(f"scales {self.scales}: expected numbers, got NaN")
        return found.reshape(last - first, self.groups)

    @abstractmethod
    def _codes(self, stored: Matrix, first: int, last: int) -> Bytes:
        """Codes of output rows `first:last` of one expert: [last - first, I]."""

    @abstractmethod
    def _zero_points(self, stored: Matrix, first: int, last: int) -> Floats:
        """Zero points of output rows `first:last` of one expert: [last - first, G]."""

    def _column_groups(self, inputs: Sequence[Bytes], expert: int) -> ColumnGroups:
        """The columns of each group."""
        return ColumnGroups(self.size)

    def _check_companions(self, layout: str, zeros_shape: tuple[int, ...], zeros_dtype: str) -> None:
        """Scales and zero points belong to the weight.

        Raises:
            CheckpointError: they don't.
        """
        lead = self.qweight.shape[:-2]
        scales, zeros = self.scales, self.qzeros
        if scales.dtype.name not in SCALES or len(scales.shape) < 2 or scales.shape[:-2] != lead:
            raise CheckpointError(
                f"{layout} scales {scales}: expected {', '.join(SCALES)} {[*lead]} + [groups, out] to match"
                f" `{self.qweight.name}`"
            )
        if not prod(scales.shape):
            raise CheckpointError(f"{layout} scales {scales}: expected at least one group, got none")
        if zeros.dtype.name != zeros_dtype or zeros.shape != (*lead, *zeros_shape):
            raise CheckpointError(
                f"{layout} zero points {zeros}: expected {zeros_dtype} {[*lead, *zeros_shape]} to match"
                f" `{self.qweight.name}` and `{scales.name}`, got {zeros.dtype} {[*zeros.shape]}"
            )


def turned(stored: Matrix, first: int, last: int) -> Matrix:
    """Columns `first:last` of a matrix as rows, contiguous.

    They are copied out before they are turned, since words that lie a row apart miss the cache each time.
    """
    return np.ascontiguousarray(np.ascontiguousarray(stored[:, first:last]).T)


def check_groups(layout: str, scales: TensorSpec, columns: int, groups: int, size: int) -> None:
    """Groups of `size` columns cover the columns.

    Raises:
        CheckpointError: there are more or fewer.
    """
    if size < 1 or -(-columns // size) != groups:
        raise CheckpointError(
            f"{layout} scales {scales}: expected {-(-columns // max(size, 1))} groups of {size} for"
            f" {columns} columns, got {groups}"
        )
