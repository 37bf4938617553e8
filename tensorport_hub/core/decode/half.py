"""float32 to and from float16 by vector instructions: numpy's own conversions take the values one by one.

To round, a value's magnitude times 2^-13 is added to 2^e, e being its exponent, but at least -14, below which
float16 is evenly spaced. The sum has room for ten bits of the value's significand, as float16 has, so the
addition rounds them to nearest, ties to even: they are the lowest bits of the sum, which has the exponent as
well. The last value of a binade may round up into the next one: then a carry into the exponent does it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tensorport_hub.core.decode.bits import Floats

Halves = npt.NDArray[np.float16]

PIECE = 1 << 16
"""Values that `ToHalf` takes at a time at most: what is between its steps stays in the cache."""
_MAGNITUDE, _EXPONENT = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)
_LEAST = np.full(PIECE, (127 - 14) << 23, np.uint32)
"""2^-14, the smallest normal float16; an array, since `maximum` with a scalar is several times slower."""
_TOO_LARGE = 0x477FF000
"""65520, which is rounded to an infinity."""
_BIAS = np.uint16((15 - 127 - 1 << 10) % (1 << 16))
"""From float32's exponent to float16's, where a significand brings a 1 above its ten bits."""


class ToHalf:
    """Rounds float32 to float16, piece by piece; the arrays between its steps are made once.

    Args:
        size: of the largest piece, at most `PIECE`.
    """

    def __init__(self, size: int) -> None:
        self._sums, self._words = np.empty((2, size), np.uint32)
        self._signs = np.empty(size, np.uint16)

    def round(self, values: Floats, out: Halves) -> int | None:
        """Round 1-D values.

        Returns:
            How many that are not 0 became 0; None, and `out` is not touched, if one overflows or is no
            number.
        """
        size = values.size
        sums, words, signs = self._sums[:size], self._words[:size], self._signs[:size]
        bits, codes = values.view(np.uint32), out.view(np.uint16)
        np.bitwise_and(bits, _MAGNITUDE, out=sums)
        if sums.max(initial=0) >= _TOO_LARGE:
            return None
        np.bitwise_and(sums, _EXPONENT, out=words)
        np.maximum(words, _LEAST[:size], out=words)
        scaled = sums.view(np.float32)
        np.multiply(scaled, np.float32(2**-13), out=scaled)
        np.add(scaled, words.view(np.float32), out=scaled)
        np.right_shift(sums, np.uint32(13), out=words)
        np.add(words, sums, out=words)
        np.copyto(codes, words, casting="unsafe")
        codes += _BIAS
        underflow = 0
        if codes.min(initial=1) == 0:
            underflow = int(np.count_nonzero(bits & _MAGNITUDE) - np.count_nonzero(codes))
        np.right_shift(bits, np.uint32(16), out=words)
        np.copyto(signs, words, casting="unsafe")
        signs &= np.uint16(1 << 15)
        codes |= signs
        return underflow


def to_float(values: Halves) -> Floats:
    """1-D values widened.

    A normal float16's bits are moved to a float32's place; numpy takes the rest (0, subnormal, infinite,
    NaN). No float is touched that a processor might flush.
    """
    exponents = values.view(np.uint16) & np.uint16(0x7C00)
    exponents -= np.uint16(0x0400)  # 0 wraps around
    where = np.flatnonzero(exponents >= 0x7800)
    if where.size > values.size // 8:
        return values.astype(np.float32)
    wide = values.view(np.int16).astype(np.int32).view(np.uint32)  # the sign fills the upper half
    np.left_shift(wide, np.uint32(13), out=wide)
    np.bitwise_and(wide, np.uint32(0x8FFFE000), out=wide)
    np.add(wide, np.uint32(112 << 23), out=wide)
    found = wide.view(np.float32)
    found[where] = values[where].astype(np.float32)
    return found
