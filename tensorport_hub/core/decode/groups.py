"""Groups of the input axis: one zero point and one scale for every `size` columns, or by a group index.

Arithmetic: (code - zero) * scale in float32, in this order, in place. Codes and zero points are small
integers, so the difference is exact and the product of an F16 or BF16 scale is too.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from tensorport_hub.core.decode.bits import Floats

_WIDE = 96
"""From this many columns a group is faster as one inner loop than as repeated operands."""


def scale_groups(codes: Floats, zeros: Floats, scales: Floats, size: int) -> None:
    """Turn codes into values, in place; column `i` belongs to group `i // size`, the last may be short.

    Args:
        codes: [rows, columns], C order.
        zeros: [rows, groups].
        scales: [rows, groups].
    """
    columns = codes.shape[1]
    count = columns // size
    whole = count * size
    with np.errstate(over="ignore", invalid="ignore"):
        if size >= _WIDE and count:
            view = as_strided(
                codes,
                (codes.shape[0], count, size),
                (codes.strides[0], size * codes.itemsize, codes.itemsize),
            )
            np.subtract(view, zeros[:, :count, None], out=view)
            np.multiply(view, scales[:, :count, None], out=view)
        elif count:
            part = codes[:, :whole]
            np.subtract(part, np.repeat(zeros[:, :count], size, axis=1), out=part)
            np.multiply(part, np.repeat(scales[:, :count], size, axis=1), out=part)
        if whole < columns:
            part = codes[:, whole:]
            np.subtract(part, zeros[:, count, None], out=part)
            np.multiply(part, scales[:, count, None], out=part)


def scale_columns(codes: Floats, zeros: Floats, scales: Floats, index: npt.NDArray[np.int32]) -> None:
    """Turn codes into values, in place; column `i` belongs to group `index[i]` (in range).

    Where groups lie side by side, as they do without act-order, this is as fast as `scale_groups`.
    """
    size = int(np.count_nonzero(index == index[0])) if index.size else 0
    if size and np.array_equal(index, np.arange(index.size) // size):
        scale_groups(codes, zeros, scales, size)
        return
    with np.errstate(over="ignore", invalid="ignore"):
        np.subtract(codes, np.take(zeros, index, axis=1), out=codes)
        np.multiply(codes, np.take(scales, index, axis=1), out=codes)
