"""NVFP4 packed along the last axis but one: the stacked experts of ModelOpt (Llama-4, gpt-oss).

Layout: weight U8 [..., in / 2, out]: byte row r holds rows 2r (LOW nibble) and 2r + 1 (high nibble) of the
input axis; scales F8_E4M3 [..., in / 16, out]: row b belongs to rows 16b to 16b + 15; a global scale F32 []
/ [1], or one for each expert. Output [..., in, out] as stored, reference dtype BF16.

Arithmetic, in float32 and in this order: value = E2M1[code] * (E4M3[s] * global). One rounding, from float32.
-0, NaN and damaged global scales as in row-packed NVFP4. A pair of output rows is what decodes alone.

Source: NVIDIA ModelOpt `NVFP4QTensor` and its export of batched matrix multiplications.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from tensorport_hub.core.decode.bits import look_up
from tensorport_hub.core.decode.decoder import Bytes, Decoder, Dense
from tensorport_hub.core.decode.nvfp4 import (
    BLOCK_NBYTES,
    by_factor,
    check_global,
    check_scales,
    factors_of,
    pairs,
)
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.tensor import DTYPES, DType, TensorSpec
from tensorport_hub.errors import CheckpointError


@dataclass(frozen=True)
class Nvfp4Bmm(Decoder):
    """A weight packed along axis -2, its block scales, and a global scale that multiplies them.

    Raises:
        CheckpointError: dtypes or shapes don't belong together.
    """

    weight: TensorSpec
    scales: TensorSpec
    global_scale: TensorSpec
    scheme: ClassVar[str] = "nvfp4_bmm"

    def __post_init__(self) -> None:
        shape = self.weight.shape
        if self.weight.dtype.name != "U8" or len(shape) < 2 or not shape[-2] or shape[-2] % BLOCK_NBYTES:
            raise CheckpointError(
                f"NVFP4 weight {self.weight}: expected U8 [..., blocks * {BLOCK_NBYTES}, columns]"
            )
        check_scales(self.scales, (*shape[:-2], shape[-2] // BLOCK_NBYTES, shape[-1]), self.weight)
        check_global(self.global_scale, self.weight)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (self.weight, self.scales, self.global_scale)

    @property
    def dtype(self) -> DType:
        return DTYPES["BF16"]

    @property
    def shape(self) -> tuple[int, ...]:
        *lead, packed, columns = self.weight.shape
        return (*lead, 2 * packed, columns)

    @property
    def grain(self) -> int:
        return max(2 * self.shape[-1], 1)

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        columns = max(self.shape[-1], 1)
        block = columns * BLOCK_NBYTES
        first, last = start // 2 // block, -(-(stop // 2) // block)
        return (start // 2, stop // 2), (first * columns, last * columns), (0, self.global_scale.nbytes)

    def decode(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Dense, int]:
        values, safe = self._look_up(inputs, start, stop, DTYPES["F32"])
        return values, 0 if safe else int(np.count_nonzero(np.isinf(values)))

    def rounded(self, inputs: Sequence[Bytes], start: int, stop: int, target: DType) -> Dense | None:
        values, lossless = self._look_up(inputs, start, stop, target)
        return values if lossless else None

    def _look_up(self, inputs: Sequence[Bytes], start: int, stop: int, dtype: DType) -> tuple[Dense, bool]:
        """Values in `dtype`, and whether rounding can have lost none of them."""
        stored, scales, global_scales = inputs
        if start == stop:
            return np.empty(0, dtype.numpy), True
        factors = factors_of(global_scales, self.global_scale, divides=False)
        columns = self.shape[-1]
        rows = stored.reshape(-1, columns)
        first = start // self.grain  # counts byte rows, of which BLOCK_NBYTES share a row of scales
        blocks = np.arange(first, first + len(rows)) // BLOCK_NBYTES - first // BLOCK_NBYTES
        index = scales.reshape(-1, columns).astype(np.uint16)[blocks] << np.uint16(8)
        np.bitwise_or(index, rows, out=index)
        values, lossless = np.empty((len(rows), 2, columns), dtype.numpy), True
        for factor, a, b in by_factor(factors, prod(self.shape[-2:]), start, stop):
            a, b = a // self.grain, b // self.grain
            table = pairs(factor, dtype, divides=False)
            found = look_up(table.words, index[a:b]).view(dtype.numpy).reshape(b - a, columns, 2)
            values[a:b, 0], values[a:b, 1] = found[..., 0], found[..., 1]
            lossless = lossless and bool(table.lossless[scales].all())
        return values.reshape(-1), lossless
