"""Quick roundings against `cast`, whose own tests are exact rationals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.decode.cast import Losses, cast
from tensorport_hub.core.decode.ordinary import PRESCALE, is_ordinary, magnitudes, narrow, round_in_place
from tensorport_hub.core.tensor import DTYPES

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

EXPONENTS = {"F16": (113, 142), "BF16": (1, 254)}
"""Biased float32 exponents of normal numbers of a format, the last of which may round to an infinity."""


def every_rounding(target: str) -> np.ndarray:
    """In each binade and sign: around all that 10 bits of mantissa can hold, and random mantissas; zeros."""
    low, high = EXPONENTS[target]
    rng = np.random.default_rng(0)
    kept = np.arange(1 << 10, dtype=np.uint32) << np.uint32(13)
    dropped = np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF], np.uint32)
    mantissa = np.concatenate(
        [(kept[:, None] | dropped).reshape(-1), rng.integers(0, 1 << 23, 500, np.uint32)]
    )
    bits = (np.arange(low, high + 1, dtype=np.uint32) << np.uint32(23))[:, None] | mantissa
    bits = np.concatenate([np.zeros(1, np.uint32), bits.reshape(-1)])
    return np.concatenate([bits, bits | np.uint32(1 << 31)]).view(np.float32)


@pytest.mark.parametrize("target", ["F16", "BF16"])
def test_every_rounding_of_ordinary_values(target):
    """In every binade, at, below and above every value and half-way point: the bits of numpy's rounding."""
    values = every_rounding(target)
    with np.errstate(over="ignore"):
        want = values.astype(DTYPES[target].numpy)
    finite = np.isfinite(want.astype(np.float32))
    assert finite.mean() > 0.99
    got = narrow(values * PRESCALE[target], DTYPES[target])
    np.testing.assert_array_equal(got.view(np.uint16)[finite], want.view(np.uint16)[finite])
    wide = values.copy()
    round_in_place(wide, DTYPES[target])
    np.testing.assert_array_equal(
        wide.view(np.uint32)[finite], want.astype(np.float32).view(np.uint32)[finite]
    )


def test_rounding_to_bfloat16_in_place_keeps_subnormals_and_infinities():
    """What has no exponent, and what has the largest, is rounded by the same addition."""
    bits = np.arange(0, 1 << 23, 97, dtype=np.uint32)
    bits = np.concatenate([bits, bits + np.uint32(0x7F000000), np.array([0x7F800000], np.uint32)])
    values = np.concatenate([bits, bits | np.uint32(1 << 31)]).view(np.float32)
    with np.errstate(over="ignore"):
        want = values.astype(DTYPES["BF16"].numpy).astype(np.float32)
    round_in_place(values, DTYPES["BF16"])
    np.testing.assert_array_equal(values.view(np.uint32), want.view(np.uint32))


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(["F16", "BF16"]))
def test_ordinary_products_lose_nothing(data, target):
    """Whatever factors are found ordinary: their products' bits are those of `cast`, which loses none."""
    scale = {"F16": 20, "BF16": 127}[target]
    factor = st.floats(-(2.0**scale), 2.0**scale, width=32) | st.floats(-1, 1, width=32)
    left, right = (
        np.array(data.draw(st.lists(factor, min_size=1, max_size=4)), np.float32) for _ in range(2)
    )
    if not is_ordinary(DTYPES[target], magnitudes(left), magnitudes(right)):
        return
    products = (left[:, None] * right).reshape(-1)
    want, losses = cast(products, DTYPES["F32"], DTYPES[target])
    assert losses == Losses()
    got = narrow((left[:, None] * (right * PRESCALE[target])).reshape(-1), DTYPES[target])
    assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize(
    ("target", "left", "right", "ordinary"),
    [
        ("F16", (1.0, 1.0), (2.0**-14, 65504.0), True),
        ("F16", (1.0, 1.0), (2.0**-15, 1.0), False),
        ("F16", (1.0, 1.0), (1.0, 65505.0), False),
        ("F16", (2.0, 2.0), (2.0**-15, 1.0), False),  # 2^-15 times 2^-112 may be inexact
        ("BF16", (0.5, 4.0), (2.0**-125, 2.0**125), True),
        ("BF16", (0.5, 4.0), (2.0**-126, 1.0), False),
        ("BF16", (0.5, 4.0), (1.0, 2.0**126), False),
        ("BF16", (1.0, 1.0), (1.0, np.inf), False),
        ("BF16", (1.0, 1.0), (1.0, np.nan), False),
        ("BF16", (np.inf, 0.0), (np.inf, 0.0), True),  # nothing but zeros
        ("F32", (1.0, 1.0), (1.0, 1.0), False),
    ],
)
def test_what_is_ordinary(target, left, right, ordinary):
    """Up to the bounds, and never what is infinite, NaN or not to be rounded."""
    assert is_ordinary(DTYPES[target], left, right) is ordinary


def test_magnitudes():
    """Zeros don't count below, signs nowhere, NaN above."""
    assert magnitudes(np.array([-0.0, -3, 2, 0], np.float32)) == (2.0, 3.0)
    assert magnitudes(np.zeros(3, np.float32)) == (np.inf, 0.0)
    assert magnitudes(np.zeros(0, np.float32)) == (np.inf, 0.0)
    least, most = magnitudes(np.array([np.nan, 1], np.float32))
    assert least == 1.0
    assert np.isnan(most)
