"""One rounding to another float precision, with every loss counted.

Rules: round to nearest, ties to even, once, from the exact stored value. Infinities stay, -0 stays. A
finite value beyond the target's range is an *overflow*: an infinity, or with `saturate` the largest finite
value of its sign. A non-zero value that becomes 0 is an *underflow*; 26,112 of the 65,536 bfloat16 codes do
in float16. A NaN keeps its bits where widening only appends zeros (bfloat16 to float32) and otherwise becomes
the canonical quiet NaN: 0x7E00 (F16), 0x7FC0 (BF16), 0x7FC00000 (F32), since hardware differs in payloads.

float64 goes to bfloat16 by way of a float32 that is rounded to odd, which makes the second rounding exact
(Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", 2008).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorport_hub.core.decode.bits import float8, look_up
from tensorport_hub.core.decode.decoder import Dense
from tensorport_hub.core.decode.half import PIECE, ToHalf, to_float
from tensorport_hub.core.tensor import DTYPES, DType


@dataclass
class Losses:
    """What rounding cost one tensor: counts of elements."""

    overflow: int = 0
    underflow: int = 0

    def add(self, other: Losses) -> None:
        self.overflow += other.overflow
        self.underflow += other.underflow


@dataclass(frozen=True)
class _Bits:
    """A float format seen as integers: infinity's magnitude, above it lie the NaNs."""

    word: type[np.unsignedinteger[Any]]
    magnitude: int
    infinity: int
    nan: int


_BITS = {
    "F16": _Bits(np.uint16, 0x7FFF, 0x7C00, 0x7E00),
    "BF16": _Bits(np.uint16, 0x7FFF, 0x7F80, 0x7FC0),
    "F32": _Bits(np.uint32, 0x7FFFFFFF, 0x7F800000, 0x7FC00000),
}


def cast(values: Dense, source: DType, target: DType, *, saturate: bool = False) -> tuple[Dense, Losses]:
    """Round 1-D `values` of dtype `source` to `target` (F16, BF16 or F32).

    Returns:
        An array in `target.numpy` (fresh, unless the dtypes are equal), and the losses.
    """
    if source == target:
        return values, Losses()
    if source.name == "BF16":
        wide = _widen(values)
        return (wide, Losses()) if target.name == "F32" else _to_float16(wide, saturate)
    if source.name == "F16":
        wide = to_float(values)
        if target.name == "F32":
            canonical_nans(wide, target)
            return wide, Losses()
        return _round(wide, target, saturate)
    exact = _exact(values, source, target)
    if exact.dtype == np.float32 and target.name == "F16":
        return _to_float16(exact, saturate)
    return _round(exact, target, saturate)


def _to_float16(exact: npt.NDArray[np.float32], saturate: bool) -> tuple[Dense, Losses]:
    """Piece by piece, the quick way; numpy's where one overflows or is no number."""
    out, losses = np.empty(exact.size, np.float16), Losses()
    to_half = ToHalf(min(exact.size, PIECE))
    for start in range(0, exact.size, PIECE):
        piece, room = exact[start : start + PIECE], out[start : start + PIECE]
        underflow = to_half.round(piece, room)
        if underflow is None:
            room[:], cost = _round(piece, DTYPES["F16"], saturate)
            losses.add(cost)
        else:
            losses.underflow += underflow
    return out, losses


def _round(exact: Dense, target: DType, saturate: bool) -> tuple[Dense, Losses]:
    """By numpy's or ml_dtypes' own conversion."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        out = exact.astype(target.numpy, copy=False)
    return out, _settle(exact, out, target, saturate)


def _widen(values: Dense) -> npt.NDArray[np.float32]:
    """bfloat16 is the upper half of a float32."""
    wide = values.view(np.uint16).astype(np.uint32)
    np.left_shift(wide, np.uint32(16), out=wide)
    return wide.view(np.float32)


def _exact(values: Dense, source: DType, target: DType) -> npt.NDArray[np.floating[Any]]:
    """The same values in a type that numpy or ml_dtypes rounds correctly to `target`."""
    if source.name == "F64" and target.name == "BF16":
        return _round_to_odd(values)
    return look_up(float8(source.name), values.view(np.uint8)) if source.nbits < 16 else values


def _round_to_odd(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        near = values.astype(np.float32)
    away_from_zero = (near > values) & (values > 0) | (near < values) & (values < 0)
    np.nextafter(near, np.float32(0), out=near, where=away_from_zero)
    inexact = (near != values) & ~np.isnan(values)
    bits = near.view(np.uint32)
    bits |= inexact
    return near


def _settle(exact: Dense, out: Dense, target: DType, saturate: bool) -> Losses:
    """Make NaNs canonical and overflows what was asked for, in place; count the losses."""
    form = _BITS[target.name]
    bits = out.view(form.word)
    magnitude = bits & form.word(form.magnitude)
    zeros = int(np.count_nonzero(magnitude == 0))
    underflow = zeros - int(np.count_nonzero(exact == 0)) if zeros else 0
    if not magnitude.size or magnitude.max() < form.infinity:
        return Losses(underflow=underflow)
    bits[magnitude > form.infinity] = form.nan
    infinite = (magnitude == form.infinity) & np.isfinite(exact)
    overflow = int(np.count_nonzero(infinite))
    if saturate and overflow:
        _clip(bits, infinite, form)
    return Losses(overflow, underflow)


def _clip(bits: Dense, where: npt.NDArray[np.bool_], form: _Bits) -> None:
    bits[where] -= form.word(1)  # the code below infinity is the largest finite value, of the same sign


def canonical_nans(values: Dense, dtype: DType) -> None:
    """Make every NaN that arithmetic left in F16, BF16 or F32 `values` the canonical one, in place."""
    form = _BITS[dtype.name]
    bits = values.view(form.word)
    signed = values.view(f"i{values.itemsize}")
    if signed.max(initial=0) > form.infinity or bits.max(initial=0) > form.infinity + form.magnitude + 1:
        bits[bits & form.word(form.magnitude) > form.infinity] = form.nan


def clip_infinities(values: Dense, dtype: DType) -> None:
    """Replace every infinity, in place, by the largest finite value of its sign."""
    form = _BITS[dtype.name]
    bits = values.view(form.word)
    _clip(bits, (bits & form.word(form.magnitude)) == form.infinity, form)


def is_castable(dtype: DType) -> bool:
    """Whether `cast` can round from `dtype`: unpacked floats."""
    return dtype.kind == "float" and not dtype.packed
