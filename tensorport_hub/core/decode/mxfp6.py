"""MXFP6: E2M3 codes in blocks of 32 along the input axis, each block with one E8M0 scale.

Layout: U8 [..., rows, blocks * 24] (or F6_E2M3, whose shape counts elements), an LE bit stream of 6-bit codes
(four codes in three bytes, the least significant bits first), and U8 / F8_E8M0 scales [..., rows, blocks].
Output [..., rows, blocks * 32] in BF16.

Arithmetic: value = E2M3[code] * 2^(scale - 127). Exact in bfloat16, no rounding: four significant bits, and
the smallest, 2^-3 * 2^-127, is a bfloat16 subnormal. Code 32 is -0 and stays -0. Scale 0 is 2^-127. Scale 255
is NaN by the OCP specification (canonical 0x7FC0). Magnitudes of 2^128 and more (scale 254 from 2.0, scale
253 from 4.0) don't fit bfloat16: infinities that are counted as overflow.

Sources: OCP Microscaling Formats (MX) v1.0, sections 5.2 and 5.3.2; compressed-tensors
`mxfp6-pack-quantized`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tensorport_hub.core.decode.bits import e2m3, look_up
from tensorport_hub.core.decode.decoder import Bytes, Decoder, Dense
from tensorport_hub.core.decode.mxfp4 import check_rows, count_overflow
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.tensor import DTYPES, DType, TensorSpec

_BLOCK = 32
_BLOCK_NBYTES = 24
_NAN_SCALE = 255
_CANONICAL_NAN = 0x7FC0


@cache
def _values() -> npt.NDArray[np.uint16]:
    """[scale << 6 | code] -> bfloat16 code."""
    scales = np.ldexp(1.0, np.arange(256) - 127)[:, None]
    with np.errstate(over="ignore"):
        values = (e2m3().astype(np.float64) * scales).astype(np.float32).astype(ml_dtypes.bfloat16)
    values.view(np.uint16)[_NAN_SCALE] = _CANONICAL_NAN
    return values.view(np.uint16).reshape(-1)


@dataclass(frozen=True)
class Mxfp6(Decoder):
    """A row-packed weight and its scales.

    Raises:
        CheckpointError: dtypes or shapes of the two don't belong together.
    """

    weight: TensorSpec
    scales: TensorSpec
    scheme: ClassVar[str] = "mxfp6"

    def __post_init__(self) -> None:
        check_rows(self.weight, self.scales, "MXFP6", _BLOCK_NBYTES, ("U8", "F6_E2M3"))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (self.weight, self.scales)

    @property
    def dtype(self) -> DType:
        return DTYPES["BF16"]

    @property
    def exact(self) -> DType:
        return self.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.scales.shape[:-1], self.scales.shape[-1] * _BLOCK)

    @property
    def grain(self) -> int:
        return _BLOCK

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        return (start // 4 * 3, stop // 4 * 3), (start // _BLOCK, stop // _BLOCK)

    def decode(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Dense, int]:
        stored, scales = inputs
        index = np.repeat(scales.astype(np.uint16) << np.uint16(6), _BLOCK)
        np.bitwise_or(index, _codes(stored), out=index)
        values: Dense = look_up(_values(), index).view(ml_dtypes.bfloat16)
        return values, count_overflow(values, scales)


def _codes(stored: Bytes) -> Bytes:
    """Four codes of each three bytes; 1-D. Three bytes, read as a word of four, spread to four bytes."""
    padded = np.empty(stored.size + 1, np.uint8)
    padded[:-1], padded[-1] = stored, 0
    words = np.ndarray((stored.size // 3,), "<u4", buffer=padded, strides=(3,)).copy()
    spread = words & np.uint32(0x3F)
    for shift in (2, 4, 6):
        spread |= (words << np.uint32(shift)) & np.uint32(0x3F << 4 * shift)
    return spread.view(np.uint8)
