"""MXFP6 against the OCP specification's formula, by a bit stream read one code at a time."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.decode.mxfp6 import Mxfp6
from tensorport_hub.core.decode.table import bind
from tensorport_hub.errors import CheckpointError
from tests.core.samples import rounded, specs


def bound(rows: int, blocks: int, scales: str = "U8") -> Mxfp6:
    """A decoder for `rows` of `blocks` blocks."""
    return Mxfp6(
        *specs([("x.weight_packed", "U8", (rows, 24 * blocks)), ("x.weight_scale", scales, (rows, blocks))])
    )


def value(code: int, scale: int) -> Fraction:
    """OCP MX v1.0: sign, two exponent bits with bias 1, three mantissa bits; times 2^(scale - 127)."""
    exponent, mantissa = code >> 3 & 3, code & 7
    magnitude = Fraction(8 + mantissa, 8) * 2 ** (exponent - 1) if exponent else Fraction(mantissa, 8)
    return (-magnitude if code & 32 else magnitude) * Fraction(2) ** (scale - 127)


def formula(code: int, scale: int) -> int:
    """The bfloat16 code of an element, by exact rationals."""
    if scale == 255:
        return 0x7FC0
    return rounded(value(code, scale), "BF16") | (0x8000 if code == 32 else 0)


def packed(codes: list[int]) -> np.ndarray:
    """A little-endian bit stream: code i at bits 6i to 6i + 5 of one large number."""
    number = sum(code << (6 * i) for i, code in enumerate(codes))
    return np.frombuffer(number.to_bytes(len(codes) * 6 // 8, "little"), np.uint8)


def test_every_code_with_every_scale():
    """All 64 x 256 pairs are the formula's bits; what fits bfloat16 is exact; overflows are counted."""
    decoder = bound(256, 2)
    stored = np.tile(packed(list(range(64))), 256)
    scales = np.repeat(np.arange(256, dtype=np.uint8), 2)
    out, overflow = decoder.decode([stored, scales], 0, decoder.items)
    want = np.array([[formula(code, s) for code in range(64)] for s in range(256)], np.uint16)
    assert out.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(out.view(np.uint16).reshape(256, 64), want)
    assert overflow == np.count_nonzero((want & 0x7FFF) == 0x7F80) > 0
    for scale in (0, 1, 127, 252):
        wide = out.reshape(256, 64)[scale].astype(np.float64)
        assert [Fraction(x) for x in wide.tolist()] == [value(code, scale) for code in range(64)]


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_cut_at_a_grain_gives_the_same_bytes(data):
    """Pieces decoded from their spans join to the whole."""
    decoder = bound(data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)), "F8_E8M0")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    stored = [rng.integers(0, 256, t.nbytes, np.uint8) for t in decoder.inputs]
    whole, overflow = decoder.decode(stored, 0, decoder.items)
    cuts = data.draw(st.sets(st.integers(0, decoder.items // 32)))
    pieces, counts = [], 0
    for start, stop in pairwise(sorted({0, decoder.items // 32, *cuts})):
        spans = decoder.spans(32 * start, 32 * stop)
        cut = [s[a:b] for s, (a, b) in zip(stored, spans, strict=True)]
        values, lost = decoder.decode(cut, 32 * start, 32 * stop)
        pieces.append(values)
        counts += lost
    assert np.concatenate(pieces).tobytes() == whole.tobytes()
    assert counts == overflow


@pytest.mark.parametrize(
    ("weight", "scales"),
    [
        (("U8", (4, 50)), ("U8", (4, 2))),
        (("U8", (4, 48)), ("U8", (4, 3))),
        (("U8", (4, 48)), ("F32", (4, 2))),
        (("I8", (4, 48)), ("U8", (4, 2))),
        (("U8", (4, 0)), ("U8", (4, 0))),
        (("U8", (48,)), ("U8", (2,))),
    ],
)
def test_what_does_not_belong_together_is_refused(weight, scales):
    """A wrong dtype or shape is an error that names the tensor and says what was expected."""
    with pytest.raises(CheckpointError, match=r"MXFP6 (weight|scales) `x`.*expected U8"):
        Mxfp6(*specs([("x", *weight), ("x", *scales)]))


def test_the_table_binds_by_scheme():
    """A plan's scheme name and inputs make the same decoder again."""
    decoder = bound(2, 3)
    assert bind("mxfp6", decoder.inputs, decoder.params) == decoder
    assert decoder.shape == (2, 96)
