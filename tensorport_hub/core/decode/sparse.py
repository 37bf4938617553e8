"""Sparse matrices as a bit mask and the values that it lets through: compressed-tensors' bitmask formats.

Layout: `bitmask` U8 [O, ceil(I / 8)], LE bits along the input axis, 1 where a value is stored;
`compressed`: those values row after row, [O, I / 2] for 2:4 sparsity, [N] for any other, in F16, BF16 or F32,
or in F8 or I8 with a `weight_scale`: one in all ([] or [1]), one a row ([O, 1] or [O]), or one a group
[O, G]. The optional `row_offsets` I64 [O] say where each row's values begin. Output [O, I] in the values' or
the scale's dtype.

Arithmetic: out[mask] = values, 0 elsewhere; then f32(value) * f32(scale) in float32. Unscaled values keep
their bits; a NaN scale is an error. Rows of 2:4 matrices whose columns come in fours hold I / 2 values each;
others begin where the mask's bits before them say. Each row's mask is checked against the values.

Source: compressed-tensors 0.9, `sparse_24_bitmask.py`, `sparse_bitmask.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tensorport_hub.core.decode.bits import Floats, as_float32, look_up
from tensorport_hub.core.decode.decoder import Bytes, Decoder, Dense, Params
from tensorport_hub.core.decode.scales import FLOATS, numbers
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.tensor import DTYPES, DType, TensorSpec
from tensorport_hub.errors import CheckpointError

_SCALED = ("F8_E4M3", "F8_E5M2", "I8")
_COUNTED = 1 << 20
"""Bytes of a mask that are counted at a time."""


@dataclass(frozen=True, init=False)
class _Sparse(Decoder):
    """What both kinds share.

    Args:
        tensors: values, bit mask, then a scale (unless `scaled` is "no") and row offsets (where `offsets`
            is "stored").
        columns: I.
        group_size: columns that share a scale.
        scaled: "no" or "yes".
        offsets: "no" or "stored".
    """

    tensors: tuple[TensorSpec, ...]
    columns: int
    group_size: int
    scaled: str
    offsets: str

    def __init__(
        self, *tensors: TensorSpec, columns: int, group_size: int, scaled: str, offsets: str
    ) -> None:
        names = ("tensors", "columns", "group_size", "scaled", "offsets")
        for name, value in zip(names, (tensors, columns, group_size, scaled, offsets), strict=True):
            object.__setattr__(self, name, value)
        self._check_mask()
        self._check_scale()

    def _check_mask(self) -> None:
        data, mask = self.tensors[:2]
        allowed = FLOATS if self.scaled == "no" else _SCALED
        if data.dtype.name not in allowed:
            raise CheckpointError(f"sparse values {data}: expected {', '.join(allowed)}")
        width = -(-self.columns // 8)
        if mask.dtype.name != "U8" or len(mask.shape) != 2 or mask.shape[1] != width or self.columns < 1:
            raise CheckpointError(
                f"bit mask {mask} of `{data.name}`: expected U8 [rows, {width}] for {self.columns} columns,"
                f" got {mask.dtype} {list(mask.shape)}"
            )
        if len(data.shape) == 2 and (data.shape[0] != self.rows or data.shape[1] * 2 != self.columns):
            raise CheckpointError(
                f"sparse values {data}: expected [{self.rows}, {self.columns // 2}] to match `{mask.name}`"
            )
        if len(data.shape) not in (1, 2):
            raise CheckpointError(f"sparse values {data}: expected [values] or [rows, values]")
        offsets = self.tensors[-1]
        if self.offsets == "stored" and (offsets.dtype.name != "I64" or offsets.numel != self.rows):
            raise CheckpointError(f"row offsets {offsets} of `{data.name}`: expected I64 [{self.rows}]")

    def _check_scale(self) -> None:
        if self.scaled == "no":
            return
        scale = self.tensors[2]
        groups = -(-self.columns // max(self.group_size, 1))
        if scale.dtype.name not in FLOATS or self.group_size < 1:
            raise CheckpointError(f"scales {scale} of `{self._data.name}`: expected {', '.join(FLOATS)}")
        if scale.numel != 1 and scale.shape not in ((self.rows,), (self.rows, 1), (self.rows, groups)):
            raise CheckpointError(
                f"scales {scale} of `{self._data.name}`: expected one, or {[self.rows, groups]},"
                f" got {list(scale.shape)}"
            )

    @property
    def _data(self) -> TensorSpec:
        return self.tensors[0]

    @property
    def rows(self) -> int:
        return self.tensors[1].shape[0]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.tensors

    @property
    def params(self) -> Params:
        return {
            "columns": self.columns,
            "group_size": self.group_size,
            "scaled": self.scaled,
            "offsets": self.offsets,
        }

    @property
    def dtype(self) -> DType:
        return self._data.dtype if self.scaled == "no" else self.tensors[2].dtype

    @property
    def exact(self) -> DType:
        return self.dtype if self.scaled == "no" else DTYPES["F32"]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows, self.columns)

    def _scale_span(self, first: int, last: int) -> Range:
        scale = self.tensors[2]
        if scale.numel == 1:
            return 0, scale.nbytes
        row = scale.nbytes // self.rows
        return first * row, last * row

    def _spread(self, inputs: Sequence[Bytes], mask: npt.NDArray[np.bool_], stored: Bytes) -> Dense:
        """`stored` values where `mask` [rows, columns] is set, scaled."""
        item = self._data.dtype.itemsize
        out = np.zeros(mask.shape, f"u{item}")
        out[mask] = stored.view(f"u{item}")
        if self.scaled == "no":
            return out.reshape(-1).view(self.exact.numpy)
        table = _eighths(self._data.dtype.name)
        values = look_up(table, out)
        each = self._scales(inputs[2], mask.shape[0])
        if each.shape[1] > 1:
            each = np.repeat(each, self.group_size, axis=1)[:, : self.columns]
        with np.errstate(over="ignore", invalid="ignore"):
            np.multiply(values, each, out=values)
        return values.reshape(-1)

    def _scales(self, data: Bytes, rows: int) -> Floats:
        scale = self.tensors[2]
        scales = numbers(scale, data)
        return scales.reshape(1, 1) if scale.numel == 1 else scales.reshape(rows, -1)

    def _mask(self, data: Bytes, first: int, last: int) -> npt.NDArray[np.bool_]:
        packed = data.reshape(last - first, -(-self.columns // 8))
        flags = np.unpackbits(packed, axis=1, count=self.columns, bitorder="little")
        return flags.view(np.bool_)


@cache
def _eighths(name: str) -> Floats:
    """Byte -> value of an 8-bit type."""
    byte = np.arange(256, dtype=np.uint8)
    return byte.view(np.int8).astype(np.float32) if name == "I8" else as_float32(byte, name)


@cache
def _ones() -> Bytes:
    """Byte -> its set bits."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    ones: Bytes = bits.sum(axis=1, dtype=np.uint8)
    return ones


class Sparse24(_Sparse):
    """2:4 sparsity, columns in fours: each row holds half as many values as it has columns."""

    scheme: ClassVar[str] = "sparse24"

    def __init__(self, *tensors: TensorSpec, columns: int, group_size: int, scaled: str) -> None:
        super().__init__(*tensors, columns=columns, group_size=group_size, scaled=scaled, offsets="no")
        if columns % 4 or len(self._data.shape) != 2:
            raise CheckpointError(f"2:4 values {self._data}: expected [rows, columns / 2], columns in fours")

    @property
    def params(self) -> Params:
        return {name: value for name, value in super().params.items() if name != "offsets"}

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        first, last = start // self.columns, -(-stop // self.columns)
        row = self.columns // 2 * self._data.dtype.itemsize
        width = -(-self.columns // 8)
        found = [(first * row, last * row), (first * width, last * width)]
        return (*found, self._scale_span(first, last)) if self.scaled == "yes" else tuple(found)

    def decode(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Dense, int]:
        first, last = start // self.columns, -(-stop // self.columns)
        mask = self._mask(inputs[1], first, last)
        counts = np.count_nonzero(mask, axis=1)
        if (counts != self.columns // 2).any():
            wrong = int(np.argmax(counts != self.columns // 2))
            raise CheckpointError(
                f"bit mask {self.tensors[1]} of `{self._data.name}`: expected {self.columns // 2} values in"
                f" row {first + wrong}, got {counts[wrong]}"
            )
        return self._spread(inputs, mask, inputs[0]), 0


class SparseBitmask(_Sparse):
    """Any sparsity: rows begin where the mask says. Only what `settled` returns decodes."""

    scheme: ClassVar[str] = "sparse_bitmask"
    indexed: ClassVar[bool] = True

    @property
    def unit(self) -> int:
        return self._data.dtype.itemsize

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        """All values; the mask from the first row on, unless offsets say how many values lie before."""
        first, last = start // self.columns, -(-stop // self.columns)
        width = -(-self.columns // 8)
        found = [(0, self._data.nbytes), (first * width if self.offsets == "stored" else 0, last * width)]
        if self.scaled == "yes":
            found.append(self._scale_span(first, last))
        if self.offsets == "stored":
            found.append((8 * first, 8 * min(last + 1, self.rows)))
        return tuple(found)

    def settled(self, companions: Sequence[Bytes], start: int, stop: int) -> SparseBitmask:
        first, last = start // self.columns, -(-stop // self.columns)
        counts = self._counts(companions[0])
        before, own = np.split(counts, [counts.size - (last - first)])
        stored = companions[-1].view("<i8") if self.offsets == "stored" else np.empty(0, np.int64)
        begins = np.zeros(own.size + 1, np.int64)
        np.cumsum(own, out=begins[1:])
        begins += stored[0] if stored.size else before.sum()
        told = np.concatenate([stored, begins[stored.size :]])
        if last == self.rows:
            told[-1] = self._data.numel
        told = np.clip(told, 0, self._data.numel)
        if not np.array_equal(told, begins):
            row = int(np.argmax(told != begins))
            raise CheckpointError(
                f"bit mask {self.tensors[1]} of `{self._data.name}`: expected {told[row]} values before row"
                f" {first + row}, got {begins[row]}"
            )
        return _Settled(self, first, begins)

    def _counts(self, mask: Bytes) -> npt.NDArray[np.int64]:
        """Set bits of each row."""
        width = -(-self.columns // 8)
        rows = mask.reshape(-1, width)
        counts = np.empty(len(rows), np.int64)
        step = max(1, _COUNTED // width)
        for at in range(0, len(rows), step):
            ones = look_up(_ones(), rows[at : at + step])
            if self.columns % 8:
                ones[:, -1] = _ones()[rows[at : at + step, -1] & ((1 << self.columns % 8) - 1)]
            np.sum(ones, axis=1, dtype=np.int64, out=counts[at : at + step])
        return counts

    def decode(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Dense, int]:
        raise AssertionError("only what is settled knows where its values begin")


class _Settled(SparseBitmask):
    """Rows from `first` on, which begin with the values that `begins` numbers."""

    _first: int
    _begins: npt.NDArray[np.int64]

    def __init__(self, of: SparseBitmask, first: int, begins: npt.NDArray[np.int64]) -> None:
        super().__init__(
            *of.tensors,
            columns=of.columns,
            group_size=of.group_size,
            scaled=of.scaled,
            offsets=of.offsets,
        )
        object.__setattr__(self, "_first", first)
        object.__setattr__(self, "_begins", begins)

    def settled(self, companions: Sequence[Bytes], start: int, stop: int) -> SparseBitmask:
        return self

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        first, last = start // self.columns, -(-stop // self.columns)
        item, width = self._data.dtype.itemsize, -(-self.columns // 8)
        begin, end = (int(self._begins[row - self._first]) for row in (first, last))
        return (begin * item, end * item), (first * width, last * width), *super().spans(start, stop)[2:]

    def reached(self, stop: int) -> int:
        values = stop // self._data.dtype.itemsize
        row = int(np.searchsorted(self._begins, values, side="right")) - 1
        return (self._first + row) * self.columns

    def decode(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Dense, int]:
        mask = self._mask(inputs[1], start // self.columns, -(-stop // self.columns))
        return self._spread(inputs, mask, inputs[0]), 0
