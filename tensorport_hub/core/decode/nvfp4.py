"""NVFP4: E2M1 codes in blocks of 16 along the input axis, each with an E4M3 scale, all with one in F32.

Layout: weight U8 [..., rows, blocks * 8] (or U32 words of four such bytes, as MLX; or F4, whose shape counts
elements), a byte holds two codes, the LOW nibble first; scales F8_E4M3 [..., rows, blocks] (or the same bytes
as U8); a global scale F32 [] / [1], or one for each of the leading matrices (experts). Output [..., rows,
blocks * 16], reference dtype BF16.

Arithmetic, in float32 and in this order: scale = E4M3[s] / global (compressed-tensors) or E4M3[s]
* global (ModelOpt); value = E2M1[code] * scale; with a `pre_quant_scale` [in]
(ModelOpt AWQ, where it could not be fused: the activations are multiplied by it, so the weight's columns are)
value * pre_quant_scale[column]. One rounding, from float32. Code 8 is -0 and stays -0 (ModelOpt's own
dequantizer gives +0). Scales 0x7f and 0xff are NaN, and so is their block. A global scale that is not
finite, or 0 where it divides, is damage.

Sources: compressed-tensors `NVFP4PackedCompressor`; NVIDIA ModelOpt `NVFP4QTensor`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tensorport_hub.core.decode.bits import E2M1, Floats, float8, look_up_pairs, pair_table
from tensorport_hub.core.decode.cast import canonical_nans, cast
from tensorport_hub.core.decode.decoder import Bytes, Decoder, Dense
from tensorport_hub.core.decode.scales import FLOATS, finite
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.tensor import DTYPES, DType, TensorSpec
from tensorport_hub.errors import CheckpointError

BLOCK = 16
BLOCK_NBYTES = BLOCK // 2


@dataclass(frozen=True)
class Pairs:
    """All values under one global scale, in one dtype.

    Attributes:
        words: [E4M3 scale << 8 | byte] -> two values in one word, the low nibble's first.
        lossless: [E4M3 scale] whether rounding keeps its values: none overflows, none becomes 0.
    """

    words: npt.NDArray[Any]
    lossless: npt.NDArray[np.bool_]


@lru_cache(maxsize=16)
def pairs(scale: float, dtype: DType, *, divides: bool) -> Pairs:
    """256 or 512 KiB.

    Args:
        scale: the global scale, a float32.
        dtype: F32, or what the products are rounded to.
        divides: whether block scales are divided by it, or multiplied.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        scales = float8("F8_E4M3")
        scales = scales / np.float32(scale) if divides else scales * np.float32(scale)
        exact = E2M1 * scales[:, None]
    values = cast(exact.reshape(-1), DTYPES["F32"], dtype)[0].reshape(exact.shape)
    canonical_nans(values, dtype)
    lost = np.isinf(values) | ((values == 0) & (exact != 0))
    return Pairs(pair_table(values), ~lost.any(axis=1))


@dataclass(frozen=True)
class Nvfp4(Decoder):
    """A row-packed weight and its block scales, without a global scale.

    Raises:
        CheckpointError: dtypes or shapes don't belong together.
    """

    weight: TensorSpec
    scales: TensorSpec
    scheme: ClassVar[str] = "nvfp4"
    divides: ClassVar[bool] = False

    def __post_init__(self) -> None:
        per = BLOCK if self.weight.dtype.packed else BLOCK_NBYTES // self.weight.dtype.itemsize
        *rows, width = self.weight.shape or (0,)
        if self.weight.dtype.name not in ("U8", "U32", "F4") or not rows or not width or width % per:
            raise CheckpointError(
                f"NVFP4 weight {self.weight}: expected U8, U32 or F4 [..., rows, blocks * {per}]"
            )
        check_scales(self.scales, (*rows, width // per), self.weight)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (self.weight, self.scales)

    @property
    def dtype(self) -> DType:
        return DTYPES["BF16"]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.scales.shape[:-1], self.scales.shape[-1] * BLOCK)

    @property
    def grain(self) -> int:
        return BLOCK

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        return (start // 2, stop // 2), (start // BLOCK, stop // BLOCK)

    def decode(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Dense, int]:
        words, safe = self._look_up(inputs, start, stop, DTYPES["F32"])
        values = words.view(np.float32)
        return values, 0 if safe else int(np.count_nonzero(np.isinf(values)))

    def rounded(self, inputs: Sequence[Bytes], start: int, stop: int, target: DType) -> Dense | None:
        words, lossless = self._look_up(inputs, start, stop, target)
        return words.view(target.numpy) if lossless else None

    def _look_up(
        self, inputs: Sequence[Bytes], start: int, stop: int, dtype: DType
    ) -> tuple[npt.NDArray[Any], bool]:
        """Pairs of values in `dtype`, and whether rounding lost none of them."""
        stored, scales = inputs[:2]
        words, lossless = [], True
        for factor, a, b in by_factor(self._factors(inputs), prod(self.shape[-2:]), start, stop):
            table = pairs(factor, dtype, divides=self.divides)
            here = scales[a // BLOCK : b // BLOCK]
            lossless = lossless and bool(table.lossless[here].all())
            words.append(look_up_pairs(table.words, here, stored[a // 2 : b // 2]))
        return words[0] if len(words) == 1 else np.concatenate(words), lossless

    def _factors(self, inputs: Sequence[Bytes]) -> Floats:
        """Global scales: one, or one for each of the leading matrices."""
        return np.ones(1, np.float32)


@dataclass(frozen=True)
class Nvfp4Times(Nvfp4):
    """A row-packed weight, its block scales, and a global scale that multiplies them."""

    global_scale: TensorSpec
    scheme: ClassVar[str] = "nvfp4_times"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_global(self.global_scale, self.weight)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (self.weight, self.scales, self.global_scale)

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        return (*super().spans(start, stop), (0, self.global_scale.nbytes))

    def _factors(self, inputs: Sequence[Bytes]) -> Floats:
        return factors_of(inputs[2], self.global_scale, divides=self.divides)


@dataclass(frozen=True)
class Nvfp4Over(Nvfp4Times):
    """A row-packed weight, its block scales, and a global scale that divides them."""

    scheme: ClassVar[str] = "nvfp4_over"
    divides: ClassVar[bool] = True


@dataclass(frozen=True)
class Nvfp4Awq(Nvfp4Times):
    """A row-packed weight, its block scales, a global scale that multiplies, and a scale for each column."""

    column_scales: TensorSpec
    scheme: ClassVar[str] = "nvfp4_awq"

    def __post_init__(self) -> None:
        super().__post_init__()
        columns = self.shape[-1]
        if self.column_scales.dtype.name not in FLOATS or self.column_scales.shape != (columns,):
            raise CheckpointError(
                f"NVFP4 column scales {self.column_scales}: expected {' or '.join(FLOATS)}"
                f" [{columns}] to match `{self.weight.name}`"
            )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (*super().inputs, self.column_scales)

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        return (*super().spans(start, stop), (0, self.column_scales.nbytes))

    def decode(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Dense, int]:
        values, _ = super().decode(inputs[:3], start, stop)
        columns = finite(self.column_scales, inputs[3])
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            values *= np.resize(np.roll(columns, -(start % columns.size)), values.size)
        return values, int(np.count_nonzero(np.isinf(values)))

    def rounded(self, inputs: Sequence[Bytes], start: int, stop: int, target: DType) -> Dense | None:
        return None  # columns are scaled before the rounding


def check_scales(scales: TensorSpec, want: tuple[int, ...], weight: TensorSpec) -> None:
    """Refuse block scales of another shape than the weight asks for.

    Raises:
        CheckpointError: they are not.
    """
    if scales.dtype.name not in ("F8_E4M3", "U8") or scales.shape != want:
        raise CheckpointError(
            f"NVFP4 scales {scales}: expected F8_E4M3 {list(want)} to match `{weight.name}`"
        )


def check_global(scale: TensorSpec, weight: TensorSpec) -> None:
    """Refuse a global scale that is neither one number nor one for each of the leading matrices.

    Raises:
        CheckpointError: it is not.
    """
    lead = weight.shape[:-2]
    shape = scale.shape
    while len(shape) > len(lead) and shape[-1] == 1:
        shape = shape[:-1]
    if scale.dtype.name != "F32" or not (scale.numel == 1 or shape == lead):
        wanted = f"F32 [1] or {list(lead)}" if lead else "F32 [1]"
        raise CheckpointError(f"NVFP4 global scale {scale}: expected {wanted} to match `{weight.name}`")


def factors_of(stored: Bytes, spec: TensorSpec, *, divides: bool) -> Floats:
    """The global scales, 1-D.

    Raises:
        CheckpointError: one is not finite, or is 0 and divides.
    """
    factors = stored.view(np.float32)
    for factor in factors[~np.isfinite(factors) | (divides & (factors == 0))]:
        expected = "finite and not 0" if divides else "finite"
        raise CheckpointError(f"NVFP4 global scale {spec}: expected {expected}, got {factor}")
    return factors


def by_factor(factors: Floats, matrix: int, start: int, stop: int) -> Iterator[tuple[float, int, int]]:
    """Items `start:stop` cut where the global scale changes: value, and range from `start`."""
    if factors.size == 1 or start == stop:
        yield float(factors[0]) if factors.size else 1.0, 0, stop - start
        return
    for number in range(start // matrix, -(-stop // matrix)):
        first, last = max(start, number * matrix), min(stop, (number + 1) * matrix)
        yield float(factors[number]), first - start, last - start
