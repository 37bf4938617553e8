"""8-bit integers in blocks, with and without zero points."""

from __future__ import annotations

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.decode.int8 import Int8, Int8Zero
from tensorport_hub.core.decode.table import bind
from tensorport_hub.errors import CheckpointError
from tests.core.samples import specs

NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def make(shape, grid, scale_shape, *, scale="F32", zero=None, zero_shape=None, weight="I8"):
    """A decoder; `zero` is the dtype of zero points, if there are any."""
    stored = [("x.weight", weight, shape), ("x.weight_scale", scale, scale_shape)]
    if zero is None:
        return Int8(*specs(stored), *grid, scale)
    stored.append(("x.weight_zero_point", zero, scale_shape if zero_shape is None else zero_shape))
    return Int8Zero(*specs(stored), *grid, scale)


def decode(decoder, raw, start=0, stop=None):
    """Decode a range from its own spans."""
    stop = decoder.items if stop is None else stop
    spans = decoder.spans(start, stop)
    return decoder.decode([b.view(np.uint8)[i:j] for b, (i, j) in zip(raw, spans, strict=True)], start, stop)


@pytest.mark.parametrize("scale", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("zero", [None, -128, -3, 127])
def test_every_code(scale, zero):
    """All 256 codes: (q - zero) * s in float32, one rounding; the dtype is the scales'."""
    decoder = make((1, 256), (1, 1, 256), (1, 1), scale=scale, zero=None if zero is None else "I8")
    s = np.array([0.0173], np.float32).astype(NUMPY[scale])
    raw = [np.arange(256, dtype=np.uint8), s, np.array([zero or 0], np.int8)][: len(decoder.inputs)]
    values, overflow = decode(decoder, raw)
    codes = [c - 256 if c > 127 else c for c in range(256)]
    want = [np.float32(c - (zero or 0)) * np.float32(s[0]) for c in codes]
    assert values.tobytes() == np.array(want, np.float32).tobytes()
    assert (overflow, decoder.dtype.name) == (0, scale)
    assert bind(decoder.scheme, decoder.inputs, decoder.params) == decoder


def test_products_beyond_float32_are_counted():
    """A scale near float32's end overflows from 2 on."""
    decoder = make((1, 4), (1, 1, 4), (1,))
    values, overflow = decode(decoder, [np.array([0, 1, 2, -3], np.int8), np.array([3e38], np.float32)])
    assert np.isinf(values).tolist() == [False, False, True, True]
    assert overflow == 2


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_cut_at_a_row_gives_the_same_bytes(data):
    """Rows decoded from their own spans join to the whole and equal the formula."""
    height, width, rows, cols = (data.draw(st.integers(1, 12)) for _ in range(4))
    shape = (-(-height // rows), -(-width // cols))
    zero = data.draw(st.sampled_from([None, "I8"]))
    decoder = make((height, width), (1, rows, cols), shape, zero=zero)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    q = rng.integers(-128, 128, (height, width), np.int8)
    s = rng.uniform(1e-3, 1, shape).astype(np.float32)
    z = rng.integers(-128, 128, shape, np.int8)
    raw = [q.reshape(-1), s.reshape(-1), z.reshape(-1)][: len(decoder.inputs)]
    whole, _ = decode(decoder, raw)
    want = [
        np.float32(int(q[i, j]) - (int(z[i // rows, j // cols]) if zero else 0)) * s[i // rows, j // cols]
        for i in range(height)
        for j in range(width)
    ]
    assert whole.tobytes() == np.array(want, np.float32).tobytes()
    edges = sorted({0, height, *data.draw(st.sets(st.integers(0, height), max_size=3))})
    pieces = [decode(decoder, raw, a * width, b * width)[0] for a, b in pairwise(edges)]
    assert np.concatenate(pieces).tobytes() == whole.tobytes()


def test_what_does_not_belong_together_is_refused():
    """Wrong dtypes and shapes of each input, by name, with what was expected."""
    row = ((4, 8), (1, 1, 8), (4, 1))
    with pytest.raises(CheckpointError, match=r"weight `x\.weight` \(U8.*expected I8"):
        make(*row, weight="U8")
    with pytest.raises(CheckpointError, match=r"scale `x\.weight_scale` \(U8.*expected BF16 or F16 or F32"):
        make(*row, scale="U8")
    with pytest.raises(CheckpointError, match=r"scale `x\.weight_scale` .*expected \[4, 1\]"):
        make((4, 8), (1, 1, 8), (5, 1))
    with pytest.raises(CheckpointError, match=r"zero point `x\.weight_zero_point` .*expected I8 \[4, 1\]"):
        make(*row, zero="I8", zero_shape=(4,))
    with pytest.raises(CheckpointError, match=r"zero point `x\.weight_zero_point` \(I32 .*expected I8"):
        make(*row, zero="I32")


def test_a_scale_that_is_no_number_is_damage():
    """A NaN scale is an error that names the tensor."""
    decoder = make((1, 2), (1, 1, 2), (1,))
    with pytest.raises(CheckpointError, match=r"`x\.weight_scale`.*NaN"):
        decode(decoder, [np.zeros(2, np.int8), np.array([np.nan], np.float32)])
