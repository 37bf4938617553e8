"""Rounding: every 8- and 16-bit code, every boundary of the wide formats, against exact rationals."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.decode.cast import Losses, cast, clip_infinities, is_castable
from tensorport_hub.core.tensor import DTYPES
from tests.core.samples import rounded

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

WORDS = {"F16": np.uint16, "BF16": np.uint16, "F32": np.uint32}
CANONICAL_NAN = {"F16": 0x7E00, "BF16": 0x7FC0, "F32": 0x7FC00000}
INFINITY = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000}
SIGN = {"F16": 0x8000, "BF16": 0x8000, "F32": 0x80000000}

SOURCES = {  # exponent bits, mantissa bits, bias
    "BF16": (8, 7, 127),
    "F16": (5, 10, 15),
    "F8_E4M3": (4, 3, 7),
    "F8_E5M2": (5, 2, 15),
    "F8_E4M3FNUZ": (4, 3, 8),
    "F8_E5M2FNUZ": (5, 2, 16),
}


def meaning(name: str, code: int) -> Fraction | str:
    """The exact value of a code, or "nan", "inf", "-inf", "-0"; from the formats' definitions."""
    if name == "F8_E8M0":
        return "nan" if code == 255 else Fraction(2) ** (code - 127)
    exponent_bits, mantissa_bits, bias = SOURCES[name]
    sign = code >> (exponent_bits + mantissa_bits)
    exponent = code >> mantissa_bits & (2**exponent_bits - 1)
    mantissa = code & (2**mantissa_bits - 1)
    top = exponent == 2**exponent_bits - 1
    if name.endswith("FNUZ"):
        if code == 0x80:
            return "nan"
    elif name == "F8_E4M3":
        if top and mantissa == 7:
            return "nan"
    elif top:
        return "nan" if mantissa else "-inf" if sign else "inf"
    if exponent:
        value = (1 + Fraction(mantissa, 2**mantissa_bits)) * Fraction(2) ** (exponent - bias)
    else:
        value = Fraction(mantissa, 2**mantissa_bits) * Fraction(2) ** (1 - bias)
    return "-0" if sign and not value else -value if sign else value


def exact(value: float) -> Fraction | str:
    """The meaning of a Python float."""
    if np.isnan(value):
        return "nan"
    if np.isinf(value):
        return "inf" if value > 0 else "-inf"
    return "-0" if value == 0 and np.signbit(value) else Fraction(*value.as_integer_ratio())


def expected(value: Fraction | str, target: str) -> int:
    """The code that a value must become."""
    special = {"nan": CANONICAL_NAN, "inf": INFINITY, "-0": SIGN}
    if value == "-inf":
        return INFINITY[target] | SIGN[target]
    return special[value][target] if isinstance(value, str) else rounded(value, target)


def check(values: np.ndarray, meanings: list[Fraction | str], source: str, target: str) -> Losses:
    """`cast` gives the expected codes and counts; `saturate` changes the overflows, and only them."""
    want = np.array([expected(m, target) for m in meanings], WORDS[target])
    before = values.tobytes()
    values.flags.writeable = False
    out, losses = cast(values, DTYPES[source], DTYPES[target])
    np.testing.assert_array_equal(out.view(WORDS[target]), want)
    magnitude = want & ~np.array(SIGN[target], WORDS[target])
    finite = np.array([isinstance(m, Fraction) for m in meanings], bool)
    zero = np.array([m == 0 for m in meanings], bool)
    over = finite & (magnitude == INFINITY[target])
    assert losses == Losses(int(over.sum()), int((finite & ~zero & (magnitude == 0)).sum()))
    clipped, same = cast(values, DTYPES[source], DTYPES[target], saturate=True)
    np.testing.assert_array_equal(clipped.view(WORDS[target]), np.where(over, want - 1, want))
    assert same == losses
    assert out.dtype == DTYPES[target].numpy
    assert values.tobytes() == before
    return losses


@pytest.mark.parametrize(
    ("source", "target"),
    [(s, t) for s in [*SOURCES, "F8_E8M0"] for t in WORDS if s != t and (s, t) != ("BF16", "F32")],
)
def test_every_code_is_rounded_by_the_definition(source, target):
    """All 65,536 or 256 codes: nearest, ties to even, -0 and inf kept, NaN canonical, losses counted."""
    kind = DTYPES[source].numpy
    codes = np.arange(1 << DTYPES[source].nbits, dtype=np.dtype(f"u{kind.itemsize}"))
    check(codes.view(kind), [meaning(source, int(code)) for code in codes], source, target)


@pytest.mark.parametrize("target", ["F32", "BF16"])
@pytest.mark.parametrize("exponent", [0, 31])
def test_float16_without_normal_numbers(target, exponent):
    """Zeros and subnormal numbers alone, or infinities and NaNs alone, come out as among others."""
    codes = np.arange(1 << 16, dtype=np.uint16)
    codes = codes[codes >> 10 & 31 == exponent]
    check(codes.view(np.float16), [meaning("F16", int(code)) for code in codes], "F16", target)


def test_bfloat16_widens_bit_by_bit():
    """All 65,536 bfloat16 codes become float32 by appending zeros: NaN payloads and signs stay."""
    codes = np.arange(1 << 16, dtype=np.uint16)
    out, losses = cast(codes.view(ml_dtypes.bfloat16), DTYPES["BF16"], DTYPES["F32"])
    np.testing.assert_array_equal(out.view(np.uint32), codes.astype(np.uint32) << 16)
    assert losses == Losses()
    finite = np.isfinite(out)
    theirs = codes.view(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(out[finite].view(np.uint32), theirs[finite].view(np.uint32))


def test_the_documented_number_of_codes_underflow():
    """26,112 of the 65,536 bfloat16 codes become 0 in float16."""
    codes = np.arange(1 << 16, dtype=np.uint16)
    _, losses = cast(codes.view(ml_dtypes.bfloat16), DTYPES["BF16"], DTYPES["F16"])
    assert losses.underflow == 26_112
    wide = (codes.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(all="ignore"):
        half = wide.astype(np.float16)
    assert losses.underflow == np.count_nonzero((half == 0) & (wide != 0))
    assert losses.overflow == np.count_nonzero(np.isinf(half) & np.isfinite(wide))


@pytest.mark.parametrize("source", [*SOURCES, "F8_E8M0"])
@pytest.mark.parametrize("target", WORDS)
def test_numpy_and_ml_dtypes_agree(source, target):
    """Where the value is no NaN, the bits are those of numpy's and ml_dtypes' own conversion by float32."""
    kind = DTYPES[source].numpy
    values = np.arange(1 << DTYPES[source].nbits, dtype=np.dtype(f"u{kind.itemsize}")).view(kind)
    out, _ = cast(values, DTYPES[source], DTYPES[target])
    with np.errstate(all="ignore"):
        theirs = values.astype(np.float32).astype(DTYPES[target].numpy)
    real = ~np.isnan(values.astype(np.float32))
    np.testing.assert_array_equal(out[real].view(WORDS[target]), theirs[real].view(WORDS[target]))


def edges(target: str) -> list[Fraction]:
    """Every non-negative finite value of a 16-bit format, and what lies half-way to the next one."""
    finite = [Fraction(meaning(target, code)) for code in range(INFINITY[target])]
    top = finite[-1] + (finite[-1] - finite[-2])
    return [v for a, b in zip(finite, [*finite[1:], top], strict=True) for v in (a, (a + b) / 2)]


@pytest.mark.parametrize("target", ["BF16", "F16"])
def test_float32_is_rounded_right_around_every_boundary(target):
    """Each target value, each half-way point, and their float32 neighbours, negative ones too."""
    values = np.array([float(v) for v in edges(target)], np.float32)
    bits = values.view(np.uint32)
    near = np.unique(np.concatenate([bits, bits + 1, np.maximum(bits, 1) - 1]))
    near[1::2] |= 0x80000000
    values = near.view(np.float32)
    meanings = [exact(float(value)) for value in values]
    losses = check(values, meanings, "F32", target)
    assert losses.overflow > 0
    assert losses.underflow > 0
    with np.errstate(all="ignore"):
        theirs = values.astype(DTYPES[target].numpy)
    out, _ = cast(values, DTYPES["F32"], DTYPES[target])
    np.testing.assert_array_equal(out.view(np.uint16), theirs.view(np.uint16))


@pytest.mark.parametrize("target", ["BF16", "F16"])
def test_float64_is_rounded_once(target):
    """A value a hair beside a half-way point is rounded by the hair, which float32 would have swallowed."""
    middles = np.array([float(v) for v in edges(target)[1::2]])
    hair = np.float64(2.0**-50)
    values = np.concatenate([middles, middles * (1 + hair), middles * (1 - hair)])
    values[1::2] *= -1
    check(values, [exact(float(value)) for value in values], "F64", target)
    with np.errstate(all="ignore"):
        twice = values.astype(np.float32).astype(DTYPES[target].numpy).view(np.uint16)
    once, _ = cast(values, DTYPES["F64"], DTYPES[target])
    assert np.count_nonzero(twice != once.view(np.uint16)) > len(middles) // 2


SPECIAL = [0.0, -0.0, 5e-324, -5e-324, 2.0**-149, 2.0**-150, 2.0**-134, 2.0**-133, -(2.0**-134), 2.0**-25]
SPECIAL += [
    2.0**-24,
    65504.0,
    65519.999,
    65520.0,
    3.3895313892515355e38,
    3.4028235677973366e38,
    2.0**128,
    1e300,
]


@pytest.mark.parametrize("target", WORDS)
def test_float64_extremes(target):
    """Zeros, the smallest and largest of each format, infinities and NaNs with payloads."""
    payloads = np.array([0x7FF0000000000001, 0xFFF8000000000123, 0x7FF8000000000000], np.uint64)
    values = np.concatenate([np.array([*SPECIAL, np.inf, -np.inf]), payloads.view(np.float64)])
    check(values, [exact(float(value)) for value in values], "F64", target)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=8), st.sampled_from([*WORDS]))
def test_any_float64_is_rounded_by_the_definition(values, target):
    """Whatever the value, its code is that of exact rational rounding."""
    check(np.array(values, np.float64), [exact(value) for value in values], "F64", target)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), max_size=8), st.sampled_from(["F16", "BF16"]))
def test_any_float32_code_is_rounded_by_the_definition(codes, target):
    """Whatever the float32 bits, NaN and infinities included, the code is the right one."""
    values = np.array(codes, np.uint32).view(np.float32)
    check(values, [exact(value) for value in values.tolist()], "F32", target)


@pytest.mark.parametrize("name", WORDS)
def test_equal_dtypes_pass(name):
    """Nothing to round: the very array comes back, payloads and all."""
    values = np.array([0x7F81, 0xFFFF, 0x8000], np.uint16).astype(WORDS[name]).view(DTYPES[name].numpy)
    out, losses = cast(values, DTYPES[name], DTYPES[name], saturate=True)
    assert out is values
    assert losses == Losses()


@pytest.mark.parametrize("source", ["F64", "F32", "BF16", "F16", "F8_E4M3"])
@pytest.mark.parametrize("target", WORDS)
def test_nothing_is_rounded_to_nothing(source, target):
    """An empty array stays empty, in the target's dtype."""
    out, losses = cast(np.zeros(0, DTYPES[source].numpy), DTYPES[source], DTYPES[target])
    assert out.shape == (0,)
    assert out.dtype == DTYPES[target].numpy
    assert losses == Losses()


@pytest.mark.parametrize("name", WORDS)
def test_infinities_are_clipped_and_nothing_else(name):
    """Both infinities become the largest finite value of their sign; NaN, -0 and finite values stay."""
    inf, sign = INFINITY[name], SIGN[name]
    codes = [inf, inf | sign, inf + 1, inf - 1, CANONICAL_NAN[name] | sign, 0, sign, 1]
    bits = np.array(codes, WORDS[name])
    clip_infinities(bits.view(DTYPES[name].numpy), DTYPES[name])
    assert bits.tolist() == [inf - 1, (inf - 1) | sign, *codes[2:]]


def test_only_whole_floats_can_be_rounded():
    """Integers, bools, complex numbers and packed floats are not cast."""
    castable = {name for name, dtype in DTYPES.items() if is_castable(dtype)}
    assert castable == {"F64", "F32", *SOURCES, "F8_E8M0"}


def test_losses_add_up():
    """Counts of pieces are the counts of the whole."""
    total = Losses(1, 2)
    total.add(Losses(10, 20))
    assert total == Losses(11, 22)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_float16_is_the_same_whether_few_or_all_values_are_extreme(data):
    """Among ordinary weights, each extreme one is rounded and counted as it is alone."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    weights = (rng.normal(size=64) * 2.0 ** data.draw(st.integers(-16, 12))).astype(np.float32)
    weights[rng.random(64) < 0.1] = 0
    codes = data.draw(st.lists(st.integers(0, 2**32 - 1), max_size=8))
    weights[rng.permutation(64)[: len(codes)]] = np.array(codes, np.uint32).view(np.float32)
    check(weights, [exact(value) for value in weights.tolist()], "F32", "F16")
