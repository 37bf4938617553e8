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
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tensorport_hub.core.decode.bits import Floats, as_float32
from tensorport_hub.core.decode.decoder import Bytes, Decoder, Dense
from tensorport_hub.core.decode.groups import scale_groups
from tensorport_hub.core.tensor import DType, TensorSpec
from tensorport_hub.errors import CheckpointError

Matrix = npt.NDArray[Any]

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

    def decode(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Dense, int]:
        stacks = [
            stored.view(tensor.dtype.numpy).reshape(-1, *tensor.shape[-2:])
            for tensor, stored in zip(self.inputs[:2], inputs[:2], strict=True)
        ]
        scales = inputs[2].reshape(-1, self.groups, self.rows * self.scales.dtype.itemsize)
        size = self.scales.dtype.itemsize
        parts = []
        for expert, first, last in self._strips(start, stop):
            strip = np.ascontiguousarray(scales[expert, :, first * size : last * size]).reshape(-1)
            factors = as_float32(strip, self.dtype.name).reshape(self.groups, last - first).T
            if np.isnan(factors).any():
                raise CheckpointError(f"scales {self.scales}: expected numbers, got NaN")
            values = self._codes(stacks[0][expert], first, last)
            zeros = self._zero_points(stacks[1][expert], first, last)
            self._scale(values, zeros, factors, inputs, expert)
            parts.append(values.reshape(-1))
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.float32), *parts]), 0

    def _strips(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Items as experts with their first and last row."""
        columns = max(self.columns, 1)
        row, end = start // columns, -(-stop // columns)
        while row < end:
            expert, first = divmod(row, self.rows)
            last = min(self.rows, first + end - row)
            yield expert, first, last
            row += last - first

    @abstractmethod
    def _codes(self, stored: Matrix, first: int, last: int) -> Floats:
        """Codes of output rows `first:last` of one expert: [last - first, I], fresh and contiguous."""

    @abstractmethod
    def _zero_points(self, stored: Matrix, first: int, last: int) -> Floats:
        """Zero points of output rows `first:last` of one expert: [last - first, G]."""

    def _scale(
        self, codes: Floats, zeros: Floats, scales: Floats, inputs: Sequence[Bytes], expert: int
    ) -> None:
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
