"""BitNet's ternary codes against the formula, one element at a time."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.decode.bitnet import BitnetOver, BitnetTimes
from tensorport_hub.core.decode.table import bind
from tensorport_hub.errors import CheckpointError
from tests.core.held import decoded_items
from tests.core.samples import specs


def bound(kind, packed_rows, columns, t="BF16", shape=(1,)):
    """A decoder for 4 * `packed_rows` rows."""
    return kind(*specs([("x.weight", "U8", (packed_rows, columns)), ("x.weight_scale", t, shape)]))


def packed(codes):
    """Row i * quarter + k of `codes` in bits 2i of row k."""
    quarter = len(codes) // 4
    out = np.zeros((quarter, codes.shape[1]), np.uint8)
    for row in range(len(codes)):
        out[row % quarter] |= codes[row].astype(np.uint8) << 2 * (row // quarter)
    return out.reshape(-1)


@pytest.mark.parametrize("kind", [BitnetTimes, BitnetOver])
@pytest.mark.parametrize(("t", "shape"), [("BF16", (1,)), ("F16", ()), ("F32", (1,))])
def test_against_the_formula(kind, t, shape):
    """Quarters of the rows, -1 to 1, a scale that multiplies or divides in float32."""
    decoder = bound(kind, 3, 5, t, shape)
    codes = np.random.default_rng(0).integers(0, 4, (12, 5))
    scale = np.array([1.7], decoder.scale.dtype.numpy)
    out, overflow = decoder.decode([packed(codes), scale.view(np.uint8)], 0, 60)
    number = scale.astype(np.float32)[0]
    ternary = codes.astype(np.float32) - 1
    want = ternary * number if kind is BitnetTimes else ternary / number
    assert (decoder.shape, decoder.dtype.name, decoder.held) == ((12, 5), t, True)
    assert out.reshape(12, 5).tobytes() == want.tobytes()
    assert overflow == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.data())
def test_any_cut_gives_the_same_values(rows, columns, data):
    """Any range of items: inside a quarter of the rows from as many bytes, across quarters from all."""
    decoder = bound(BitnetTimes, rows, columns)
    decoder = bind(decoder.scheme, decoder.inputs, decoder.params)
    inputs = [
        np.random.default_rng(1).integers(0, 256, rows * columns, np.uint8),
        np.array([0.3], ml_dtypes.bfloat16).view(np.uint8),
    ]
    whole, _ = decoder.decode(inputs, 0, decoder.items)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, decoder.items)] * 2)))
    quarter = rows * columns
    inside = start // quarter == max(stop - 1, start) // quarter
    (first, last), scale = decoder.spans(start, stop)
    assert scale == (0, 2)
    assert (first, last - first) == ((start % quarter, stop - start) if inside else (0, quarter))
    assert decoded_items(decoder, inputs, start, stop)[0].tobytes() == whole[start:stop].tobytes()


@pytest.mark.parametrize(
    ("kind", "number"), [(BitnetTimes, np.nan), (BitnetTimes, np.inf), (BitnetOver, np.nan), (BitnetOver, 0)]
)
def test_a_scale_is_a_number_and_does_not_divide_by_zero(kind, number):
    """NaN, infinity, and 0 where it divides, are damage."""
    decoder = bound(kind, 1, 2, "F32")
    with pytest.raises(CheckpointError, match=r"x\.weight_scale"):
        decoder.decode([np.zeros(2, np.uint8), np.array([number], np.float32).view(np.uint8)], 0, 8)


def test_what_is_too_large_is_counted():
    """1 / 1e-39 is beyond F32; a code of 0 is not affected."""
    decoder = bound(BitnetOver, 1, 1, "F32")
    inputs = [np.array([0b10010010], np.uint8), np.array([1e-39], np.float32).view(np.uint8)]
    out, overflow = decoder.decode(inputs, 0, 4)
    assert out.tolist() == [np.inf, -np.inf, 0, np.inf]
    assert overflow == 3


@pytest.mark.parametrize(
    ("weight", "scale"),
    [
        (("I8", (4, 8)), ("BF16", (1,))),
        (("U8", (2, 4, 8)), ("BF16", (1,))),
        (("U8", (4, 8)), ("U8", (1,))),
        (("U8", (4, 8)), ("BF16", (4,))),
        (("U8", (4, 8)), ("BF16", (1, 1))),
    ],
)
def test_inputs_that_do_not_belong_together(weight, scale):
    """Dtypes and shapes are checked when the decoder is bound."""
    with pytest.raises(CheckpointError):
        BitnetTimes(*specs([("w", *weight), ("s", *scale)]))
