"""AWQ gemv and gemv_fast: 4-bit codes along the input axis, groups padded with zeros.

`AwqGemv`: `qweight` I32 [..., O, I / 8], nibbles in natural order, the low one first; `qzeros` I32
[..., O, W] likewise; `scales` [..., O, 8 W]. Groups from G = ceil(I / size) on are padding. Value:
f32(q - z) * f32(scale), the difference exact. A row's parts lie together, so any range decodes alone.

`AwqGemvFast` (llm-awq): `qweight` I16 [O / 4, I]: a row of words holds four rows of codes. Of each 32
columns, the pairs 0, 4, 8, 12, 1, 5, ... come together (columns 0 1 8 9 16 17 24 25 2 3 ...); of each 8 of
these, the even ones come before the odd ones; in blocks of 64 columns, the codes of row 0, then 1, 2, 3
follow each other, and nibble k of word n is code 4 n + k of the block. `scales` and `qzeros` [W, O]; `qzeros`
holds -scale * z, so that the value is f32(q * scale) + f32(qzeros), in this order. Four rows share words.

Output [..., O, I] in the scale's dtype. A NaN scale is an error.

Sources: AutoAWQ `WQLinear_GEMV`, `WQLinear_GEMVFast` and `pack_intweight`; llm-awq `qmodule.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tensorport_hub.core.decode.bits import unpack
from tensorport_hub.core.decode.decoder import Bytes, Decoder, Dense, Params
from tensorport_hub.core.decode.groups import ColumnGroups, Grouped, Rows
from tensorport_hub.core.decode.scales import FLOATS, numbers
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.strips import Strip, strip
from tensorport_hub.core.tensor import DType, TensorSpec
from tensorport_hub.errors import CheckpointError

_KSTRIDE = 64
_INTERLEAVE = 4


@dataclass(frozen=True)
class _Gemv(Decoder):
    """What the two share: names, groups and parameters."""

    qweight: TensorSpec
    qzeros: TensorSpec
    scales: TensorSpec
    size: int = field(kw_only=True)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (self.qweight, self.qzeros, self.scales)

    @property
    def params(self) -> Params:
        return {"size": self.size}

    @property
    def dtype(self) -> DType:
        return self.scales.dtype

    @property
    def groups(self) -> int:
        return -(-self.shape[-1] // self.size)

    def _check(self, tensor: TensorSpec, dtypes: Sequence[str], shape: tuple[int, ...], what: str) -> None:
        if tensor.dtype.name not in dtypes or tensor.shape != shape:
            raise CheckpointError(
                f"AWQ {what} {tensor}: expected {', '.join(dtypes)} {[*shape]} to match"
                f" `{self.qweight.name}`, got {tensor.dtype} {[*tensor.shape]}"
            )

    def _check_groups(self, most: int) -> None:
        if self.size < 1 or not 1 <= self.groups <= most:
            raise CheckpointError(
                f"AWQ scales {self.scales}: expected at least {self.groups if self.size > 0 else 1} groups of"
                f" {self.size} for {self.shape[-1]} columns, got {most}"
            )


@dataclass(frozen=True)
class AwqGemv(_Gemv, Grouped):
    """gemv: rows of words.

    Raises:
        CheckpointError: dtypes or shapes don't belong together.
    """

    scheme: ClassVar[str] = "awq_gemv"

    def __post_init__(self) -> None:
        if self.qweight.dtype.name != "I32" or len(self.qweight.shape) < 2:
            raise CheckpointError(f"AWQ weight {self.qweight}: expected I32 [..., out, in / 8]")
        lead = self.qweight.shape[:-1]
        width = self.qzeros.shape[-1] if self.qzeros.shape else 0
        self._check(self.qzeros, ("I32",), (*lead, width), "zero points")
        self._check(self.scales, FLOATS, (*lead, 8 * width), "scales")
        self._check_groups(8 * width)

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.qweight.shape[:-1], 8 * self.qweight.shape[-1])

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        columns = max(self.shape[-1], 1)
        first, last = start // columns, -(-stop // columns)
        widths = [tensor.shape[-1] * tensor.dtype.itemsize for tensor in self.inputs]
        return tuple((first * width, last * width) for width in widths)

    def _rows(self, inputs: Sequence[Bytes], start: int, stop: int) -> Iterator[Rows]:
        columns, width = self.shape[-1], self.qzeros.shape[-1]
        rows = -(-stop // columns) - start // columns
        zeros = unpack(inputs[1].reshape(rows, 4 * width), 4)[:, : self.groups].astype(np.float32)
        scales = numbers(self.scales, inputs[2]).reshape(rows, 8 * width)[:, : self.groups]
        codes = partial(unpack, inputs[0].reshape(rows, columns // 2), 4)
        yield Rows(ColumnGroups(self.size), 4, zeros, scales, codes)


@dataclass(frozen=True)
class AwqGemvFast(_Gemv):
    """gemv_fast: tiles of 4 rows and 64 columns.

    Raises:
        CheckpointError: dtypes or shapes don't belong together.
    """

    scheme: ClassVar[str] = "awq_gemv_fast"

    def __post_init__(self) -> None:
        shape = self.qweight.shape
        if self.qweight.dtype.name != "I16" or len(shape) != 2 or shape[1] % _KSTRIDE:
            raise CheckpointError(
                f"AWQ weight {self.qweight}: expected I16 [out / 4, in], in a multiple of {_KSTRIDE}"
            )
        most = self.scales.shape[0] if self.scales.shape else 0
        self._check(self.scales, FLOATS, (most, self.shape[0]), "scales")
        self._check(self.qzeros, (self.scales.dtype.name,), self.scales.shape, "zero points")
        self._check_groups(most)

    @property
    def shape(self) -> tuple[int, ...]:
        return (_INTERLEAVE * self.qweight.shape[0], self.qweight.shape[1])

    @property
    def grain(self) -> int:
        """The rows that share words."""
        return max(_INTERLEAVE * self.shape[1], 1)

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        nbytes = self.shape[1] * 2
        begin, end = start // self.grain, -(-stop // self.grain)
        return (begin * nbytes, end * nbytes), *super().spans(start, stop)[1:]

    def needs(self, start: int, stop: int) -> tuple[Strip, ...]:
        rows, columns = self.shape
        size = self.dtype.itemsize
        first, last = start // max(columns, 1) * size, -(-stop // max(columns, 1)) * size
        factors = strip(0, rows * size, self.groups, first, last)
        return super().needs(start, stop)[0], factors, factors

    def decode(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Dense, int]:
        columns = self.shape[1]
        first, last = start // max(columns, 1), -(-stop // max(columns, 1))
        begin, end = first // _INTERLEAVE, -(-last // _INTERLEAVE)
        tiles = unpack(inputs[0], 4).reshape(end - begin, -1, _INTERLEAVE, _KSTRIDE)
        codes = np.take(tiles, _columns(), axis=3).transpose(0, 2, 1, 3).reshape(-1, columns)
        skip = first - begin * _INTERLEAVE
        out = codes[skip : skip + last - first].astype(np.float32)
        scales, offsets = (
            numbers(tensor, np.ascontiguousarray(stored).reshape(-1)).reshape(self.groups, -1).T
            for tensor, stored in ((self.scales, inputs[2]), (self.qzeros, inputs[1]))
        )
        groups = np.arange(columns) // self.size
        out *= np.take(scales, groups, axis=1)
        out += np.take(offsets, groups, axis=1)
        return out.reshape(-1), 0


@cache
def _columns() -> npt.NDArray[np.intp]:
    """Column of a block of 64 -> where its code lies among the row's 64."""
    pairs = np.arange(_KSTRIDE).reshape(2, 4, 4, 2).transpose(0, 2, 1, 3)
    return np.argsort(pairs.reshape(-1, 4, 2).transpose(0, 2, 1).reshape(-1))
