"""Stored facts: element types and tensors as a safetensors header states them.

Sizes are in bits, because F4 and F6 elements share bytes. Names are those of the safetensors format
(https://github.com/huggingface/safetensors, `Dtype`). A `TensorSpec` that exists is valid: it is made by
`core/safetensors.py` alone, which checks everything first.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import ml_dtypes
import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class DType:
    """An element type.

    `numpy` computes with it (ml_dtypes where numpy has none; packed bytes for F4 and F6); `npy` is the
    descriptor that a .npy file carries: bfloat16 is `<V2`, what numpy itself writes and what `jnp.load`
    turns back; 8-bit floats and packed types are `|u1`.
    """

    name: str
    nbits: int
    numpy: np.dtype[np.generic]
    npy: str
    kind: str  # "float", "int", "bool" or "complex"

    @property
    def packed(self) -> bool:
        """Several elements share a byte."""
        return self.nbits % 8 != 0

    @property
    def itemsize(self) -> int:
        """Bytes of one stored item: an element, or one byte of packed elements."""
        return 1 if self.packed else self.nbits // 8

    def __str__(self) -> str:
        return self.name


def _table() -> dict[str, DType]:
    rows: list[tuple[str, int, npt.DTypeLike, str, str]] = [
        ("BOOL", 8, np.bool_, "|b1", "bool"),
        ("U8", 8, np.uint8, "|u1", "int"),
        ("I8", 8, np.int8, "|i1", "int"),
        ("U16", 16, "<u2", "<u2", "int"),
        ("I16", 16, "<i2", "<i2", "int"),
        ("U32", 32, "<u4", "<u4", "int"),
        ("I32", 32, "<i4", "<i4", "int"),
        ("U64", 64, "<u8", "<u8", "int"),
        ("I64", 64, "<i8", "<i8", "int"),
        ("F16", 16, "<f2", "<f2", "float"),
        ("BF16", 16, ml_dtypes.bfloat16, "<V2", "float"),
        ("F32", 32, "<f4", "<f4", "float"),
        ("F64", 64, "<f8", "<f8", "float"),
        ("C64", 64, "<c8", "<c8", "complex"),
        ("F8_E4M3", 8, ml_dtypes.float8_e4m3fn, "|u1", "float"),
        ("F8_E5M2", 8, ml_dtypes.float8_e5m2, "|u1", "float"),
        ("F8_E8M0", 8, ml_dtypes.float8_e8m0fnu, "|u1", "float"),
        ("F8_E4M3FNUZ", 8, ml_dtypes.float8_e4m3fnuz, "|u1", "float"),
        ("F8_E5M2FNUZ", 8, ml_dtypes.float8_e5m2fnuz, "|u1", "float"),
        ("F6_E2M3", 6, np.uint8, "|u1", "float"),
        ("F6_E3M2", 6, np.uint8, "|u1", "float"),
        ("F4", 4, np.uint8, "|u1", "float"),
    ]
    return {name: DType(name, nbits, np.dtype(kind), npy, group) for name, nbits, kind, npy, group in rows}


DTYPES: dict[str, DType] = _table()
"""Every element type that a safetensors file may name, by that name."""

PRECISIONS: dict[str, DType] = {
    "bfloat16": DTYPES["BF16"],
    "float16": DTYPES["F16"],
    "float32": DTYPES["F32"],
}
"""The precisions that floats can be rounded to, by the option's word."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One stored tensor: bytes `start:stop` of `file`, C order, little-endian."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: str
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start

    @property
    def numel(self) -> int:
        return prod(self.shape)

    def __str__(self) -> str:
        return f"`{shorten(self.name)}` ({self.dtype} {list(self.shape)} in `{self.file}`)"


def shorten(value: object, most: int = 120) -> str:
    """A hostile name in an error message: printable and short."""
    text = value if isinstance(value, str) else repr(value)
    text = text.encode("unicode_escape").decode("ascii") if not text.isprintable() else text
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"
