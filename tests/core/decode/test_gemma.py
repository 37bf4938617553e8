"""Gemma's low bits against the formula, one element at a time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.decode.gemma import GemmaLowBits
from tensorport_hub.core.decode.table import bind
from tensorport_hub.errors import CheckpointError
from tests.core.samples import specs


def bound(bits, lead, rows, nbytes, blocks):
    """A decoder for rows of `nbytes`."""
    return GemmaLowBits(
        *specs([("x.weight", "U8", (*lead, rows, nbytes)), ("x.weight_scale", "F32", (*lead, rows, blocks))]),
        bits,
    )


def sample(decoder):
    """Any bytes, and scales of both signs."""
    rng = np.random.default_rng(3)
    scales = rng.normal(0, 1, decoder.scale.numel).astype(np.float32)
    return [rng.integers(0, 256, decoder.weight.nbytes, np.uint8), scales.view(np.uint8)]


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize("blocks", [1, 4])
def test_against_the_formula(bits, lead, blocks):
    """The low bits first, an offset of half the range, a scale a row or a block of it; in F32."""
    decoder = bound(bits, lead, 3, 8, blocks)
    inputs = sample(decoder)
    out, overflow = decoder.decode(inputs, 0, decoder.items)
    packed, scales = inputs[0].reshape(decoder.weight.shape), inputs[1].view(np.float32)
    per, columns = 8 // bits, decoder.shape[-1]
    want = np.empty(decoder.shape, np.float32)
    for place in np.ndindex(*decoder.shape):
        *row, column = place
        code = int(packed[(*row, column // per)]) >> bits * (column % per) & (1 << bits) - 1
        scale = scales.reshape(decoder.scale.shape)[(*row, column // (columns // blocks))]
        want[place] = np.float32(code - (1 << bits - 1)) * scale
    assert decoder.dtype.name == decoder.exact.name == "F32"
    assert out.tobytes() == want.tobytes()
    assert overflow == 0


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([2, 4]), st.sampled_from([1, 2]), st.sets(st.integers(0, 10)))
def test_any_cut_gives_the_same_values(bits, blocks, cuts):
    """Rows alone, from the bytes that `spans` names."""
    decoder = bound(bits, (2,), 5, 4, blocks)
    decoder = bind(decoder.scheme, decoder.inputs, decoder.params)
    inputs = sample(decoder)
    whole, _ = decoder.decode(inputs, 0, decoder.items)
    pieces = []
    for start, stop in pairwise(sorted({0, decoder.items} | {cut * decoder.grain for cut in cuts})):
        spans = decoder.spans(start, stop)
        piece = [part[a:b] for part, (a, b) in zip(inputs, spans, strict=True)]
        pieces.append(decoder.decode(piece, start, stop)[0].tobytes())
    assert b"".join(pieces) == whole.tobytes()


def test_what_is_too_large_is_counted():
    """-8 * 1e38 is beyond F32."""
    decoder = bound(4, (), 1, 2, 1)
    inputs = [np.array([0x00, 0x98], np.uint8), np.array([1e38], np.float32).view(np.uint8)]
    out, overflow = decoder.decode(inputs, 0, 4)
    assert (overflow, out[2]) == (2, 0)
    assert np.isinf(out[:2]).all()


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_scales_are_numbers(number):
    """NaN or infinity is damage."""
    decoder = bound(4, (), 1, 2, 1)
    with pytest.raises(CheckpointError, match=r"x\.weight_scale.*(NaN or infinity)"):
        decoder.decode([np.zeros(2, np.uint8), np.array([number], np.float32).view(np.uint8)], 0, 4)


@pytest.mark.parametrize(
    ("weight", "scale", "bits"),
    [
        (("I8", (4, 8)), ("F32", (4, 1)), 4),
        (("U8", (4, 8)), ("F32", (4, 1)), 8),
        (("U8", (8,)), ("F32", (1,)), 4),
        (("U8", (4, 8)), ("BF16", (4, 1)), 4),
        (("U8", (4, 8)), ("F32", (3, 1)), 4),
        (("U8", (4, 8)), ("F32", (4,)), 4),
        (("U8", (4, 8)), ("F32", (4, 0)), 4),
        (("U8", (4, 8)), ("F32", (4, 3)), 4),
        (("U8", (4, 0)), ("F32", (4, 1)), 4),
    ],
)
def test_inputs_that_do_not_belong_together(weight, scale, bits):
    """Dtypes and shapes are checked when the decoder is bound."""
    with pytest.raises(CheckpointError):
        GemmaLowBits(*specs([("w", *weight), ("s", *scale)]), bits)
