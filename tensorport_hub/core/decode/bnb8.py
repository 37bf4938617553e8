"""bitsandbytes LLM.int8: rows of signed bytes with one absolute maximum each.

Layout: `X.weight` I8 [out, in], row-major, and `X.SCB` F32 [out].

Arithmetic, in float32 and in this order: `(w * SCB[row]) * f32(7.874015718698502e-3)`: two roundings, and the
factor is not 1/127. The reference returns float32. -0 does not occur; a NaN or infinite maximum is refused.

Source: bitsandbytes 0.50, `functional.int8_vectorwise_dequant`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tensorport_hub.core.decode.bits import rectangles
from tensorport_hub.core.decode.decoder import Bytes, Decoder, Dense
from tensorport_hub.core.decode.scales import finite
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.tensor import DTYPES, DType, TensorSpec
from tensorport_hub.errors import CheckpointError

_STEP = np.float32(7.874015718698502e-3)


@dataclass(frozen=True)
class Bnb8(Decoder):
    """`X.weight` and `X.SCB`.

    Raises:
        CheckpointError: dtypes or shapes don't belong together.
    """

    weight: TensorSpec
    maxima: TensorSpec
    scheme: ClassVar[str] = "bnb8"

    def __post_init__(self) -> None:
        if self.weight.dtype.name != "I8" or len(self.weight.shape) != 2:
            raise CheckpointError(f"bitsandbytes int8 {self.weight}: expected I8 [out, in]")
        if self.maxima.dtype.name != "F32" or self.maxima.shape != self.weight.shape[:1]:
            raise CheckpointError(
                f"bitsandbytes int8 {self.maxima}: expected F32 [{self.weight.shape[0]}]"
                f" to match `{self.weight.name}`"
            )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (self.weight, self.maxima)

    @property
    def dtype(self) -> DType:
        return DTYPES["F32"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        return (start, stop), (4 * (start // self.grain), 4 * -(-stop // self.grain))

    def decode(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Dense, int]:
        maxima = finite(self.maxima, inputs[1])
        values = inputs[0].view(np.int8).astype(np.float32)
        at, first = 0, start // self.grain
        with np.errstate(over="ignore", under="ignore"):
            for row, end, left, right in rectangles(start, stop, self.grain):
                here = (end - row) * (right - left)
                block = values[at : at + here].reshape(end - row, right - left)
                np.multiply(block, maxima[row - first : end - first, None], out=block)
                np.multiply(block, _STEP, out=block)
                at += here
        large = maxima.size and float(np.abs(maxima).max()) > float(np.finfo(np.float32).max) / 128
        return values, int(np.count_nonzero(np.isinf(values))) if large else 0
