"""Codes of 2 to 8 bits in little-endian 32-bit words.

Packings: `dense` is an LE bit stream, where codes of 3, 5, 6 and 7 bits cross words; `padded` puts
floor(32 / bits) codes into each word, low bits first, and leaves its upper bits unused. For 2, 4 and 8 bits
they are the same.

Source: compressed-tensors, `pack_to_int32` since 0.18 (dense) and before (padded).
"""

from __future__ import annotations

import numpy as np

from tensorport_hub.core.decode.bits import unpack
from tensorport_hub.core.decode.decoder import Bytes

WORD = 32
PACKINGS = ("dense", "padded")


def words(count: int, bits: int, packing: str) -> int:
    """How many words hold `count` codes."""
    if packing == "dense":
        return -(-count * bits // WORD)
    return -(-count // (WORD // bits))


def cell(bits: int, packing: str) -> tuple[int, int]:
    """The least number of codes that start at a word's first bit again, and their words."""
    return (WORD // bits, 1) if packing == "padded" or WORD % bits == 0 else (WORD, bits)


def codes(data: Bytes, bits: int, packing: str) -> Bytes:
    """All codes of words.

    Args:
        data: bytes of words [rows, 4 * words].

    Returns:
        [rows, n], with those that only pad.
    """
    if packing == "dense" or WORD % bits == 0:
        return unpack(data, bits)
    word = data.view("<u4")
    shifts = np.arange(WORD // bits, dtype=np.uint32) * np.uint32(bits)
    found: Bytes = ((word[..., None] >> shifts) & np.uint32((1 << bits) - 1)).astype(np.uint8)
    return found.reshape(data.shape[0], -1)
