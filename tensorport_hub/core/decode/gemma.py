"""Gemma's 4- and 2-bit integers: codes along the input axis, one scale a row or a block of a row.

Layout: U8 [..., rows, bytes], the LOW bits first: 2 codes of 4 bits or 4 codes of 2 bits a byte; scales F32
[..., rows, blocks], in blocks of equal size. Output [..., rows, codes] in F32. The 8-bit form is `Int8`.

Arithmetic: float32(code - 8) * scale, code - 2 for 2 bits; exact integers, one rounding (the reference rounds
scales to bfloat16 first where the model runs in it: that is the model's arithmetic, not the weights'). No
zero is -0 but under a negative scale. A NaN or infinite scale is damage.

Source: transformers `integrations/gemma_quant.py`, `QuantizedLinear._dequantize_weights`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tensorport_hub.core.decode.bits import look_up, unpack
from tensorport_hub.core.decode.decoder import Bytes, Decoder, Dense, Params
from tensorport_hub.core.decode.grid import Grid
from tensorport_hub.core.decode.scales import finite
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.tensor import DTYPES, DType, TensorSpec
from tensorport_hub.errors import CheckpointError

BITS = (2, 4)


@cache
def _values_of_byte(bits: int) -> npt.NDArray[Any]:
    """Byte -> its codes as float32 around zero, in one item."""
    codes = unpack(np.arange(256, dtype=np.uint8)[:, None], bits)
    values = codes.astype(np.float32) - np.float32(1 << (bits - 1))
    return values.view(np.dtype((np.void, values.shape[1] * 4))).reshape(-1)


@dataclass(frozen=True)
class GemmaLowBits(Decoder):
    """Packed codes and their scales.

    Raises:
        CheckpointError: dtypes or shapes of the two don't belong together.
    """

    weight: TensorSpec
    scale: TensorSpec
    bits: int
    scheme: ClassVar[str] = "gemma_low_bits"

    def __post_init__(self) -> None:
        if self.weight.dtype.name != "U8" or len(self.weight.shape) < 2 or self.bits not in BITS:
            raise CheckpointError(
                f"gemma weight {self.weight}: expected U8 [..., rows, bytes] of 2 or 4 bits"
            )
        rows, blocks = self.scale.shape[:-1], self.scale.shape[-1] if self.scale.shape else 0
        if self.scale.dtype.name != "F32" or rows != self.weight.shape[:-1] or not blocks:
            raise CheckpointError(
                f"gemma scale {self.scale}: expected F32 {[*self.weight.shape[:-1], 1]}"
                f" to match `{self.weight.name}`"
            )
        if self.shape[-1] % blocks or not self.shape[-1]:
            raise CheckpointError(
                f"gemma scale {self.scale}: expected blocks of equal size in {self.shape[-1]} columns"
                f" of `{self.weight.name}`"
            )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (self.weight, self.scale)

    @property
    def params(self) -> Params:
        return {"bits": self.bits}

    @property
    def dtype(self) -> DType:
        return DTYPES["F32"]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.weight.shape[:-1], self.weight.shape[-1] * 8 // self.bits)

    @cached_property
    def _grid(self) -> Grid:
        return Grid(self.shape, 1, 1, self.shape[-1] // self.scale.shape[-1])

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        first, last = self._grid.span(start, stop)
        return (start * self.bits // 8, stop * self.bits // 8), (first * 4, last * 4)

    def decode(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Dense, int]:
        scales = finite(self.scale, inputs[1])
        values = look_up(_values_of_byte(self.bits), inputs[0]).view(np.float32)
        with np.errstate(over="ignore", under="ignore"):
            self._grid.combine(np.multiply, values, scales, start)
        safe = np.abs(scales).max(initial=0) < 2.0**120
        return values, 0 if safe else int(np.count_nonzero(np.isinf(values)))
