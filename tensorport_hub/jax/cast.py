"""Host arrays in the dtype that JAX gets: floats rounded once, whole numbers never changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tensorport_hub.core import npy
from tensorport_hub.core.decode.cast import Losses, cast
from tensorport_hub.core.ranges import pieces
from tensorport_hub.core.tensor import PRECISIONS, DType, shorten
from tensorport_hub.errors import LossError, UseError

_TILE = 1 << 19

Array = npt.NDArray[Any]


def parse_dtype(dtype: npt.DTypeLike | None) -> DType | None:
    """The precision that a caller named.

    Raises:
        UseError: it is none that floats can be rounded to.
    """
    if dtype is None:
        return None
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in PRECISIONS:
        known = ", ".join(f"`{one}`" for one in PRECISIONS)
        raise UseError(f"`{shorten(name)}` is no dtype to load floats in: expected one of {known}")
    return PRECISIONS[name]


def converted(values: Array, stored: DType, wanted: DType, name: str) -> Array:
    """`values` in another dtype: floats rounded to nearest even, once; the same array where none is.

    Raises:
        LossError: a finite value that `wanted` can't hold.
    """
    if stored == wanted:
        return values
    if wanted.kind == "int":
        made = values.astype(wanted.numpy)
        lost = int(np.count_nonzero(made != values))
    else:
        made, lost = _rounded(values, stored, wanted)
    if lost:
        hint = "`jax.config.update('jax_enable_x64', True)` keeps 64 bits" if stored.nbits == 64 else ""
        raise LossError(f"`{shorten(name)}`: {lost} values of {stored} are too large for {wanted}", hint=hint)
    return made


def _rounded(values: Array, stored: DType, wanted: DType) -> tuple[Array, int]:
    flat = np.ascontiguousarray(values).reshape(-1)
    made, losses = npy.empty(flat.shape, wanted.numpy), Losses()
    for start, stop in pieces(0, flat.size, _TILE):
        made[start:stop], lost = cast(flat[start:stop], stored, wanted)
        losses.add(lost)
    return made.reshape(values.shape), losses.overflow
