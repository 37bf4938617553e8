"""BitNet b1.58: ternary codes of 2 bits, four quarters of the rows above one another, one scale in all.

Layout: U8 [rows / 4, in]; bits 2i and 2i + 1 of row k hold row i * rows / 4 + k; `weight_scale` F32, F16 or
BF16 [1] or []. Output [rows, in] in the scale's dtype. All four quarters come from the same bytes, so these
are held.

Arithmetic: float32(code - 1) * scale, or / scale where the scale was made to divide (`BitLinear`); rounded
once. Code 3 is never packed; the reference makes 2 of it, and so does this. A scale that is NaN, infinite, or
0 where it divides, is damage.

Source: transformers `integrations/bitnet.py`, `unpack_weights`, `BitLinear`, `AutoBitLinear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tensorport_hub.core.decode.bits import Floats, blocked_span, look_up, unpack_blocked
from tensorport_hub.core.decode.decoder import Bytes, Decoder, Dense
from tensorport_hub.core.decode.scales import FLOATS, finite
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.tensor import DType, TensorSpec
from tensorport_hub.errors import CheckpointError

_QUARTERS = (0, 2, 4, 6)


@dataclass(frozen=True)
class BitnetTimes(Decoder):
    """Codes and a scale that multiplies them.

    Raises:
        CheckpointError: dtypes or shapes of the two don't belong together.
    """

    weight: TensorSpec
    scale: TensorSpec
    scheme: ClassVar[str] = "bitnet_times"
    held: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.weight.dtype.name != "U8" or len(self.weight.shape) != 2:
            raise CheckpointError(f"BitNet weight {self.weight}: expected U8 [rows / 4, in]")
        if self.scale.dtype.name not in FLOATS or self.scale.shape not in ((), (1,)):
            raise CheckpointError(
                f"BitNet scale {self.scale}: expected F32, F16 or BF16 [1] to match `{self.weight.name}`"
            )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (self.weight, self.scale)

    @property
    def dtype(self) -> DType:
        return self.scale.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        rows, columns = self.weight.shape
        return (rows * len(_QUARTERS), columns)

    @property
    def grain(self) -> int:
        return 1

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        return blocked_span(self.weight.nbytes, start, stop), (0, self.scale.nbytes)

    def decode(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Dense, int]:
        scale = finite(self.scale, inputs[1])
        codes = unpack_blocked(inputs[0], 2, _QUARTERS, start, stop, size=self.weight.nbytes)
        with np.errstate(over="ignore", under="ignore"):
            values = self._values(np.arange(4, dtype=np.float32) - np.float32(1), scale)
        overflow = int(np.count_nonzero(np.isinf(values[codes]))) if np.isinf(values).any() else 0
        return look_up(values, codes), overflow

    def _values(self, codes: Floats, scale: Floats) -> Floats:
        return codes * scale


@dataclass(frozen=True)
class BitnetOver(BitnetTimes):
    """Codes and a scale that divides them.

    Raises:
        CheckpointError: dtypes or shapes of the two don't belong together.
    """

    scheme: ClassVar[str] = "bitnet_over"

    def _values(self, codes: Floats, scale: Floats) -> Floats:
        if not scale.all():
            raise CheckpointError(f"scale {self.scale} of `{self.weight.name}`: expected not 0")
        return codes / scale
