"""Stored factors and offsets as float32, refused where they can't be meant.

Decoders differ in what their reference does with an infinite scale: those that overflow as it does take any
number (`numbers`), the others finite ones alone (`finite`).
"""

from __future__ import annotations

import numpy as np

from tensorport_hub.core.decode.bits import Floats, as_float32
from tensorport_hub.core.decode.decoder import Bytes
from tensorport_hub.core.tensor import TensorSpec
from tensorport_hub.errors import CheckpointError

FLOATS = ("F16", "BF16", "F32")
"""The dtypes that most layouts allow for them."""


def numbers(tensor: TensorSpec, data: Bytes) -> Floats:
    """Bytes of `tensor` as float32, 1-D.

    Raises:
        CheckpointError: a NaN is among them.
    """
    values = as_float32(data, tensor.dtype.name)
    if np.isnan(values).any():
        raise CheckpointError(f"{tensor}: expected numbers, got NaN")
    return values


def finite(tensor: TensorSpec, data: Bytes) -> Floats:
    """Bytes of `tensor` as float32, 1-D.

    Raises:
        CheckpointError: a NaN or an infinity is among them.
    """
    values = as_float32(data, tensor.dtype.name)
    if not np.isfinite(values).all():
        raise CheckpointError(f"{tensor}: expected finite values, got NaN or infinity")
    return values
