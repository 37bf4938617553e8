"""The .npy container, format 1.0: its header and its exact size, before a byte of data exists.

Rules: C order, little-endian, and the data starts at a multiple of 64 bytes, so that it can be mapped and
handed to an accelerator without a copy. Source: numpy `lib/format.py` ("NPY format", version 1.0).
"""

from __future__ import annotations

import struct
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorport_hub.core.tensor import DType

_MAGIC = b"\x93NUMPY\x01\x00"
_ALIGN = 64


def stored_shape(dtype: DType, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the array in the file: `shape`, with the last axis in bytes for packed dtypes.

    Raises:
        ValueError: a packed last axis does not end on a byte.
    """
    if not dtype.packed:
        return shape
    if not shape or shape[-1] * dtype.nbits % 8:
        raise ValueError(f"the last axis of {dtype} {list(shape)} does not fill whole bytes")
    return (*shape[:-1], shape[-1] * dtype.nbits // 8)


def header(dtype: DType, shape: tuple[int, ...]) -> bytes:
    """Everything before the data, for an array of stored items of `shape` (see `stored_shape`)."""
    sizes = f"({shape[0]},)" if len(shape) == 1 else f"({', '.join(map(str, shape))})"
    text = f"{{'descr': '{dtype.npy}', 'fortran_order': False, 'shape': {sizes}, }}"
    length = len(_MAGIC) + 2 + len(text) + 1
    text += " " * (-length % _ALIGN) + "\n"
    return _MAGIC + struct.pack("<H", len(text)) + text.encode("latin1")


def nbytes(dtype: DType, shape: tuple[int, ...]) -> int:
    """Bytes of the whole file."""
    return len(header(dtype, shape)) + prod(shape) * dtype.itemsize


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """An array in memory, aligned like one in a file; like one in a file it can be used without a copy."""
    size = prod(shape) * dtype.itemsize
    room = np.empty(size + _ALIGN, np.uint8)
    start = -room.ctypes.data % _ALIGN
    return room[start : start + size].view(dtype).reshape(shape)
