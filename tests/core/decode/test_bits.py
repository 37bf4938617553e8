"""Bit streams against integers of any length: one number, cut into codes from its least significant end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorport_hub.core.decode.bits import unpack


@given(data=st.binary(max_size=40), nbits=st.integers(1, 8))
def test_codes_are_taken_from_the_least_significant_end(data, nbits):
    """The bytes are one little-endian number; what does not fill a code is dropped."""
    number = int.from_bytes(data, "little")
    want = [number >> nbits * i & (1 << nbits) - 1 for i in range(8 * len(data) // nbits)]
    assert unpack(np.frombuffer(data, np.uint8), nbits).tolist() == want


@pytest.mark.parametrize("nbits", range(1, 9))
@pytest.mark.parametrize("shape", [(2, 3, 15), (3, 7), (2, 0), (0, 5)])
def test_rows_are_streams_of_their_own(nbits, shape):
    """Leading axes stay; each row starts anew."""
    data = np.random.default_rng(nbits).integers(0, 256, shape, np.uint8)
    codes = unpack(data, nbits)
    assert codes.shape == (*shape[:-1], 8 * shape[-1] // nbits)
    assert codes.dtype == np.uint8
    for row in np.ndindex(*shape[:-1]):
        np.testing.assert_array_equal(codes[row], unpack(data[row], nbits))


@pytest.mark.parametrize("nbits", [1, 2, 3, 4, 8])
def test_bytes_in_any_memory_order(nbits):
    """A transposed view gives the codes of its copy."""
    data = np.random.default_rng(0).integers(0, 256, (6, 9), np.uint8).T
    np.testing.assert_array_equal(unpack(data, nbits), unpack(data.copy(order="C"), nbits))
