"""bitsandbytes 4-bit (nf4, fp4): codes into a table of 16 floats, in blocks that share one absolute maximum.

Layout: `X` holds the weight flat in row-major order, two codes a byte, the HIGH nibble first; its dtype (U8,
BF16, F16, F32) and shape are storage only. `X.quant_map` F32 [16] is the table. Block b is items
`b * blocksize` to `(b + 1) * blocksize`, whatever the rows are; the last may be short. `X.absmax` [blocks] is
F32 (or F16, BF16), or, double-quantized, U8 codes into `X.nested_quant_map` F32 [256], whose blocks of
`nested_blocksize` share `X.nested_absmax` F32. Shape and output dtype come from the module's JSON blob.

Arithmetic, in float32 and in this order: `absmax = nested_map[code] * nested_absmax + nested_offset` (two
roundings), `w = quant_map[code] * absmax` (one), then one rounding to the output dtype.

NaN and infinities: refused in the tables and in the maxima, which no packer writes. -0: fp4 code 8 is what
the stored table says (+0 in files that bitsandbytes writes, while its CPU kernel returns -0).

Rows of an odd number of items end inside a byte, which the parts on both sides of a cut read.

Source: bitsandbytes 0.50, `QuantState`, `_dequantize_4bit_compute`, `dequantize_blockwise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import isfinite, lcm, prod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tensorport_hub.core.decode.bits import (
    Floats,
    as_float32,
    look_up,
    nibble_pairs,
    rectangles,
    two_bytes,
)
from tensorport_hub.core.decode.decoder import Bytes, Decoder, Dense, Params
from tensorport_hub.core.decode.ordinary import PRESCALE, is_ordinary, magnitudes, narrow
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.tensor import DTYPES, DType, TensorSpec
from tensorport_hub.errors import CheckpointError

OUTPUTS = ("F32", "BF16", "F16")
_STORAGE = ("U8", "BF16", "F16", "F32")
_LARGEST = float(np.finfo(np.float32).max)


@lru_cache(maxsize=4)
def _fours(table: bytes) -> npt.NDArray[Any]:
    """Two bytes -> the values of their four codes in one word; nearly all modules share one `table`."""
    return two_bytes(np.frombuffer(table, np.float32)[nibble_pairs(low_first=False)])


@dataclass(frozen=True)
class Bnb4(Decoder):
    """A 4-bit weight with plain block maxima.

    Attributes:
        dims: the logical shape, as `"128,256"`.
        blocksize: items that share a maximum.
        output: name of the dtype that the reference decoder returns.

    Raises:
        CheckpointError: dtypes or sizes don't belong together.
    """

    weight: TensorSpec
    absmax: TensorSpec
    quant_map: TensorSpec
    dims: str = field(kw_only=True)
    blocksize: int = field(kw_only=True)
    output: str = field(kw_only=True)
    scheme: ClassVar[str] = "bnb4"

    def __post_init__(self) -> None:
        count = self.items
        if count == 0 or self.blocksize < 1 or self.output not in OUTPUTS:
            raise CheckpointError(
                f"{self.weight}: expected a shape, a block size and a float dtype, got [{self.dims}],"
                f" {self.blocksize} and {self.output}"
            )
        if self.weight.dtype.name not in _STORAGE or self.weight.nbytes != -(-count // 2):
            raise CheckpointError(
                f"{self.weight}: expected {-(-count // 2)} bytes of 4-bit codes for shape [{self.dims}],"
                f" got {self.weight.nbytes}"
            )
        _expect(self.quant_map, ("F32",), 16, self.weight)
        _expect(self.absmax, self._stored_maxima, self._blocks(0, count)[1], self.weight)

    @property
    def _stored_maxima(self) -> tuple[str, ...]:
        return OUTPUTS

    @property
    def _row_items(self) -> int:
        return prod(self.shape[1:])

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (self.weight, self.absmax, self.quant_map)

    @property
    def params(self) -> Params:
        return {"dims": self.dims, "blocksize": self.blocksize, "output": self.output}

    @property
    def dtype(self) -> DType:
        return DTYPES[self.output]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(size) for size in self.dims.split(","))

    @property
    def grain(self) -> int:
        """A block where rows are whole blocks, so that cuts don't fall inside one; else rows, or a byte."""
        if self._row_items % self.blocksize == 0 and self.blocksize % 2 == 0:
            return self.blocksize
        return 2 if self._row_items % 2 else lcm(self.shape[-1], 2)

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        """Those of any items, wherever they begin."""
        first, last = self._blocks(start, stop)
        size = self.absmax.dtype.itemsize
        return (start // 2, -(-stop // 2)), (first * size, last * size), (0, self.quant_map.nbytes)

    def decode(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Dense, int]:
        data, table, maxima = self._parts(inputs, start, stop)
        values = self._times(data, table, maxima, start, stop)
        return values, _overflow(values, table, maxima)

    def rounded(self, inputs: Sequence[Bytes], start: int, stop: int, target: DType) -> Dense | None:
        data, table, maxima = self._parts(inputs, start, stop)
        if not is_ordinary(target, magnitudes(table), magnitudes(maxima)):
            return None
        return narrow(self._times(data, table, maxima * PRESCALE[target.name], start, stop), target)

    def _times(self, data: Bytes, table: Floats, maxima: Floats, start: int, stop: int) -> Floats:
        """Items `start:stop` under these maxima of their blocks."""
        if data.size % 2:
            data = np.append(data, np.uint8(0))  # bytes are looked up in twos
        found = look_up(_fours(table.tobytes()), data.view(np.uint16)).view(np.float32)
        values = found[start % 2 : start % 2 + stop - start]
        at, first = 0, start // self.blocksize
        with np.errstate(over="ignore", under="ignore"):
            for row, end, left, right in rectangles(start, stop, self.blocksize):
                here = (end - row) * (right - left)
                block = values[at : at + here].reshape(end - row, right - left)
                np.multiply(block, maxima[row - first : end - first, None], out=block)
                at += here
        return values

    def _parts(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Bytes, Floats, Floats]:
        """What items `start:stop` need: bytes of codes, the table, and the maxima of their blocks."""
        table = self._finite(self.quant_map, inputs[2].view(np.float32))
        return inputs[0], table, self._finite(self.absmax, self._maxima(inputs, start, stop))

    def _blocks(self, start: int, stop: int) -> Range:
        return start // self.blocksize, -(-stop // self.blocksize)

    def _maxima(self, inputs: Sequence[Bytes], start: int, stop: int) -> Floats:
        """The absolute maxima of the blocks that items `start:stop` lie in."""
        return as_float32(inputs[1], self.absmax.dtype.name)

    def _finite(self, tensor: TensorSpec, values: Floats) -> Floats:
        if not np.isfinite(values).all():
            raise CheckpointError(f"{tensor}: expected finite values, got NaN or infinity")
        return values


@dataclass(frozen=True)
class Bnb4Nested(Bnb4):
    """A 4-bit weight whose block maxima are 8-bit codes with blocks of their own."""

    nested_absmax: TensorSpec
    nested_quant_map: TensorSpec
    nested_blocksize: int = field(kw_only=True)
    nested_offset: float = field(kw_only=True)
    scheme: ClassVar[str] = "bnb4-nested"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nested_blocksize < 1 or not isfinite(self.nested_offset):
            raise CheckpointError(
                f"{self.weight}: expected a nested block size and a finite offset,"
                f" got {self.nested_blocksize} and {self.nested_offset}"
            )
        _expect(self.nested_quant_map, ("F32",), 256, self.weight)
        _expect(self.nested_absmax, ("F32",), -(-self.absmax.numel // self.nested_blocksize), self.weight)

    @property
    def _stored_maxima(self) -> tuple[str, ...]:
        return ("U8",)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (*super().inputs, self.nested_absmax, self.nested_quant_map)

    @property
    def params(self) -> Params:
        nested = {"nested_blocksize": self.nested_blocksize, "nested_offset": self.nested_offset}
        return {**super().params, **nested}

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        first, last = self._blocks(start, stop)
        nested = 4 * (first // self.nested_blocksize), 4 * -(-last // self.nested_blocksize)
        return *super().spans(start, stop), nested, (0, self.nested_quant_map.nbytes)

    def _maxima(self, inputs: Sequence[Bytes], start: int, stop: int) -> Floats:
        first, last = self._blocks(start, stop)
        table = self._finite(self.nested_quant_map, inputs[4].view(np.float32))
        scales = self._finite(self.nested_absmax, inputs[3].view(np.float32))
        index = np.arange(first, last) // self.nested_blocksize - first // self.nested_blocksize
        with np.errstate(over="ignore", under="ignore"):
            scaled = table[inputs[1]] * scales[index]
            maxima: Floats = scaled + np.float32(self.nested_offset)
        return maxima


def _expect(tensor: TensorSpec, dtypes: tuple[str, ...], count: int, weight: TensorSpec) -> None:
    if tensor.dtype.name not in dtypes or tensor.shape != (count,):
        raise CheckpointError(
            f"bitsandbytes {tensor}: expected {' or '.join(dtypes)} [{count}] to match `{weight.name}`"
        )


def _overflow(values: Floats, table: Floats, maxima: Floats) -> int:
    if not maxima.size or float(np.abs(table).max()) * float(np.abs(maxima).max()) <= _LARGEST:
        return 0
    return int(np.count_nonzero(np.isinf(values)))
