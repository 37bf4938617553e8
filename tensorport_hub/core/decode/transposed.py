"""Codes stored [..., in, out] that come out [..., out, in]: what GPTQ, AWQ gemm and Quark int4 share.

Layout: a packed weight, packed zero points with a row for each group, and `scales` [..., G, O]. A leading
axis counts experts. A range of output rows of one expert is a strip of stored columns in each of the three.

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

from tensorport_hub.core.decode.bits import Floats
from tensorport_hub.core.decode.decoder import Bytes
from tensorport_hub.core.decode.groups import ColumnGroups, Grouped, Rows
from tensorport_hub.core.decode.scales import FLOATS, numbers
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.strips import Strip, strip
from tensorport_hub.core.tensor import DType, TensorSpec
from tensorport_hub.errors import CheckpointError

Matrix = npt.NDArray[Any]


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

    @property
    def panel(self) -> int:
        """The items of one expert."""
        return max(self.rows * self.columns, 1)

    def needs(self, start: int, stop: int) -> tuple[Strip, ...]:
        expert, first, last = self._place(start, stop)
        size = self.scales.dtype.itemsize
        columns = (*self._stored_bytes(first, last), (first * size, last * size))
        return tuple(_strip(tensor, expert, *c) for tensor, c in zip(self.inputs[:3], columns, strict=True))

    def _rows(self, inputs: Sequence[Bytes], start: int, stop: int) -> Iterator[Rows]:
        _, first, last = self._place(start, stop)
        weight, zeros, scales = (
            stored.reshape(tensor.shape[-2], -1)
            for tensor, stored in zip(self.inputs[:3], inputs[:3], strict=True)
        )
        yield Rows(
            self._column_groups(inputs),
            self.width,
            self._zero_points(zeros, first, last),
            self._factors(scales),
            partial(self._codes, weight, first, last),
        )

    def _place(self, start: int, stop: int) -> tuple[int, int, int]:
        """Items of one expert as the expert, its first and its last row."""
        columns = max(self.columns, 1)
        expert, first = divmod(start // columns, max(self.rows, 1))
        return expert, first, first + -(-stop // columns) - start // columns

    def _factors(self, stored: Bytes) -> Floats:
        """The scales of a strip: [rows, G].

        Raises:
            CheckpointError: one is NaN.
        """
        scales = turned(stored.view(self.scales.dtype.numpy))
        return numbers(self.scales, scales.reshape(-1).view(np.uint8)).reshape(scales.shape)

    @abstractmethod
    def _stored_bytes(self, first: int, last: int) -> tuple[Range, Range]:
        """The bytes of each stored row, of weight and zero points, that hold output rows `first:last`."""

    @abstractmethod
    def _codes(self, stored: Bytes, first: int, last: int) -> Bytes:
        """Codes of output rows `first:last` from their strip: [last - first, I]."""

    @abstractmethod
    def _zero_points(self, stored: Bytes, first: int, last: int) -> Floats:
        """Zero points of output rows `first:last` from their strip: [last - first, G]."""

    def _column_groups(self, inputs: Sequence[Bytes]) -> ColumnGroups:
        """The columns of each group."""
        return ColumnGroups(self.size)

    def _check_companions(self, layout: str, zeros_shape: tuple[int, ...], zeros_dtype: str) -> None:
        """Refuse scales and zero points that do not belong to the weight.

        Raises:
            CheckpointError: they don't.
        """
        lead = self.qweight.shape[:-2]
        scales, zeros = self.scales, self.qzeros
        if scales.dtype.name not in FLOATS or len(scales.shape) < 2 or scales.shape[:-2] != lead:
            raise CheckpointError(
                f"{layout} scales {scales}: expected {', '.join(FLOATS)} {[*lead]} + [groups, out] to match"
                f" `{self.qweight.name}`"
            )
        if not prod(scales.shape):
            raise CheckpointError(f"{layout} scales {scales}: expected at least one group, got none")
        if zeros.dtype.name != zeros_dtype or zeros.shape != (*lead, *zeros_shape):
            raise CheckpointError(
                f"{layout} zero points {zeros}: expected {zeros_dtype} {[*lead, *zeros_shape]} to match"
                f" `{self.qweight.name}` and `{scales.name}`, got {zeros.dtype} {[*zeros.shape]}"
            )


def _strip(tensor: TensorSpec, expert: int, first: int, last: int) -> Strip:
    """Bytes `first:last` of all rows of one expert."""
    rows, pitch = tensor.shape[-2], tensor.shape[-1] * tensor.dtype.itemsize
    return strip(expert * rows * pitch, pitch, rows, first, last)


def turned(stored: Matrix) -> Matrix:
    """The columns of a strip as rows, contiguous.

    They are copied out before they are turned, since words that lie a row apart miss the cache each time.
    """
    return np.ascontiguousarray(np.ascontiguousarray(stored).T)


def check_groups(layout: str, scales: TensorSpec, columns: int, groups: int, size: int) -> None:
    """Refuse groups of `size` columns that do not cover the columns.

    Raises:
        CheckpointError: there are more or fewer.
    """
    if size < 1 or -(-columns // size) != groups:
        raise CheckpointError(
            f"{layout} scales {scales}: expected {-(-columns // max(size, 1))} groups of {size} for"
            f" {columns} columns, got {groups}"
        )
