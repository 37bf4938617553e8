"""Stored bytes to file bytes: tiles, cuts, rounding and what to do with overflows."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.decode.cast import Losses
from tensorport_hub.core.recipe import Recipe
from tensorport_hub.core.render import TILE, render
from tensorport_hub.core.strips import contiguous
from tensorport_hub.core.tensor import DTYPES
from tests.core.samples import Stored, made_from, rounded, specs

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
WORDS = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32}
PRECISION = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
INFINITY = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}


def recipe_of(*stored: Stored, precision: str = "keep") -> Recipe:
    (made,) = made_from(specs(stored), precision=precision)
    return made


def rendered(recipe: Recipe, start: int, stop: int, raw: list[np.ndarray], offsets=None, saturate=False):
    """All bytes of a range, and the losses; views are copied before the next one is made."""
    losses = Losses()
    inputs = [
        (data, contiguous(at, at + data.size))
        for data, at in zip(raw, offsets or [0] * len(raw), strict=True)
    ]
    outputs = [(None, losses)]
    rendering = render(recipe.decoder, recipe.dtype, start, stop, inputs, outputs, saturate=saturate)
    return b"".join(items.tobytes() for (items,) in rendering), losses


def mxfp4(blocks: int, precision: str = "keep") -> Recipe:
    return recipe_of(
        ("x_blocks", "U8", (1, blocks, 16)), ("x_scales", "U8", (1, blocks)), precision=precision
    )


@pytest.mark.parametrize("target", WORDS)
def test_overflows_of_decoding_and_of_rounding_in_each_target(target):
    """MXFP4 up to 6 * 2^127 in each precision: overflows are counted, infinite or the largest finite."""
    codes = np.arange(8, dtype=np.uint8)
    blocks = np.tile(codes | (codes + 8) << 4, 2)
    scales = np.array([120, 141, 142, 143, 252, 253, 254], np.uint8)
    recipe = mxfp4(len(scales), PRECISION[target])
    raw = [np.tile(blocks, len(scales)), scales]
    exact = [
        Fraction(E2M1[c]) * Fraction(2) ** (int(s) - 127) * sign
        for s in scales
        for _ in range(2)
        for c in range(8)
        for sign in (1, -1)
    ]
    want = np.array([rounded(v, target) for v in exact], WORDS[target])
    sign_bit = np.array(1 << (WORDS[target]().itemsize * 8 - 1), WORDS[target])
    want[1::2] |= sign_bit
    over = (want & ~sign_bit) == INFINITY[target]
    assert over.sum() >= 24
    got, losses = rendered(recipe, 0, want.size, raw)
    np.testing.assert_array_equal(np.frombuffer(got, WORDS[target]), want)
    assert losses == Losses(int(over.sum()), 0)
    got, losses = rendered(recipe, 0, want.size, raw, saturate=True)
    np.testing.assert_array_equal(np.frombuffer(got, WORDS[target]), np.where(over, want - 1, want))
    assert losses == Losses(int(over.sum()), 0)


@pytest.mark.parametrize("target", WORDS)
@pytest.mark.parametrize("saturate", [False, True])
def test_stored_infinities_are_no_overflow(target, saturate):
    """An infinity or NaN that was stored stays what it is, and is not counted."""
    stored = np.array([np.inf, -np.inf, np.nan, 1.0, -0.0])
    recipe = recipe_of(("x", "F64", (5,)), precision=PRECISION[target])
    got, losses = rendered(recipe, 0, 5, [stored.view(np.uint8)], saturate=saturate)
    want = stored.astype(DTYPES[target].numpy).astype(np.float32)
    np.testing.assert_array_equal(np.frombuffer(got, DTYPES[target].numpy).astype(np.float32), want)
    assert np.signbit(np.frombuffer(got, DTYPES[target].numpy)[4].astype(np.float32))
    assert losses == Losses()


def test_saturation_and_counts_of_plain_floats():
    """float32 to float16: 65,520 overflows, 65,519 does not; 2^-25 underflows."""
    stored = np.array([65519.0, 65520.0, -1e30, 2.0**-25, -(2.0**-26), 2.0**-24, 0.0], np.float32)
    recipe = recipe_of(("x", "F32", (7,)), precision="float16")
    got, losses = rendered(recipe, 0, 7, [stored.view(np.uint8)])
    assert np.frombuffer(got, np.float16).tolist() == [65504, np.inf, -np.inf, 0, 0, 2.0**-24, 0]
    assert losses == Losses(2, 2)
    got, losses = rendered(recipe, 0, 7, [stored.view(np.uint8)], saturate=True)
    assert np.frombuffer(got, np.float16).tolist() == [65504, 65504, -65504, 0, 0, 2.0**-24, 0]
    assert losses == Losses(2, 2)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_cut_gives_the_same_bytes_and_losses(data):
    """A range in pieces, from buffers that begin anywhere before them, equals the whole, losses too."""
    precision = data.draw(st.sampled_from(["keep", *PRECISION.values()]))
    saturate = data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    kind = data.draw(st.sampled_from(["mxfp4", "F32", "BF16", "F16", "F8_E4M3", "F64"]))
    if kind == "mxfp4":
        recipe = mxfp4(data.draw(st.integers(1, 20)), precision)
    else:
        recipe = recipe_of(("x", kind, (data.draw(st.integers(1, 200)),)), precision=precision)
    raw = [rng.integers(0, 256, t.nbytes, np.uint8) for t in recipe.decoder.inputs]
    items, grain = recipe.decoder.items, recipe.decoder.grain
    whole, losses = rendered(recipe, 0, items, raw, saturate=saturate)
    assert len(whole) == items * recipe.dtype.itemsize
    cuts = data.draw(st.sets(st.integers(0, items // grain), max_size=6))
    edges = [0, *sorted(cut * grain for cut in cuts), items]
    joined, total = b"", Losses()
    for start, stop in pairwise(edges):
        spans = recipe.decoder.spans(start, stop)
        offsets = [data.draw(st.integers(0, first)) for first, _ in spans]
        pieces = [r[at:last] for r, at, (_, last) in zip(raw, offsets, spans, strict=True)]
        got, lost = rendered(recipe, start, stop, pieces, offsets, saturate)
        joined += got
        total.add(lost)
    assert joined == whole
    assert total == losses


@pytest.mark.parametrize("precision", ["keep", "float16"])
def test_tiles_join_without_seam(precision):
    """A range of several tiles, the last one short, equals one decoding of all of it."""
    blocks = 2 * TILE // 32 + 3
    recipe = mxfp4(blocks, precision)
    rng = np.random.default_rng(1)
    raw = [rng.integers(0, 256, blocks * 16, np.uint8), rng.integers(110, 135, blocks, np.uint8)]
    got, _ = rendered(recipe, 0, blocks * 32, raw)
    values, _ = recipe.decoder.decode(raw, 0, blocks * 32)
    assert got == (values if precision == "keep" else values.astype(np.float16)).tobytes()


def test_untouched_tensors_are_not_copied():
    """Under `keep` the one view handed out is the stored buffer itself."""
    stored = np.arange(64, dtype=np.uint8)
    recipe = recipe_of(("x", "BF16", (32,)))
    inputs = [(stored[4:], contiguous(4, 64))]
    ((view,),) = render(recipe.decoder, recipe.dtype, 4, 20, inputs, [(None, Losses())], saturate=True)
    assert view.tobytes() == stored[8:40].tobytes()
    assert np.shares_memory(view, stored)


def test_packed_floats_pass_in_bytes():
    """Items of an F4 tensor are bytes: a cut of items 1 to 3 is bytes 1 to 3."""
    stored = np.arange(6, dtype=np.uint8)
    got, losses = rendered(recipe_of(("x", "F4", (3, 4))), 1, 3, [stored])
    assert got == b"\x01\x02"
    assert losses == Losses()


def test_widening_keeps_bfloat16_nans():
    """bfloat16 to float32 appends zeros to every code, NaN payloads included."""
    codes = np.array([0x7F81, 0xFFC1, 0x8000], np.uint16)
    got, losses = rendered(recipe_of(("x", "BF16", (3,)), precision="float32"), 0, 3, [codes.view(np.uint8)])
    assert np.frombuffer(got, np.uint32).tolist() == [int(c) << 16 for c in codes]
    assert losses == Losses()
    assert ml_dtypes.bfloat16 == DTYPES["BF16"].numpy
