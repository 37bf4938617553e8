"""MXFP4: E2M1 codes in blocks of 32 along the input axis, each block with one E8M0 scale.

Layout, two spellings of the same bytes: gpt-oss `X_blocks` U8 [..., rows, blocks, 16] and `X_scales` U8
[..., rows, blocks]; or row-packed [..., rows, blocks * 16] U8 / I8 (DeepSeek-V4) / U32 (MLX: words of four
such bytes) / F4 (whose shape counts elements) and U8 / F8_E8M0 [..., rows, blocks] (compressed-tensors,
ModelOpt, Quark, MiMo). A byte holds two codes, the LOW nibble first. Output [..., rows, blocks * 32] in BF16,
in stored order (for gpt-oss [E, out, in]: the Hugging Face model swaps the last two).

Arithmetic: value = E2M1[code] * 2^(scale - 127). Exact in bfloat16, no rounding: one significant bit after
the leading one, and the smallest, 0.5 * 2^-127, is a bfloat16 subnormal. Code 8 is -0 and stays -0. Scale 0
is 2^-127, not zero. Scale 255 is NaN by the OCP specification, so the whole block is NaN (canonical 0x7FC0).
Magnitudes of 2^128 and more (scale 254 from 2.0, scale 253 from 4.0) don't fit bfloat16: infinities that are
counted as overflow.

Sources: OCP Microscaling Formats (MX) v1.0, sections 5.2 and 5.3.3; openai/gpt-oss `torch/weights.py`;
compressed-tensors `MXFP4PackedCompressor`; NVIDIA ModelOpt `MXFP4QTensor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tensorport_hub.core.decode.bits import E2M1, look_up_pairs, pair_table
from tensorport_hub.core.decode.decoder import Bytes, Decoder, Dense
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.tensor import DTYPES, DType, TensorSpec
from tensorport_hub.errors import CheckpointError

_BLOCK = 32
_BLOCK_NBYTES = _BLOCK // 2
_NAN_SCALE = 255
_OVERFLOWING_SCALE = 253
_CANONICAL_NAN = 0x7FC0


@cache
def _pairs() -> npt.NDArray[Any]:
    """[scale << 8 | byte] -> two bfloat16 codes in one word, the low nibble's first: 64 K entries."""
    scales = np.ldexp(1.0, np.arange(256) - 127)[:, None]
    with np.errstate(over="ignore"):
        values = (E2M1.astype(np.float64) * scales).astype(np.float32).astype(ml_dtypes.bfloat16)
    values.view(np.uint16)[_NAN_SCALE] = _CANONICAL_NAN
    return pair_table(values.view(np.uint16))


@dataclass(frozen=True)
class Mxfp4(Decoder):
    """Codes and their scales, in either spelling: `X_blocks` and `X_scales`, or a row-packed weight.

    Raises:
        CheckpointError: dtypes or shapes of the two don't belong together.
    """

    blocks: TensorSpec
    scales: TensorSpec
    scheme: ClassVar[str] = "mxfp4"

    def __post_init__(self) -> None:
        if len(self.blocks.shape) == len(self.scales.shape):
            check_rows(self.blocks, self.scales, "MXFP4", _BLOCK_NBYTES, ("U8", "I8", "U32", "F4"))
            return
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
        values = look_up_pairs(_pairs(), scales, blocks).view(ml_dtypes.bfloat16)
        return values, count_overflow(values, scales)

    def rounded(self, inputs: Sequence[Bytes], start: int, stop: int, target: DType) -> Dense | None:
        blocks, scales = inputs
        if target != self.exact or scales.max(initial=0) >= _OVERFLOWING_SCALE:
            return None
        values: Dense = look_up_pairs(_pairs(), scales, blocks).view(ml_dtypes.bfloat16)
        return values


def count_overflow(values: Dense, scales: Bytes) -> int:
    """Infinities among bfloat16 `values`: looked for only where a scale is large enough."""
    if not np.any((scales >= _OVERFLOWING_SCALE) & (scales != _NAN_SCALE)):
        return 0
    return int(np.count_nonzero((values.view(np.uint16) & 0x7FFF) == 0x7F80))


def check_rows(
    weight: TensorSpec, scales: TensorSpec, scheme: str, block_nbytes: int, dtypes: Sequence[str]
) -> None:
    """Refuse all but a weight [..., rows, blocks * block_nbytes] with E8M0 scales [..., rows, blocks].

    Raises:
        CheckpointError: they don't belong together.
    """
    per = _BLOCK if weight.dtype.packed else block_nbytes // weight.dtype.itemsize
    *rows, width = weight.shape or (0,)
    if weight.dtype.name not in dtypes or not rows or not width or width % per:
        raise CheckpointError(
            f"{scheme} weight {weight}: expected {' or '.join(dtypes)} [..., rows, blocks * {per}]"
        )
    want = (*rows, width // per)
    if scales.dtype.name not in ("U8", "F8_E8M0") or scales.shape != want:
        raise CheckpointError(
            f"{scheme} scales {scales}: expected U8 or F8_E8M0 {list(want)} to match `{weight.name}`"
        )
