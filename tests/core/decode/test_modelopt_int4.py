"""ModelOpt int4 against plain Python: a nibble at a time, float32 products in the stated order."""

from __future__ import annotations

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.decode.modelopt_int4 import ModelOptInt4, ModelOptInt4Awq
from tensorport_hub.core.decode.table import bind
from tensorport_hub.errors import CheckpointError
from tests.core.held import decoded_items
from tests.core.samples import specs

BF16 = ml_dtypes.bfloat16


def pack(q):
    """Rows 2i and 2i + 1 of signed 4-bit integers in one byte each column, the even row low."""
    pairs = q.reshape(*q.shape[:-2], q.shape[-2] // 2, 2, q.shape[-1])
    return ((pairs[..., 0, :] & 15) | ((pairs[..., 1, :] & 15) << 4)).astype(np.uint8)


def sample(lead=(), rows=6, columns=12, group=4, pre=True, seed=0):
    """A decoder, its stored bytes, and the values by formula."""
    rng = np.random.default_rng(seed)
    groups = -(-columns // group)
    q = rng.integers(-8, 8, (*lead, rows, columns))
    scale = rng.normal(size=(*lead, rows, groups)).astype(np.float32)
    inputs = rng.normal(size=columns).astype(BF16)
    want = np.empty(q.shape, np.float32)
    for index in np.ndindex(*q.shape):
        want[index] = np.float32(q[index]) * scale[(*index[:-1], index[-1] // group)]
        if pre:
            want[index] *= np.float32(inputs[index[-1]])
    arrays = [("weight", "U8", pack(q)), ("scale", "F32", scale), ("pre", "BF16", inputs)][: 3 if pre else 2]
    tensors = specs([(name, dtype, array.shape) for name, dtype, array in arrays])
    decoder = (ModelOptInt4Awq if pre else ModelOptInt4)(*tensors, group_size=group)
    return decoder, [np.frombuffer(array.tobytes(), np.uint8) for _, _, array in arrays], want


def decode(decoder, stored, start, stop):
    """A range from nothing but the bytes that it needs."""
    return decoded_items(decoder, stored, start, stop)[0]


@pytest.mark.parametrize("pre", [False, True])
@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("columns", [12, 10])
def test_the_formula(pre, lead, columns):
    """Every element, with and without input scales, stacked, with a smaller last group."""
    decoder, stored, want = sample(lead=lead, pre=pre, columns=columns)
    assert decoder.shape == want.shape
    assert decoder.dtype.name == "BF16"
    assert decode(decoder, stored, 0, decoder.items).tobytes() == want.tobytes()
    assert bind(decoder.scheme, decoder.inputs, decoder.params) == decoder


def test_every_code():
    """All 256 bytes: the low nibble is the even row, two's complement."""
    decoder = ModelOptInt4(*specs([("w", "U8", (1, 256)), ("s", "F32", (2, 1))]), group_size=256)
    stored = [np.arange(256, dtype=np.uint8), np.ones(2, np.float32).view(np.uint8)]
    values = decode(decoder, stored, 0, 512).reshape(2, 256)
    signed = [*range(8), *range(-8, 0)]
    assert values[0].tolist() == [signed[byte & 15] for byte in range(256)]
    assert values[1].tolist() == [signed[byte >> 4] for byte in range(256)]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_cut_gives_the_same_bytes(data):
    """Cuts inside a pair of rows included."""
    draw = data.draw
    decoder, stored, want = sample(
        lead=draw(st.sampled_from([(), (2,)])),
        rows=2 * draw(st.integers(1, 5)),
        columns=draw(st.integers(1, 9)),
        group=draw(st.integers(1, 6)),
        pre=draw(st.booleans()),
    )
    rows = decoder.items // decoder.grain
    edges = sorted({0, rows, *draw(st.sets(st.integers(0, rows)))})
    pieces = [decode(decoder, stored, a * decoder.grain, b * decoder.grain) for a, b in pairwise(edges)]
    assert np.concatenate(pieces).tobytes() == want.tobytes()


@pytest.mark.parametrize("place", [1, 2])
def test_a_nan_scale_is_an_error(place):
    """Scales are numbers."""
    decoder, stored, _ = sample()
    stored[place] = np.full(stored[place].size, 0xFF, np.uint8)
    with pytest.raises(CheckpointError, match=f"`{decoder.inputs[place].name}`.*NaN"):
        decode(decoder, stored, 0, decoder.items)


@pytest.mark.parametrize(
    ("place", "dtype", "shape", "words"),
    [
        (0, "I8", (3, 12), "expected U8"),
        (0, "U8", (12,), "expected U8"),
        (1, "F32", (3, 3), r"\[6, 3\]"),
        (1, "F32", (6, 2), r"\[6, 3\]"),
        (1, "U8", (6, 3), r"\[6, 3\]"),
        (2, "BF16", (11,), r"\[12\]"),
        (2, "U8", (12,), r"\[12\]"),
    ],
)
def test_what_does_not_belong_together(place, dtype, shape, words):
    """A wrong dtype or shape of any input is an error that names it."""
    stored = [("weight", "U8", (3, 12)), ("scale", "F32", (6, 3)), ("pre", "BF16", (12,))]
    stored[place] = (stored[place][0], dtype, shape)
    with pytest.raises(CheckpointError, match=f"`{stored[place][0]}`.*{words}"):
        ModelOptInt4Awq(*specs(stored), group_size=4)
