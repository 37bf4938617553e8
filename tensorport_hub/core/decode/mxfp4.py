"""gpt-oss MXFP4: E2M1 codes in blocks of 32 with one E8M0 scale, as openai/gpt-oss stores its experts.

Layout: `X_blocks` U8 [..., rows, blocks, 16] and `X_scales` U8 [..., rows, blocks]. A byte holds two codes,
the LOW nibble first; a block's 16 bytes are 32 consecutive elements of the input axis. Output
[..., rows, blocks * 32] in BF16, in stored order [E, out, in] (the Hugging Face model swaps the last two).

Arithmetic: value = E2M1[code] * 2^(scale - 127). Exact in bfloat16, no rounding: one significant bit after
the leading one, and the smallest, 0.5 * 2^-127, is a bfloat16 subnormal. Code 8 is -0 and stays -0. Scale 0
is 2^-127, not zero. Scale 255 is NaN by the OCP specification, so the whole block is NaN (canonical 0x7FC0).
Magnitudes of 2^128 and more (scale 254 from 2.0, scale 253 from 4.0) don't fit bfloat16: infinities that are
counted as overflow.

Sources: OCP Microscaling Formats (MX) v1.0, sections 5.2 and 5.3.3; openai/gpt-oss `torch/weights.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tensorport_hub.core.decode.decoder import Bytes, Decoder, Dense
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.tensor import DTYPES, DType, TensorSpec
from tensorport_hub.errors import CheckpointError

_BLOCK = 32
_BLOCK_NBYTES = _BLOCK // 2
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_NAN_SCALE = 255
_OVERFLOWING_SCALE = 253
_CANONICAL_NAN = 0x7FC0


@cache
def _pairs() -> npt.NDArray[np.uint32]:
    """[scale << 8 | byte] -> two bfloat16 codes in one word, the low nibble's first: 64 K entries."""
    codes = np.array(_E2M1, np.float64)
    scales = np.ldexp(1.0, np.arange(256) - 127)[:, None]
    with np.errstate(over="ignore"):
        values = (codes[None, :] * scales).astype(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
    values[_NAN_SCALE] = _CANONICAL_NAN
    wide = values.astype(np.uint32)
    byte = np.arange(256, dtype=np.uint8)
    table: npt.NDArray[np.uint32] = (wide[:, byte & 15] | wide[:, byte >> 4] << np.uint32(16)).reshape(-1)
    return table


@dataclass(frozen=True)
class Mxfp4(Decoder):
    """`X_blocks` and `X_scales` of gpt-oss.

    Raises:
        CheckpointError: dtypes or shapes of the two don't belong together.
    """

    blocks: TensorSpec
    scales: TensorSpec
    scheme: ClassVar[str] = "mxfp4"

    def __post_init__(self) -> None:
        u8 = DTYPES["U8"]
        if self.blocks.dtype != u8 or len(self.blocks.shape) < 3 or self.blocks.shape[-1] != _BLOCK_NBYTES:
            raise CheckpointError(
                f"MXFP4 blocks {self.blocks}: expected U8 [..., rows, blocks, {_BLOCK_NBYTES}]"
            )
        if self.scales.dtype != u8 or self.scales.shape != self.blocks.shape[:-1]:
            raise CheckpointError(
                f"MXFP4 scales {self.scales}: expected U8 {list(self.blocks.shape[:-1])}"
                f" to match `{self.blocks.name}`"
            )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (self.blocks, self.scales)

    @property
    def dtype(self) -> DType:
        return DTYPES["BF16"]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.scales.shape[:-1], self.scales.shape[-1] * _BLOCK)

    @property
    def exact(self) -> DType:
        return self.dtype

    @property
    def grain(self) -> int:
        return _BLOCK

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        return (start // 2, stop // 2), (start // _BLOCK, stop // _BLOCK)

    def decode(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Dense, int]:
        blocks, scales = inputs
        index = np.empty((scales.size, _BLOCK_NBYTES), np.uint16)
        np.left_shift(scales.astype(np.uint16)[:, None], np.uint16(8), out=index)
        np.bitwise_or(index, blocks.reshape(-1, _BLOCK_NBYTES), out=index)
        pairs = np.take(_pairs(), index.reshape(-1), mode="clip")
        values = pairs.view(ml_dtypes.bfloat16)
        overflow = 0
        if scales.size and _has_overflowing(scales):
            overflow = int(np.count_nonzero((values.view(np.uint16) & 0x7FFF) == 0x7F80))
        return values, overflow


def _has_overflowing(scales: Bytes) -> bool:
    return bool(np.any((scales >= _OVERFLOWING_SCALE) & (scales != _NAN_SCALE)))
