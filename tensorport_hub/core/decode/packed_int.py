"""Integers packed in 32-bit words along the input axis: compressed-tensors `pack-quantized`.

Layout: `weight_packed` I32 [..., O, W]: codes of 2 to 8 bits, low bits first, each an integer plus
2^(bits - 1). `dense`: an LE bit stream, W = ceil(I * bits / 32). `padded` (3, 5, 6 and 7 bits before
compressed-tensors 0.18): floor(32 / bits) codes a word, its upper bits unused. The columns from I on are
padding. `weight_scale` F16, BF16 or F32: one a group [..., O, G] (G = 1: one a row), one a row [O], one an
expert [..., 1, 1] or one in all. `weight_zero_point`: absent; `packed` I32 [..., Z, G], packed as the codes
but along the OUTPUT axis; or `plain` I8, of the scales' shape, without offset. `weight_g_idx` I32 [I]:
columns are in their original order and column c belongs to group g_idx[c]; all -1 means that there is no
such order, and column c belongs to group c // group_size. Output [..., O, I] in the scale's dtype.

Arithmetic: f32((q - z)) * f32(scale), in float32; q - z is an exact integer, so at most one rounding. A
zero times a negative scale is -0. A NaN scale is an error. Rows decode alone: a range needs its rows of codes
and scales, the words that hold its rows' zero points, and all of g_idx.

Source: compressed-tensors, `pack_quantized` compressor and `pack_to_int32` / `unpack_from_int32`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import ClassVar

import numpy as np

from tensorport_hub.core.decode.bits import Floats
from tensorport_hub.core.decode.decoder import Bytes, Params
from tensorport_hub.core.decode.groups import ColumnGroups, Grouped, Rows
from tensorport_hub.core.decode.scales import FLOATS, numbers
from tensorport_hub.core.decode.words import PACKINGS, cell, codes, words
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.tensor import DType, TensorSpec
from tensorport_hub.errors import CheckpointError


@dataclass(frozen=True, init=False)
class PackedInt(Grouped):
    """`weight_packed`, its scales, and where there are any: zero points, column groups.

    Args:
        tensors: packed codes, scales, then zero points (unless `zeros` is "none") and column groups (where
            `order` is "g_idx").
        columns: I.
        bits: of a code.
        packing: "dense" or "padded".
        group_size: columns that share a scale; the last group may be smaller.
        zeros: "none", "packed" or "plain".
        order: "plain" or "g_idx".

    Raises:
        CheckpointError: dtypes or shapes don't belong together.
    """

    tensors: tuple[TensorSpec, ...]
    columns: int
    bits: int
    packing: str
    group_size: int
    zeros: str
    order: str
    scheme: ClassVar[str] = "packed_int"

    def __init__(
        self,
        *tensors: TensorSpec,
        columns: int,
        bits: int,
        packing: str,
        group_size: int,
        zeros: str,
        order: str,
    ) -> None:
        names = ("tensors", "columns", "bits", "packing", "group_size", "zeros", "order")
        given = (tensors, columns, bits, packing, group_size, zeros, order)
        for name, value in zip(names, given, strict=True):
            object.__setattr__(self, name, value)
        self._check_codes()
        self._check_scales()
        self._check_zeros()
        self._check_order()

    def _check_codes(self) -> None:
        packed = self.packed
        if packed.dtype.name != "I32" or len(packed.shape) < 2:
            raise CheckpointError(f"packed integers {packed}: expected I32 [..., out, words]")
        if not 2 <= self.bits <= 8 or self.packing not in PACKINGS or self.columns < 1 or self.group_size < 1:
            raise CheckpointError(
                f"packed integers {packed}: expected 2 to 8 bits, at least one column and groups of at least"
                f" one, got {self.bits} bits {self.packing}, {self.columns} columns, groups of"
                f" {self.group_size}"
            )
        want = words(self.columns, self.bits, self.packing)
        if packed.shape[-1] != want:
            raise CheckpointError(
                f"packed integers {packed}: expected {want} words a row for {self.columns} columns of"
                f" {self.bits} bits, got {packed.shape[-1]}"
            )

    def _check_scales(self) -> None:
        scale, rows = self.scale, self.packed.shape[:-1]
        if scale.dtype.name not in FLOATS:
            raise CheckpointError(f"scales {scale} of `{self.packed.name}`: expected {', '.join(FLOATS)}")
        if self._common or scale.shape == (*rows[:-1], 1, 1) or (len(rows) == 1 and scale.shape == rows):
            return
        groups = -(-self.columns // self.group_size)
        if scale.shape[:-1] != rows or scale.shape[-1] not in (groups, 1):
            raise CheckpointError(
                f"scales {scale} of `{self.packed.name}`: expected {[*rows, groups]}, one row's or one"
                f" tensor's, got {list(scale.shape)}"
            )

    def _check_zeros(self) -> None:
        if self.zeros == "none":
            return
        zero, scale = self.tensors[2], self.scale
        if self.zeros == "plain":
            dtype, shape = "I8", scale.shape
        else:
            lead, rows = self.packed.shape[:-2], self.packed.shape[-2]
            dtype, shape = "I32", (*lead, words(rows, self.bits, self.packing), self._groups)
        if zero.dtype.name != dtype or zero.shape != shape or (dtype == "I32" and self._shared):
            raise CheckpointError(
                f"zero points {zero} of `{self.packed.name}`: expected {dtype} {list(shape)} to match"
                f" `{scale.name}`, got {zero.dtype} {list(zero.shape)}"
            )

    def _check_order(self) -> None:
        if self.order != "g_idx":
            return
        index = self.tensors[-1]
        if index.dtype.name != "I32" or index.shape != (self.columns,) or self._shared:
            raise CheckpointError(
                f"column groups {index} of `{self.packed.name}`: expected I32 [{self.columns}] and a scale"
                f" for each row and group, got {index.dtype} {list(index.shape)}"
            )

    @property
    def packed(self) -> TensorSpec:
        return self.tensors[0]

    @property
    def scale(self) -> TensorSpec:
        return self.tensors[1]

    @property
    def _common(self) -> bool:
        """One scale in all."""
        return self.scale.numel == 1 and set(self.scale.shape) <= {1}

    @property
    def _shared(self) -> bool:
        """Rows share a scale: all of an expert, or all."""
        rows = self.packed.shape[:-1]
        if self._common:
            return prod(rows) != 1
        return rows[-1] != 1 and self.scale.shape == (*rows[:-1], 1, 1)

    @property
    def _groups(self) -> int:
        """Scales of a row."""
        shape = self.scale.shape
        return shape[-1] if len(shape) >= 2 else 1

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.tensors

    @property
    def params(self) -> Params:
        return {
            "columns": self.columns,
            "bits": self.bits,
            "packing": self.packing,
            "group_size": self.group_size,
            "zeros": self.zeros,
            "order": self.order,
        }

    @property
    def dtype(self) -> DType:
        return self.scale.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.packed.shape[:-1], self.columns)

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        first, last = start // self.columns, -(-stop // self.columns)
        width = self.packed.shape[-1] * 4
        found = [(first * width, last * width), self._scale_span(self.scale, first, last)]
        if self.zeros == "plain":
            found.append(self._scale_span(self.tensors[2], first, last))
        elif self.zeros == "packed":
            a, b = self._zero_words(first, last)
            found.append((a * self._groups * 4, b * self._groups * 4))
        if self.order == "g_idx":
            found.append((0, self.columns * 4))
        return tuple(found)

    def _scale_span(self, tensor: TensorSpec, first: int, last: int) -> Range:
        """Bytes of rows `first:last` in a tensor of the scales' shape."""
        if self._shared:
            return 0, tensor.nbytes
        row = self._groups * tensor.dtype.itemsize
        return first * row, last * row

    def _zero_words(self, first: int, last: int) -> Range:
        """Rows of words, counted over all experts, that hold the zero points of rows `first:last`."""
        if first == last:
            return 0, 0
        rows = self.packed.shape[-2]
        each = words(rows, self.bits, self.packing)
        per, step = cell(self.bits, self.packing)
        expert, row = divmod(first, rows)
        end_expert, end_row = divmod(last - 1, rows)
        start = expert * each + row // per * step
        return start, end_expert * each + words(end_row + 1, self.bits, self.packing)

    def _rows(self, inputs: Sequence[Bytes], start: int, stop: int) -> Iterator[Rows]:
        first, last = start // self.columns, -(-stop // self.columns)
        yield Rows(
            self._column_groups(inputs[-1]),
            self.bits,
            self._zero_points(inputs, first, last),
            self._scales(inputs[1], first, last),
            partial(self._codes, inputs[0].reshape(last - first, self.packed.shape[-1] * 4)),
        )

    def _codes(self, stored: Bytes) -> Bytes:
        """Codes of rows of words: [rows, columns]."""
        return codes(stored, self.bits, self.packing)[:, : self.columns]

    def _column_groups(self, data: Bytes) -> ColumnGroups:
        """Which group a column belongs to; `data` says so where there is an order.

        Raises:
            CheckpointError: an index is out of range.
        """
        if self.order != "g_idx":
            return ColumnGroups(self.group_size)
        order = data.view("<i4")
        low, high = int(order.min()), int(order.max())
        if low == high == -1:
            return ColumnGroups(self.group_size)
        if low < 0 or high >= self._groups:
            raise CheckpointError(
                f"column groups {self.tensors[-1]} of `{self.packed.name}`: expected 0 to"
                f" {self._groups - 1}, got {low if low < 0 else high}"
            )
        return ColumnGroups.ordered(order)

    def _scales(self, data: Bytes, first: int, last: int) -> Floats:
        """Scales of rows `first:last`: [rows, groups].

        Raises:
            CheckpointError: one is NaN.
        """
        return self._by_row(numbers(self.scale, data), first, last)

    def _by_row(self, stored: Floats, first: int, last: int) -> Floats:
        if not self._shared:
            return stored.reshape(last - first, self._groups)
        expert = np.arange(first, last) // self.packed.shape[-2]
        each: Floats = stored[np.minimum(expert, stored.size - 1), None]
        return each

    def _zero_points(self, inputs: Sequence[Bytes], first: int, last: int) -> Floats:
        """What is subtracted from the codes of rows `first:last`: zero points and the codes' offset.

        Returns:
            [rows, groups], or [1, 1] where there are no zero points.
        """
        offset = np.float32(1 << (self.bits - 1))
        if self.zeros == "none":
            return np.full((1, 1), offset)
        if self.zeros == "plain":
            return self._by_row(inputs[2].view(np.int8).astype(np.float32) + offset, first, last)
        return self._packed_zeros(inputs[2], first, last)

    def _packed_zeros(self, data: Bytes, first: int, last: int) -> Floats:
        """Packed zero points of rows `first:last`, which have the codes' offset: [rows, groups]."""
        rows, groups = self.packed.shape[-2], self._groups
        per, step = cell(self.bits, self.packing)
        each = words(rows, self.bits, self.packing)
        base = self._zero_words(first, last)[0]
        stored = data.view("<i4").reshape(-1, groups)
        out = np.empty((last - first, groups), np.float32)
        at = first
        while at < last:  # once an expert
            expert, row = divmod(at, rows)
            end = min(rows, row + last - at)
            begin = expert * each - base
            block = stored[begin + row // per * step : begin + words(end, self.bits, self.packing)]
            column = np.ascontiguousarray(block.T).view(np.uint8)
            found = codes(column, self.bits, self.packing)[:, row % per : row % per + end - row]
            out[at - first : at - first + end - row] = found.T
            at += end - row
        return out
