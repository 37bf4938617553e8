"""Plain tensors: bits pass."""

from __future__ import annotations

import numpy as np
import pytest

from tensorport_hub.core.decode.plain import Plain
from tensorport_hub.core.decode.table import bind
from tensorport_hub.core.tensor import DTYPES
from tests.core.samples import specs


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_keeps_its_bits(name):
    """Random bytes, NaN payloads among them, come out as they went in, cut anywhere."""
    (tensor,) = specs([("x", name, (4, 6, 8))])
    decoder = Plain(tensor)
    rng = np.random.default_rng(7)
    stored = rng.integers(0, 2 if name == "BOOL" else 256, tensor.nbytes, np.uint8)
    assert decoder.items * tensor.dtype.itemsize == tensor.nbytes
    whole, overflow = decoder.decode([stored], 0, decoder.items)
    assert whole.tobytes() == stored.tobytes()
    assert overflow == 0
    joined = b""
    for start, stop in ((0, 1), (1, 1), (1, 50), (50, decoder.items)):
        ((first, last),) = decoder.spans(start, stop)
        values, _ = decoder.decode([stored[first:last]], start, stop)
        assert values.size == stop - start
        assert values.dtype == tensor.dtype.numpy
        joined += values.tobytes()
    assert joined == stored.tobytes()


def test_quiet_and_signalling_nans_keep_their_payload():
    """NaN codes of float32 and bfloat16 are the same codes afterwards."""
    for name, codes in (("F32", [0x7F800001, 0xFFC00123]), ("BF16", [0x7F81, 0xFFFF])):
        word = np.uint32 if name == "F32" else np.uint16
        (tensor,) = specs([("x", name, (2,))])
        values, _ = Plain(tensor).decode([np.array(codes, word).view(np.uint8)], 0, 2)
        assert values.view(word).tolist() == codes


@pytest.mark.parametrize(
    ("dtype", "shape", "parameters"),
    [("BF16", (3, 4), 12), ("F4", (3, 4), 12), ("C64", (5,), 5), ("F32", (), 1), ("F32", (0, 3), 0)]
    + [(name, (3, 4), 0) for name in ("BOOL", "U8", "I64")],
)
def test_parameters_are_logical_elements_of_floats(dtype, shape, parameters):
    """Packed elements count each, integers and bools are no weights."""
    (tensor,) = specs([("x", dtype, shape)])
    assert Plain(tensor).parameters == parameters


def test_the_table_binds_by_scheme():
    """A plan's scheme name and input make the same decoder again."""
    decoder = Plain(*specs([("x", "F32", (2,))]))
    assert bind("plain", decoder.inputs, decoder.params) == decoder
