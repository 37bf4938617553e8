"""NVFP4, packed along rows and along columns, against its formula in float32, one element at a time."""

from __future__ import annotations

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.decode.decoder import Decoder
from tensorport_hub.core.decode.nvfp4 import Nvfp4, Nvfp4Awq, Nvfp4Over, Nvfp4Times
from tensorport_hub.core.decode.nvfp4_bmm import Nvfp4Bmm
from tensorport_hub.core.decode.table import bind
from tensorport_hub.errors import CheckpointError
from tests.core.samples import specs

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LEADS = ((), (3,), (2, 2))


def bound(kind: type[Decoder], lead: tuple[int, ...], rows: int, blocks: int, one: bool) -> Decoder:
    """A decoder of `kind` for matrices of `rows` and 16 * `blocks` (for `Nvfp4Bmm` the other way round)."""
    weight, scales = (*lead, rows, 8 * blocks), (*lead, rows, blocks)
    if kind is Nvfp4Bmm:
        weight, scales = (*lead, 8 * blocks, rows), (*lead, blocks, rows)
    stored = [("x", "U8", weight), ("x_scale", "F8_E4M3", scales)]
    if kind is not Nvfp4:
        stored.append(("x_scale_2", "F32", () if one else (*lead, 1, 1)))
    if kind is Nvfp4Awq:
        stored.append(("pre_quant_scale", "BF16", (16 * blocks,)))
    return kind(*specs(stored))


def sample(decoder: Decoder, seed: int) -> list[np.ndarray]:
    """Random bytes for each input; global and column scales are ordinary numbers."""
    rng = np.random.default_rng(seed)
    made = [rng.integers(0, 256, t.nbytes, np.uint8) for t in decoder.inputs[:2]]
    for tensor in decoder.inputs[2:]:
        numbers = rng.uniform(0.01, 3, tensor.numel).astype(tensor.dtype.numpy)
        made.append(numbers.view(np.uint8))
    return made


def slow(decoder: Decoder, stored: list[np.ndarray]) -> np.ndarray:
    """The formula, element by element, in numpy scalars of float32."""
    weight = stored[0].reshape(decoder.inputs[0].shape)
    scales = stored[1].view(ml_dtypes.float8_e4m3fn).reshape(decoder.inputs[1].shape)
    out = np.empty(decoder.shape, np.float32)
    with np.errstate(invalid="ignore"):
        for place in np.ndindex(*decoder.shape):
            *lead, i, j = place
            bmm = isinstance(decoder, Nvfp4Bmm)
            byte = weight[(*lead, i // 2, j) if bmm else (*lead, i, j // 2)]
            code = int(byte) >> 4 if (i if bmm else j) % 2 else int(byte) & 15
            scale = np.float32(scales[(*lead, i // 16, j) if bmm else (*lead, i, j // 16)])
            if len(stored) > 2:
                factors = stored[2].view(np.float32)
                number = int(np.ravel_multi_index(lead, decoder.shape[:-2])) if lead else 0
                factor = factors[number if factors.size > 1 else 0]
                scale = scale / factor if isinstance(decoder, Nvfp4Over) else scale * factor
            value = np.float32(-MAGNITUDES[code & 7] if code & 8 else MAGNITUDES[code & 7]) * scale
            if len(stored) > 3:
                value *= np.float32(stored[3].view(ml_dtypes.bfloat16)[j])
            out[place] = value
    return out


def bits(values: np.ndarray) -> list[int]:
    """Float32 bits, all NaNs the same."""
    flat = values.reshape(-1)
    return np.where(np.isnan(flat), np.uint32(0x7FC00000), flat.view(np.uint32)).tolist()


KINDS = (Nvfp4, Nvfp4Times, Nvfp4Over, Nvfp4Awq, Nvfp4Bmm)


@pytest.mark.parametrize("one", [True, False])
@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_formula_bit_for_bit(kind, lead, one):
    """Every kind, for one matrix and for stacked ones, with one global scale or one for each matrix."""
    decoder = bound(kind, lead, 3, 2, one)
    stored = sample(decoder, 1)
    got, overflow = decoder.decode(stored, 0, decoder.items)
    assert got.dtype == np.float32
    assert decoder.dtype.name == "BF16"
    assert bits(got) == bits(slow(decoder, stored))
    assert overflow == 0
    assert decoder.shape == (*lead, *((32, 3) if kind is Nvfp4Bmm else (3, 32)))


def test_every_byte_with_every_scale():
    """All 256 x 256 pairs, -0 and NaN scales included."""
    decoder = bound(Nvfp4Times, (), 256, 32, True)
    weight = np.tile(np.arange(256, dtype=np.uint8), 256)
    scales = np.repeat(np.arange(256, dtype=np.uint8), 32)
    stored = [weight, scales, np.array([0.37], np.float32).view(np.uint8)]
    got, _ = decoder.decode(stored, 0, decoder.items)
    assert bits(got) == bits(slow(decoder, stored))
    assert np.isnan(got.reshape(256, 512)[[127, 255]]).all()
    assert np.isnan(got).sum() == 2 * 512
    assert np.signbit(got.reshape(256, 512)[56, 16])  # the low nibble of byte 8: code 8 is -0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_cut_at_a_grain_gives_the_same_bytes(data):
    """However a tensor is cut at multiples of the grain, the pieces decoded from their spans join up."""
    kind = data.draw(st.sampled_from(KINDS))
    lead = data.draw(st.sampled_from(LEADS))
    decoder = bound(
        kind, lead, data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3)), data.draw(st.booleans())
    )
    stored = sample(decoder, data.draw(st.integers(0, 2**32 - 1)))
    whole, _ = decoder.decode(stored, 0, decoder.items)
    grains = decoder.items // decoder.grain
    cuts = data.draw(st.sets(st.integers(0, grains)))
    pieces = []
    for start, stop in pairwise(sorted({0, grains, *cuts})):
        first, last = start * decoder.grain, stop * decoder.grain
        spans = decoder.spans(first, last)
        cut = [s[a:b] for s, (a, b) in zip(stored, spans, strict=True)]
        pieces.append(decoder.decode(cut, first, last)[0])
    assert bits(np.concatenate(pieces)) == bits(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_spans_are_proportional_and_cover_the_inputs(kind):
    """Bytes of the primary grow with items; the whole needs the whole; nothing needs nothing of it."""
    decoder = bound(kind, (2,), 4, 3, True)
    assert decoder.spans(0, decoder.items) == tuple((0, t.nbytes) for t in decoder.inputs)
    assert decoder.spans(decoder.grain, 3 * decoder.grain)[0] == (decoder.grain // 2, 3 * decoder.grain // 2)
    nothing = [s[a:b] for s, (a, b) in zip(sample(decoder, 0), decoder.spans(0, 0), strict=True)]
    assert decoder.decode(nothing, 0, 0)[0].size == 0
    assert not decoder.held


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_binds_by_scheme(kind):
    """A plan's scheme name, inputs and params make the same decoder again."""
    decoder = bound(kind, (2,), 4, 3, True)
    again = bind(decoder.scheme, decoder.inputs, decoder.params)
    assert again == decoder
    assert type(again) is kind


@pytest.mark.parametrize("kind", [Nvfp4Times, Nvfp4Over, Nvfp4Bmm])
@pytest.mark.parametrize("factor", [np.nan, np.inf, -np.inf])
def test_a_damaged_global_scale_is_an_error(kind, factor):
    """NaN and infinity are named, with the tensor and what was expected."""
    decoder = bound(kind, (), 2, 2, True)
    stored = [*sample(decoder, 0)[:2], np.array([factor], np.float32).view(np.uint8)]
    with pytest.raises(CheckpointError, match=r"global scale `x_scale_2`.*expected finite.*got (nan|-?inf)"):
        decoder.decode(stored, 0, decoder.items)


def test_a_zero_global_scale():
    """It is an error where it divides; where it multiplies, a weight of zeros has it."""
    zero = np.zeros(4, np.uint8)
    decoder = bound(Nvfp4Over, (), 2, 2, True)
    with pytest.raises(CheckpointError, match=r"expected finite and not 0, got 0\.0"):
        decoder.decode([*sample(decoder, 0)[:2], zero], 0, decoder.items)
    decoder = bound(Nvfp4Times, (), 2, 2, True)
    scales = np.full(4, 0x38, np.uint8)
    assert not decoder.decode([sample(decoder, 0)[0], scales, zero], 0, decoder.items)[0].any()


@pytest.mark.parametrize("kind", [Nvfp4Times, Nvfp4Bmm, Nvfp4Awq])
def test_products_too_large_are_counted(kind):
    """A product beyond float32 becomes an infinity that is counted."""
    decoder = bound(kind, (), 2, 2, True)
    stored = sample(decoder, 0)
    stored[0][:], stored[1][:] = 0x7F, 0x38  # 6 and -6; 1
    stored[2] = np.array([1e38], np.float32).view(np.uint8)
    if len(stored) > 3:
        stored[3] = np.ones(32, ml_dtypes.bfloat16).view(np.uint8)
    got, overflow = decoder.decode(stored, 0, decoder.items)
    assert overflow == np.isinf(got).sum() == 64


def test_a_column_scale_that_is_no_number_is_an_error():
    """NaN in `pre_quant_scale` is named."""
    decoder = bound(Nvfp4Awq, (), 2, 2, True)
    stored = sample(decoder, 0)
    stored[3][:2] = 0xFF
    with pytest.raises(CheckpointError, match=r"`pre_quant_scale`.*expected finite"):
        decoder.decode(stored, 0, decoder.items)


U8, E4M3, F32 = "U8", "F8_E4M3", "F32"


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        (Nvfp4, [(U8, (4, 17)), (E4M3, (4, 2))]),
        (Nvfp4, [(U8, (4, 16)), (E4M3, (4, 3))]),
        (Nvfp4, [(U8, (4, 16)), (E4M3, (8,))]),
        (Nvfp4, [(U8, (4, 16)), (F32, (4, 2))]),
        (Nvfp4, [("I32", (4, 16)), (E4M3, (4, 2))]),
        (Nvfp4, [(U8, (4, 0)), (E4M3, (4, 0))]),
        (Nvfp4, [("F4", (4, 16)), (E4M3, (4, 2))]),
        (Nvfp4Times, [(U8, (4, 16)), (E4M3, (4, 2)), (F32, (4,))]),
        (Nvfp4Times, [(U8, (4, 16)), (E4M3, (4, 2)), ("BF16", ())]),
        (Nvfp4Over, [(U8, (3, 4, 16)), (E4M3, (3, 4, 2)), (F32, (4,))]),
        (Nvfp4Over, [(U8, (3, 4, 16)), (E4M3, (3, 4, 2)), (F32, (0,))]),
        (Nvfp4Awq, [(U8, (4, 16)), (E4M3, (4, 2)), (F32, ()), ("BF16", (16,))]),
        (Nvfp4Awq, [(U8, (4, 16)), (E4M3, (4, 2)), (F32, ()), ("I8", (32,))]),
        (Nvfp4Bmm, [(U8, (2, 17, 4)), (E4M3, (2, 2, 4)), (F32, ())]),
        (Nvfp4Bmm, [(U8, (2, 16, 4)), (E4M3, (2, 4, 2)), (F32, ())]),
        (Nvfp4Bmm, [(U8, (2, 16, 4)), (E4M3, (2, 2, 4)), (F32, (3,))]),
        (Nvfp4Bmm, [(U8, (2, 0, 4)), (E4M3, (2, 0, 4)), (F32, ())]),
    ],
)
def test_what_does_not_belong_together_is_refused(kind, stored):
    """A wrong dtype or shape of any input is an error that names it and says what was expected."""
    with pytest.raises(CheckpointError, match=r"NVFP4 [a-z ]+ `x\d`.*expected"):
        kind(*specs([(f"x{i}", *what) for i, what in enumerate(stored)]))


def test_a_packed_dtype_and_scales_as_bytes_are_the_same_layout():
    """F4, whose shape counts elements, and E4M3 stored as U8."""
    decoder = Nvfp4(*specs([("x", "F4", (4, 32)), ("x_scale", "U8", (4, 2))]))
    other = bound(Nvfp4, (), 4, 2, True)
    stored = sample(other, 0)
    assert decoder.shape == other.shape
    assert [t.nbytes for t in decoder.inputs] == [t.nbytes for t in other.inputs]
    assert bits(decoder.decode(stored, 0, 128)[0]) == bits(other.decode(stored, 0, 128)[0])
