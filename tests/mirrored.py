"""Mirrors for the tests that read them: tensors of every dtype, written, converted, served.

What a tensor must read back as is known before it is stored: an array, in the dtype that the reader owes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tensorport_hub import convert

Array = npt.NDArray[Any]
Tensors = Mapping[str, tuple[str, Array]]
"""Name -> dtype as safetensors names it, and the values."""

NUMPY: dict[str, Any] = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
    "C64": np.complex64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
}
PACKED = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
"""Bits of an element; what is read back are bytes."""


def bits(dtype: str, shape: tuple[int, ...], seed: int = 0) -> tuple[str, Array]:
    """Any bits that the dtype may have."""
    draw = np.random.default_rng([seed, *dtype.encode(), *shape])
    kind = np.dtype(NUMPY.get(dtype, np.uint8))
    if dtype == "BOOL":
        return dtype, draw.integers(0, 2, shape).astype(np.bool_)
    raw = np.frombuffer(draw.bytes(prod(shape) * kind.itemsize), np.uint8)
    return dtype, raw.view(kind).reshape(shape)


def floats(dtype: str, shape: tuple[int, ...], seed: int = 0) -> tuple[str, Array]:
    """Finite values of about 1."""
    values = np.random.default_rng([seed, *dtype.encode(), *shape]).standard_normal(shape)
    return dtype, values.astype(NUMPY[dtype])


def every_dtype() -> dict[str, tuple[str, Array]]:
    """One tensor of each, some of them cut, 0-d ones and empty ones."""
    plain = {f"one.{dtype.lower()}": bits(dtype, (9, 4)) for dtype in NUMPY}
    packed = {
        f"packed.{dtype.lower()}": (dtype, bits("U8", (3, 8 * size // 8))[1])
        for dtype, size in PACKED.items()
    }
    return {
        "embed.weight": bits("BF16", (50, 24)),
        **plain,
        **packed,
        "scalar.f32": bits("F32", ()),
        "scalar.bf16": bits("BF16", ()),
        "none.first": bits("F32", (0, 3)),
        "none.last": bits("BF16", (3, 0)),
        "deep": bits("F16", (5, 6, 7, 3)),
        "norm": bits("F32", (33,)),
    }


def write(tensors: Tensors) -> bytes:
    """A safetensors file with the tensors in this order."""
    header: dict[str, Any] = {}
    at = 0
    for name, (dtype, array) in tensors.items():
        shape = list(array.shape)
        if dtype in PACKED:
            shape[-1] = shape[-1] * 8 // PACKED[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for _, a in tensors.values())


def make_mirror(
    folder: Path, tensors: Tensors, *, config: bytes = b'{"model_type": "none"}\n', **options: Any
) -> Path:
    """A mirror of these tensors in `folder`, by the product; the source lies beside it."""
    source = folder.with_name(f"{folder.name}-source")
    source.mkdir(parents=True)
    (source / "model.safetensors").write_bytes(write(tensors))
    (source / "config.json").write_bytes(config)
    convert(str(source), str(folder), **options)
    return folder


def same(a: Any, b: Array) -> bool:
    """Equal dtype, shape and bytes; NaNs too."""
    found = np.asarray(a)
    return found.dtype == b.dtype and found.shape == b.shape and found.tobytes() == b.tobytes()
