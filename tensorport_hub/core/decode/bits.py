"""Bits and small floats: the bookkeeping that all packed layouts share.

"LE bit stream": words are seen as little-endian bytes, bits are taken `nbits` at a time, the least
significant first; for 2, 4 and 8 bits that is `(word >> nbits * j) & mask`. Tables are in float32 and exact.

Sources: OCP Microscaling Formats (MX) v1.0, section 5 (E2M1, E2M3, E8M0); OCP 8-bit Floating Point (E4M3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tensorport_hub.core.decode.decoder import Bytes
from tensorport_hub.core.ranges import Range

Floats = npt.NDArray[np.float32]

E2M1: Floats = np.array(
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0], np.float32
)
"""Code -> value of the 4-bit float; code 8 is -0."""

_PIECE = 1 << 16
_WORDS = {4: "u4", 8: "u8", 16: "c16"}
"""Bytes of an entry -> a type that `look_up` moves at once."""

CANONICAL_NAN = np.uint32(0x7FC00000)


@cache
def e8m0() -> Floats:
    """Byte -> 2^(byte - 127); byte 0 is the subnormal 2^-127, byte 255 NaN."""
    exponent = np.minimum(np.arange(256) - 127, 127)
    table = np.ldexp(np.float64(1), exponent).astype(np.float32)
    table.view(np.uint32)[255] = CANONICAL_NAN
    return table


@cache
def e2m3() -> Floats:
    """6-bit code -> value: sign in bit 5, two exponent and three mantissa bits."""
    code = np.arange(32)
    normal = (1 + (code & 7) / 8) * 2.0 ** ((code >> 3) - 1)
    magnitude = np.where(code < 8, code / 8, normal)
    return np.concatenate([magnitude, -magnitude]).astype(np.float32)


@cache
def float8(name: str) -> Floats:
    """Byte -> value of an 8-bit float dtype, by its safetensors name; NaN is canonical."""
    kinds = {
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
        "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    }
    if name == "F8_E8M0":
        return e8m0()
    table: Floats = np.arange(256, dtype=np.uint8).view(kinds[name]).astype(np.float32)
    table.view(np.uint32)[np.isnan(table)] = CANONICAL_NAN
    return table


@cache
def nibble_pairs(low_first: bool = True) -> npt.NDArray[np.uint8]:
    """Byte -> its two 4-bit codes in order of elements: [256, 2]."""
    byte = np.arange(256, dtype=np.uint8)
    pair = (byte & 15, byte >> 4)
    return np.stack(pair if low_first else pair[::-1], axis=1)


def look_up(table: npt.NDArray[Any], index: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """`table[index]` for a 1-D table and an index that lies in it; fresh.

    Of numpy's ways to gather, `take` is the quickest, and of its modes "wrap". It widens an index to eight
    bytes each; piece by piece, these stay in the cache.
    """
    flat = index.reshape(-1)
    found = np.empty(flat.size, table.dtype)
    for at in range(0, flat.size, _PIECE):
        np.take(table, flat[at : at + _PIECE], mode="wrap", out=found[at : at + _PIECE])
    return found.reshape(index.shape)


def two_bytes(single: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[byte] -> its n items, to [second byte << 8 | first byte] -> the 2 n items of both in one word."""
    n = single.shape[1]
    both = np.empty((256, 256, 2, n), single.dtype)
    both[:, :, 0], both[:, :, 1] = single[None], single[:, None]
    found: npt.NDArray[Any] = both.reshape(-1).view(_WORDS[2 * n * single.itemsize])
    return found


def pair_table(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[256 scales, 16 codes] -> [scale << 8 | byte]: a byte's two values in one word, low nibble first."""
    pairs = np.ascontiguousarray(values[:, nibble_pairs()])
    return pairs.view(np.dtype(f"u{2 * values.itemsize}")).reshape(-1)


def look_up_pairs(table: npt.NDArray[Any], scales: Bytes, data: Bytes) -> npt.NDArray[Any]:
    """Words of a `pair_table` for 1-D `data`, of which each scale has an equal share, in order."""
    per = data.size // max(scales.size, 1)
    index = np.repeat(scales.astype(np.uint16) << np.uint16(8), per)
    np.bitwise_or(index, data, out=index)
    return look_up(table, index)


def unpack(data: Bytes, nbits: int) -> Bytes:
    """Codes of an LE bit stream along the last axis.

    Args:
        data: bytes [..., n].
        nbits: 1 to 8.

    Returns:
        Codes [..., 8 * n // nbits]; bits that are left over are dropped.
    """
    lead, nbytes = data.shape[:-1], data.shape[-1]
    if nbits == 8:
        return data
    if 8 % nbits == 0:
        return _spread(data, nbits)
    lacking = -nbytes % nbits  # eight codes lie in `nbits` bytes
    if lacking:
        data = np.concatenate([data, np.zeros((*lead, lacking), np.uint8)], axis=-1)
    groups = data.reshape(*lead, (nbytes + lacking) // nbits, nbits)
    codes = np.empty((*groups.shape[:-1], 8), np.uint8)
    for slot in range(8):
        byte, shift = divmod(slot * nbits, 8)
        code = groups[..., byte] >> np.uint8(shift)
        if shift + nbits > 8:
            code |= groups[..., byte + 1] << np.uint8(8 - shift)
        np.bitwise_and(code, np.uint8((1 << nbits) - 1), out=codes[..., slot])
    return codes.reshape(*lead, groups.shape[-2] * 8)[..., : 8 * nbytes // nbits]


_SPREADS: dict[int, tuple[tuple[int, int], ...]] = {
    4: ((4, 0x0F0F),),
    2: ((12, 0x000F000F), (6, 0x03030303)),
    1: ((28, 0x0000000F_0000000F), (14, 0x00030003_00030003), (7, 0x01010101_01010101)),
}
"""How far the upper half of each piece moves up, and what stays: pieces halve until each lies in a byte."""


def _spread(data: Bytes, nbits: int) -> Bytes:
    """Codes of 1, 2 or 4 bits: each byte becomes a word whose bytes are its codes, the lowest first."""
    words = data.astype(f"<u{8 // nbits}", order="C")
    for shift, mask in _SPREADS[nbits]:
        words |= words << words.dtype.type(shift)
        words &= words.dtype.type(mask)
    return words.view(np.uint8)


def as_float32(data: Bytes, dtype: str) -> Floats:
    """Stored scales (F32, F16, BF16, F8_*, E8M0 also as U8) as float32, exactly; 1-D."""
    if dtype == "F32":
        return data.view(np.float32)
    if dtype == "F16":
        return np.asarray(data.view(np.float16), np.float32)
    if dtype == "BF16":
        wide: npt.NDArray[np.uint32] = data.view(np.uint16).astype(np.uint32) << np.uint32(16)
        return wide.view(np.float32)
    if dtype == "U8":
        return look_up(e8m0(), data)
    return look_up(float8(dtype), data)


def blocked_span(size: int, start: int, stop: int) -> Range:
    """The words that codes `start:stop` of `unpack_blocked` need: within a block as many, else all."""
    origin = start // max(size, 1) * size
    return (start - origin, stop - origin) if stop <= origin + size else (0, size)


def unpack_blocked(
    words: npt.NDArray[np.unsignedinteger[Any]],
    nbits: int,
    shifts: Sequence[int],
    start: int,
    stop: int,
    *,
    size: int,
) -> Bytes:
    """Codes `start:stop` of a sequence that was cut into as many blocks as there are `shifts`.

    Block k fills bits `shifts[k]` to `shifts[k] + nbits` of all words: code i lies in word `i % size`.

    Args:
        words: those that `blocked_span` names.
        size: all words that there are.

    Returns:
        `stop - start` codes.
    """
    codes = np.empty(stop - start, np.uint8)
    mask = words.dtype.type((1 << nbits) - 1)
    before = blocked_span(size, start, stop)[0]
    for block, shift in enumerate(shifts):
        origin = block * size
        first, last = max(start, origin), min(stop, origin + size)
        if first < last:
            part = words[first - origin - before : last - origin - before]
            codes[first - start : last - start] = (part >> words.dtype.type(shift)) & mask
    return codes


def rectangles(start: int, stop: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """Items `start:stop` of a matrix with rows of `width` items, as at most three rectangles, in order.

    Yields:
        First row, last row + 1, first column, last column + 1.
    """
    while start < stop:
        row, column = divmod(start, width)
        if column or stop - start < width:
            end = min(column + stop - start, width)
            yield row, row + 1, column, end
            start += end - column
        else:
            rows = (stop - start) // width
            yield row, row + rows, 0, width
            start += rows * width
