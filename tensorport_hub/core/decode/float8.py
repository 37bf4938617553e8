"""8-bit floats in blocks with one scale each: DeepSeek, Qwen, fbgemm, ModelOpt, compressed-tensors, MXFP8.

Layout: one byte a code, row-major, as the dtypes F8_E4M3, F8_E5M2 (or their FNUZ forms) or, with the same
bytes, as U8 or as U32 words whose first code is the lowest byte (MLX). The scales form a `Grid` over the
output [..., out, in], partial blocks at the edges cropped; they are F32, F16, BF16, or powers of two
(F8_E8M0, or U8 with the same bytes).

Arithmetic: float32(code) * float32(scale), also where the scale is called `_inv`; rounded once. -0 stays -0.
A NaN code is NaN, as is every code under the E8M0 scale 255 (OCP); a NaN or infinite scale of another dtype
is damage. Byte 0 of an E8M0 scale is 2^-127. Products beyond float32 are infinities, counted as overflow.
Output dtype: what the producer's reference returns, bfloat16 for most.

Sources: OCP 8-bit Floating Point v1.0; OCP Microscaling Formats v1.0; DeepSeek-V3 `inference/kernel.py`;
compressed-tensors `quantization/lifecycle/forward.py`; ModelOpt `torch/export/quant_utils.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tensorport_hub.core.decode.bits import Floats, as_float32, float8, look_up, two_bytes
from tensorport_hub.core.decode.decoder import Bytes, Decoder, Dense, Params
from tensorport_hub.core.decode.grid import Grid
from tensorport_hub.core.decode.ordinary import PRESCALE, is_ordinary, magnitudes, narrow
from tensorport_hub.core.decode.scales import finite
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.tensor import DTYPES, DType, TensorSpec
from tensorport_hub.errors import CheckpointError

CODES = frozenset(["F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"])
"""Dtypes whose bytes are codes."""
SCALES = frozenset(["F32", "F16", "BF16", "F8_E8M0", "U8"])
"""Dtypes of scales."""
POWERS = frozenset(["F8_E8M0", "U8"])
"""Of them, those that hold exponents."""
_CODES_IN_WORD = {"U8": 1, "U32": 4}
_LARGEST = 57344.0  # of any of the formats: E5M2
_INFINITY = 0x7C  # F8_E5M2, the only one of the formats that has one


@dataclass(frozen=True)
class _Finite:
    """The finite codes of a format with `mantissa` bits: those below `top` beside their sign.

    Moved to where a float32 has its exponent and mantissa, a code is its value divided by `power`, which only
    makes up for the other exponent bias: exactly, for what is subnormal in either format too.
    """

    mantissa: int
    top: int
    power: float
    magnitudes: tuple[float, float]

    def holds(self, codes: Bytes) -> bool:
        """Whether all codes are finite."""
        positive, negative = codes.view(np.int8).max(initial=0), codes.max(initial=0)
        return int(positive) < self.top and int(negative) < self.top | 0x80

    def small(self, codes: Bytes) -> Floats:
        """Their values divided by `power`."""
        bits = codes.view(np.int8).astype(np.int32)  # which spreads the sign upwards
        bits <<= np.int32(23 - self.mantissa)
        bits &= np.int32(-1 << 31 | 0x7F << 23 - self.mantissa)
        return bits.view(np.float32)


_FINITE = {
    "F8_E4M3": _Finite(3, 0x7F, 2.0**120, (2.0**-9, 448.0)),
    "F8_E5M2": _Finite(2, 0x7C, 2.0**112, (2.0**-16, 57344.0)),
}


@cache
def _pairs(codes: str) -> npt.NDArray[Any]:
    """[two codes, the first in the low byte] -> their two float32 values in one word: 64 K entries."""
    return two_bytes(float8(codes)[:, None])


@dataclass(frozen=True)
class Float8(Decoder):
    """Codes and scales; `rows` x `cols` elements of each of `stack` matrices share a scale.

    `codes` names the codes' format, `returns` the output dtype.

    Raises:
        CheckpointError: dtypes or shapes of the two don't belong together.
    """

    weight: TensorSpec
    scale: TensorSpec
    stack: int
    rows: int
    cols: int
    codes: str
    returns: str
    scheme: ClassVar[str] = "float8"

    def __post_init__(self) -> None:
        word = self.weight.dtype.name
        if self.codes not in CODES or (word != self.codes and word not in _CODES_IN_WORD):
            raise CheckpointError(f"8-bit float weight {self.weight}: expected {self.codes}, U8 or U32")
        self._grid.check(self.scale, SCALES, of=self.weight)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (self.weight, self.scale)

    @property
    def params(self) -> Params:
        return {
            "stack": self.stack,
            "rows": self.rows,
            "cols": self.cols,
            "codes": self.codes,
            "returns": self.returns,
        }

    @property
    def dtype(self) -> DType:
        return DTYPES[self.returns]

    @property
    def shape(self) -> tuple[int, ...]:
        return self._grid.shape

    @cached_property
    def _grid(self) -> Grid:
        shape = self.weight.shape
        words = _CODES_IN_WORD.get(self.weight.dtype.name, 1)
        if words > 1 and shape:
            shape = (*shape[:-1], shape[-1] * words)
        return Grid(shape, self.stack, self.rows, self.cols)

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        size = self.scale.dtype.itemsize
        first, last = self._grid.span(start, stop)
        return (start, stop), (first * size, last * size)

    def decode(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Dense, int]:
        codes, stored = inputs
        scales = self._scales(stored)
        values = _widen(codes, self.codes)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            self._grid.combine(np.multiply, values, scales, start)
            largest = np.nanmax(np.abs(scales), initial=0) * np.float64(_LARGEST)
        if largest <= np.finfo(np.float32).max:
            return values, 0
        stored_infinity = (codes & 0x7F == _INFINITY) & (self.codes == "F8_E5M2")
        return values, int(np.count_nonzero(np.isinf(values) & ~stored_infinity))

    def rounded(self, inputs: Sequence[Bytes], start: int, stop: int, target: DType) -> Dense | None:
        codes, stored = inputs
        form, scales = _FINITE.get(self.codes), self._scales(stored)
        if form is None or not is_ordinary(target, form.magnitudes, magnitudes(scales)):
            return None
        with np.errstate(over="ignore"):
            factors = scales * np.float32(form.power * PRESCALE[target.name])
        if np.isinf(factors).any() or not form.holds(codes):
            return None
        values = form.small(codes)
        self._grid.combine(np.multiply, values, factors, start)
        return narrow(values, target)

    def _scales(self, stored: Bytes) -> Floats:
        """The factors of `span`.

        Raises:
            CheckpointError: one that is no power of two is NaN or infinite.
        """
        if self.scale.dtype.name in POWERS:
            return as_float32(stored, self.scale.dtype.name)
        return finite(self.scale, stored)


def _widen(codes: Bytes, name: str) -> Floats:
    """Each code's float32."""
    even = codes.size & ~1
    values = look_up(_pairs(name), codes[:even].view(np.uint16)).view(np.float32)
    return values if even == codes.size else np.append(values, float8(name)[codes[even:]])
