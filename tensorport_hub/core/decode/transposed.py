"""Codes stored [..., in, out] that come out [..., out, in]: what GPTQ, AWQ gemm and Quark int4 share.

Layout: a packed weight, packed zero points with a row for each group, and `scales` [..., G, O]. A leading
axis counts experts. A range of output rows of one expert is a strip of stored columns in each of the three.

Arithmetic: f32(q - z) * f32(scale) in float32, the difference exact. Output in the scale's dtype; 0 times a
negative scale is -0. A NaN scale is an error.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from tensorport_hub.core.decode.bits import Floats, as_float32
from tensorport_hub.core.decode.decoder import Bytes, Decoder, Dense
from tensorport_hub.core.decode.groups import scale_groups
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.strips import Strip, strip
from tensorport_hub.core.tensor import DType, TensorSpec
from tensorport_hub.errors import CheckpointError

SCALES = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class Transposed(Decoder):
    """A packed weight, its zero points and its scales."""

    qweight: TensorSpec
    qzeros: TensorSpec
    scales: TensorSpec
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
    def group_size(self) -> int:
        """Columns that share a scale; the last group may be smaller."""

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
        expert, first, last = self._rows(start, stop)
        size = self.scales.dtype.itemsize
        columns = (*self._stored_bytes(first, last), (first * size, last * size))
        return tuple(_strip(tensor, expert, *c) for tensor, c in zip(self.inputs[:3], columns, strict=True))

    def decode(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Dense, int]:
        _, first, last = self._rows(start, stop)
        weight, zeros, scales = (
            stored.reshape(tensor.shape[-2], -1)
            for tensor, stored in zip(self.inputs[:3], inputs[:3], strict=True)
        )
        flat = as_float32(np.ascontiguousarray(scales).reshape(-1), self.dtype.name)
        factors = flat.reshape(self.groups, last - first).T
        if np.isnan(factors).any():
            raise CheckpointError(f"scales {self.scales}: expected numbers, got NaN")
        values = self._codes(weight, first, last)
        self._scale(values, self._zero_points(zeros, first, last), factors, inputs)
        return values.reshape(-1), 0

    def _rows(self, start: int, stop: int) -> tuple[int, int, int]:
        """Items of one expert as the expert, its first and its last row."""
        columns = max(self.columns, 1)
        expert, first = divmod(start // columns, max(self.rows, 1))
        return expert, first, first + -(-stop // columns) - start // columns

    @abstractmethod
    def _stored_bytes(self, first: int, last: int) -> tuple[Range, Range]:
        """The bytes of each stored row, of weight and zero points, that hold output rows `first:last`."""

    @abstractmethod
    def _codes(self, stored: Bytes, first: int, last: int) -> Floats:
        """Codes of output rows `first:last` from their strip: [last - first, I], fresh and contiguous."""

    @abstractmethod
    def _zero_points(self, stored: Bytes, first: int, last: int) -> Floats:
        """Zero points of output rows `first:last` from their strip: [last - first, G]."""

    def _scale(self, codes: Floats, zeros: Floats, scales: Floats, inputs: Sequence[Bytes]) -> None:
        """Turn codes into values, in place."""
        scale_groups(codes, zeros, scales, self.group_size)

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


def _strip(tensor: TensorSpec, expert: int, first: int, last: int) -> Strip:
    """Bytes `first:last` of all rows of one expert."""
    rows, pitch = tensor.shape[-2], tensor.shape[-1] * tensor.dtype.itemsize
    return strip(expert * rows * pitch, pitch, rows, first, last)


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
