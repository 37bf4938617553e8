"""MXFP4 against the OCP specification's formula, and against a checkpoint that foreign tools packed."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.decode.mxfp4 import Mxfp4
from tensorport_hub.core.decode.table import SCHEMES, bind
from tensorport_hub.core.safetensors import parse_header
from tensorport_hub.core.tensor import TensorSpec
from tensorport_hub.errors import CheckpointError
from tests.core.samples import rounded, specs

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "gptoss_mxfp4"
INFINITY = 0x7F80


def bound(*shape: int) -> Mxfp4:
    """A decoder for blocks of shape [*shape, 16]."""
    return Mxfp4(*specs([("x_blocks", "U8", (*shape, 16)), ("x_scales", "U8", shape)]))


def value(code: int, scale: int) -> Fraction:
    """OCP MX v1.0: sign, two exponent bits with bias 1, one mantissa bit; times 2^(scale - 127)."""
    exponent, mantissa = code >> 1 & 3, code & 1
    magnitude = Fraction(2 + mantissa, 2) * 2 ** (exponent - 1) if exponent else Fraction(mantissa, 2)
    return (-magnitude if code & 8 else magnitude) * Fraction(2) ** (scale - 127)


def formula(code: int, scale: int) -> int:
    """The bfloat16 code of an element, by exact rationals."""
    if scale == 255:
        return 0x7FC0
    exact = value(code, scale)
    return rounded(exact, "BF16") | (0x8000 if code == 8 else 0)


def test_every_code_with_every_scale_in_both_nibbles():
    """All 16 × 256 pairs, low nibble first: the formula's bits, counted overflows, canonical NaN."""
    decoder = bound(256, 1)
    low = np.arange(16, dtype=np.uint8)
    blocks = np.tile(low | (low[::-1] << 4), (256, 1)).astype(np.uint8)
    scales = np.arange(256, dtype=np.uint8)
    out, overflow = decoder.decode([blocks.reshape(-1), scales], 0, decoder.items)
    want = np.array(
        [[formula(code, s) for i in range(16) for code in (i, 15 - i)] for s in range(256)], np.uint16
    )
    np.testing.assert_array_equal(out.view(np.uint16).reshape(256, 32), want)
    assert out.dtype == ml_dtypes.bfloat16
    assert overflow == np.count_nonzero((want & 0x7FFF) == INFINITY)
    # scale 254 overflows from 2.0 (4 magnitudes), scale 253 from 4.0 (2), in two signs and two nibbles
    assert overflow == (4 + 2) * 2 * 2


def test_what_fits_is_exact():
    """No finite element is rounded: bfloat16 holds every product below 2^128, subnormals included."""
    for scale in range(255):
        for code in range(16):
            got = formula(code, scale)
            if got & 0x7FFF != INFINITY:
                wide = np.array([got << 16], np.uint32).view(np.float32)[0]
                assert Fraction(*float(wide).as_integer_ratio()) == value(code, scale)
            else:
                assert abs(value(code, scale)) >= Fraction(2) ** 128


@pytest.mark.parametrize(
    ("scale", "byte", "low", "high"),
    [
        (127, 0x21, 0x3F00, 0x3F80),  # 0.5, 1.0
        (127, 0x80, 0x0000, 0x8000),  # 0, -0
        (0, 0x91, 0x0020, 0x8020),  # 0.5 * 2^-127: a subnormal; scale 0 is no zero
        (255, 0x08, 0x7FC0, 0x7FC0),  # NaN, even of -0
        (254, 0x32, 0x7F00, 0x7F40),  # 2^127, 1.5 * 2^127: the largest that fit
        (254, 0xC4, INFINITY, 0xFF80),  # 2^128, -2^128: infinities
        (253, 0x65, 0x7F40, INFINITY),  # 3 * 2^126 fits, 4 * 2^126 does not
    ],
)
def test_corners(scale, byte, low, high):
    """The documented corners by hand."""
    blocks = np.full(16, byte, np.uint8)
    out, overflow = bound(1, 1).decode([blocks, np.array([scale], np.uint8)], 0, 32)
    assert out.view(np.uint16).tolist() == [low, high] * 16
    assert overflow == 16 * ((low & 0x7FFF == INFINITY) + (high & 0x7FFF == INFINITY))


def test_a_nan_block_beside_an_overflow_is_not_counted():
    """Only finite values that became infinite count."""
    scales = np.array([255, 254, 0], np.uint8)
    _, overflow = bound(1, 3).decode([np.full(48, 0x77, np.uint8), scales], 0, 96)
    assert overflow == 32


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_cut_at_a_grain_gives_the_same_bytes(data):
    """However a tensor is cut at multiples of 32, the pieces decoded from their spans join to the whole."""
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=3)))
    decoder = bound(*shape)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    scales = rng.integers(0, 256, np.prod(shape), np.uint8)
    blocks = rng.integers(0, 256, scales.size * 16, np.uint8)
    whole, overflow = decoder.decode([blocks, scales], 0, decoder.items)
    assert whole.size == decoder.items == np.prod(decoder.shape)
    cuts = data.draw(st.sets(st.integers(0, scales.size)))
    edges = sorted({0, scales.size, *cuts})
    pieces, counts = [], 0
    for start, stop in pairwise(edges):
        (a, b), (c, d) = decoder.spans(start * decoder.grain, stop * decoder.grain)
        values, lost = decoder.decode([blocks[a:b], scales[c:d]], start * 32, stop * 32)
        pieces.append(values)
        counts += lost
    assert np.concatenate(pieces).tobytes() == whole.tobytes()
    assert counts == overflow


def test_spans_cover_the_inputs():
    """The whole output needs the whole of both inputs, each range its own share."""
    decoder = bound(2, 3, 5)
    assert decoder.shape == (2, 3, 160)
    assert decoder.parameters == decoder.items == 960
    assert decoder.spans(0, 960) == ((0, decoder.blocks.nbytes), (0, decoder.scales.nbytes))
    assert decoder.spans(32, 96) == ((16, 48), (1, 3))
    assert decoder.spans(64, 64) == ((32, 32), (2, 2))


def test_an_empty_tensor_decodes_to_nothing():
    """No experts, no values."""
    decoder = bound(0, 4, 2)
    out, overflow = decoder.decode([np.zeros(0, np.uint8), np.zeros(0, np.uint8)], 0, decoder.items)
    assert (out.size, overflow, decoder.shape) == (0, 0, (0, 4, 64))


@pytest.mark.parametrize(
    ("blocks", "scales"),
    [
        (("U8", (2, 4, 3, 15)), ("U8", (2, 4, 3))),
        (("U8", (2, 4, 3, 32)), ("U8", (2, 4, 3))),
        (("U8", (2, 16)), ("U8", (2,))),
        (("U8", (16,)), ("U8", ())),
        (("I8", (2, 4, 3, 16)), ("U8", (2, 4, 3))),
        (("F8_E8M0", (2, 4, 3, 16)), ("U8", (2, 4, 3))),
        (("U8", (2, 4, 3, 16)), ("F8_E8M0", (2, 4, 3))),
        (("U8", (2, 4, 3, 16)), ("U8", (2, 4, 2))),
        (("U8", (2, 4, 3, 16)), ("U8", (2, 12))),
        (("U8", (2, 4, 3, 16)), ("U8", (2, 4, 3, 2))),
        (("F8_E8M0", (4, 48)), ("U8", (4, 3))),
        (("I8", (4, 48)), ("F8_E4M3", (4, 3))),
        (("U8", (4, 50)), ("U8", (4, 3))),
        (("U8", (4, 48)), ("U8", (3, 4))),
        (("U8", (4, 0)), ("U8", (4, 0))),
        (("F4", (4, 48)), ("U8", (4, 3))),
        (("U8", (48,)), ("U8", (3,))),
        (("U8", (2, 4, 3, 16)), ("U8", ())),
    ],
)
def test_what_does_not_belong_together_is_refused(blocks, scales):
    """A wrong dtype or shape of either tensor is an error that names it and says what was expected."""
    with pytest.raises(
        CheckpointError, match=r"MXFP4 (blocks|scales|weight) `x_(blocks|scales)`.*expected U8"
    ):
        Mxfp4(*specs([("x_blocks", *blocks), ("x_scales", *scales)]))


@pytest.mark.parametrize("scales", ["U8", "F8_E8M0"])
@pytest.mark.parametrize(("weight", "width"), [("U8", 48), ("I8", 48), ("F4", 96)])
def test_the_row_packed_spelling_is_the_same_layout(weight, width, scales):
    """The same bytes without an axis of blocks, in every dtype that producers give them, decode the same."""
    decoder = Mxfp4(*specs([("x.weight", weight, (2, 4, width)), ("x.scale", scales, (2, 4, 3))]))
    other = bound(2, 4, 3)
    rng = np.random.default_rng(0)
    stored = [rng.integers(0, 256, t.nbytes, np.uint8) for t in other.inputs]
    assert decoder.shape == other.shape == (2, 4, 96)
    assert [t.nbytes for t in decoder.inputs] == [t.nbytes for t in other.inputs]
    assert decoder.spans(96, 288) == other.spans(96, 288)
    got, want = decoder.decode(stored, 0, 768), other.decode(stored, 0, 768)
    assert (got[0].tobytes(), got[1]) == (want[0].tobytes(), want[1])


def test_the_table_binds_by_scheme():
    """A plan's scheme name and inputs make the same decoder again."""
    decoder = bound(1, 2, 3)
    assert bind("mxfp4", decoder.inputs, decoder.params) == decoder
    assert {name: kind.scheme for name, kind in SCHEMES.items()} == {name: name for name in SCHEMES}


def test_a_packed_checkpoint_decodes_as_its_reference():
    """Experts packed by compressed-tensors equal what transformers decodes, whose last axes are swapped."""
    data = (CHECKPOINT / "model.safetensors").read_bytes()
    found: dict[str, TensorSpec] = {
        t.name: t for t in parse_header(data, file="model.safetensors", file_size=len(data)).tensors
    }
    names = [name.removesuffix("_blocks") for name in found if name.endswith("_blocks")]
    assert len(names) == 2
    for name in names:
        decoder = Mxfp4(found[f"{name}_blocks"], found[f"{name}_scales"])
        raw = [np.frombuffer(data[t.start : t.stop], np.uint8) for t in decoder.inputs]
        values, overflow = decoder.decode(raw, 0, decoder.items)
        reference = np.load(CHECKPOINT / "expected" / f"{name}.npy").swapaxes(-1, -2)
        assert overflow == 0
        assert decoder.shape == reference.shape
        np.testing.assert_array_equal(values.reshape(decoder.shape).astype(np.float32), reference)
