"""Rounding products that are ordinary: 0, or normal numbers of the target.

Where the least and the largest magnitudes of two factors prove that of all their products, no rounding
overflows and none gives 0, so that nothing need be counted, and float16 can be had in a quicker way than
numpy's. The bits are those of `cast`.

float16 by way of bfloat16: times 2^-112, a float32 that is normal in float16 has the latter's exponent, so
three bits below its sign are 0. Moved up by these three, its code is the upper half of the word, and
rounding that half is rounding to bfloat16, which ml_dtypes does with integers. 2^-112 can be multiplied into
the second factor: that is exact, since it is never below 2^-14 (where not 0).
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tensorport_hub.core.decode.bits import Floats
from tensorport_hub.core.decode.decoder import Dense
from tensorport_hub.core.tensor import DType

Magnitudes = tuple[float, float]
"""The least one that is not 0, and the largest."""

PRESCALE = {"F16": np.float32(2.0**-112), "BF16": np.float32(1)}
"""What values are multiplied by before they are narrowed."""
_NORMAL: dict[str, Magnitudes] = {"F16": (2.0**-14, 65504.0), "BF16": (2.0**-126, 2.0**127)}
_DROPPED = {"F16": 13, "BF16": 16}
"""Mantissa bits that a float32 has more."""


def magnitudes(values: Floats) -> Magnitudes:
    """Those of `values`; NaN is the largest where there is one."""
    found = np.abs(values)
    return float(found.min(initial=np.inf, where=found > 0)), float(found.max(initial=0))


def is_ordinary(target: DType, left: Magnitudes, right: Magnitudes) -> bool:
    """Whether all products of two such factors are, and so is 1 times the second one."""
    least, most = _NORMAL.get(target.name, (np.inf, 0.0))
    return min(left[0], 1.0) * right[0] >= least and left[1] * right[1] <= most


def narrow(values: Floats, target: DType) -> Dense:
    """Ordinary values, multiplied by `PRESCALE`, in F16 or BF16; the former overwrites them."""
    if target.name != "F16":
        return values.astype(target.numpy)
    bits = values.view(np.uint32)
    sign = bits & np.uint32(1 << 31)
    bits <<= np.uint32(3)
    bits |= sign
    return bits.view(np.float32).astype(ml_dtypes.bfloat16).view(np.float16)


def round_in_place(values: Floats, target: DType) -> None:
    """Round to F16 or BF16, to nearest and ties to even, but stay float32: ordinary or, for BF16, no NaN."""
    bits = values.view(np.uint32)
    dropped = _DROPPED[target.name]
    less_than_half = bits >> np.uint32(dropped)
    less_than_half &= np.uint32(1)  # an odd neighbour below: half is enough to leave it
    less_than_half += np.uint32((1 << dropped - 1) - 1)
    bits += less_than_half
    bits &= np.uint32((1 << 32) - (1 << dropped))
