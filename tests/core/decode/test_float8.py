"""8-bit floats in blocks: every code, every grid, any cut, and what does not belong together."""

from __future__ import annotations

import struct
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.decode.float8 import Float8
from tensorport_hub.core.decode.table import bind
from tensorport_hub.core.tensor import DTYPES
from tensorport_hub.errors import CheckpointError
from tests.core.samples import specs

NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
# exponent bits, mantissa bits, exponent bias, whether there are infinities
FORMS = {"F8_E4M3": (4, 3, 7), "F8_E5M2": (5, 2, 15), "F8_E4M3FNUZ": (4, 3, 8), "F8_E5M2FNUZ": (5, 2, 16)}


def code_value(code: int, form: str) -> float:
    """OCP OFP8 and the FNUZ forms, by their definitions."""
    exponent_bits, mantissa_bits, bias = FORMS[form]
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = (code & 0x7F) >> mantissa_bits, code & (1 << mantissa_bits) - 1
    if form.endswith("FNUZ"):
        if code == 0x80:
            return float("nan")
    elif form == "F8_E4M3" and code & 0x7F == 0x7F:
        return float("nan")
    elif form == "F8_E5M2" and exponent == (1 << exponent_bits) - 1:
        return float("nan") if mantissa else sign * float("inf")
    if exponent == 0:
        return sign * mantissa * 2.0 ** (1 - bias - mantissa_bits)
    return sign * (1 + mantissa / 2**mantissa_bits) * 2.0 ** (exponent - bias)


def scale_value(raw: bytes, dtype: str) -> float:
    """One stored scale, by the dtype's definition."""
    if dtype in ("U8", "F8_E8M0"):
        return float("nan") if raw[0] == 255 else 2.0 ** (raw[0] - 127)
    if dtype == "BF16":
        return struct.unpack("<f", b"\0\0" + raw)[0]
    return struct.unpack({"F32": "<f", "F16": "<e"}[dtype], raw)[0]


def formula(decoder: Float8, weight: bytes, scale: bytes) -> np.ndarray:
    """Element by element: the code times the scale of the block that it lies in, as float32."""
    *lead, width = decoder.shape
    total = int(np.prod(lead))
    height = total // decoder.stack
    down, across = -(-height // decoder.rows), -(-width // decoder.cols)
    size = decoder.scale.dtype.itemsize
    out = np.empty(total * width, np.float32)
    with np.errstate(all="ignore"):
        for i in range(total):
            for j in range(width):
                at = (i // height * down + i % height // decoder.rows) * across + j // decoder.cols
                s = scale_value(scale[at * size : (at + 1) * size], decoder.scale.dtype.name)
                value = code_value(weight[i * width + j], decoder.codes)
                out[i * width + j] = np.float32(value) * np.float32(s)
    return out


def make(shape, grid, scale_shape, *, codes="F8_E4M3", scale="F32", word=None, returns="BF16") -> Float8:
    return Float8(
        *specs([("x.weight", word or codes, shape), ("x.weight_scale", scale, scale_shape)]),
        *grid,
        codes,
        returns,
    )


def scales_of(decoder: Float8, rng: np.random.Generator) -> bytes:
    count = decoder.scale.numel
    if decoder.scale.dtype.name in ("U8", "F8_E8M0"):
        return rng.integers(100, 150, count, np.uint8).tobytes()
    values = rng.uniform(1e-3, 2.0, count).astype(np.float32)
    return values.astype(NUMPY[decoder.scale.dtype.name]).tobytes()


def decode(decoder: Float8, weight: bytes, scale: bytes, start=0, stop=None):
    """Decode a range from its own spans."""
    stop = decoder.items if stop is None else stop
    spans = decoder.spans(start, stop)
    raw = [
        np.frombuffer(b, np.uint8)[first:last]
        for b, (first, last) in zip((weight, scale), spans, strict=True)
    ]
    return decoder.decode(raw, start, stop)


def same(got: np.ndarray, want: np.ndarray) -> None:
    """Bit for bit, -0 included; any NaN equals any NaN."""
    assert got.dtype == np.float32
    nan = np.isnan(want)
    assert np.array_equal(np.isnan(got), nan)
    assert got[~nan].tobytes() == want[~nan].tobytes()


@pytest.mark.parametrize("codes", FORMS)
@pytest.mark.parametrize("scale", [1.0, 0.3, 2.0**-140])
def test_every_code(codes, scale):
    """All 256 codes of each format, under a plain, a rounded and a subnormal scale."""
    decoder = make((16, 16), (1, 16, 16), (), codes=codes)
    weight, stored = bytes(range(256)), np.float32(scale).tobytes()
    values, overflow = decode(decoder, weight, stored)
    same(values, formula(decoder, weight, stored))
    assert overflow == 0


@pytest.mark.parametrize("dtype", ["U8", "F8_E8M0"])
def test_every_power_of_two(dtype):
    """All 256 scale bytes: 0 is 2^-127, 255 is NaN, and finite products beyond float32 are counted."""
    decoder = make((256, 256), (1, 1, 256), (256, 1), scale=dtype)
    weight, stored = bytes(range(256)) * 256, bytes(range(256))
    values, overflow = decode(decoder, weight, stored)
    want = formula(decoder, weight, stored)
    same(values, want)
    assert overflow == np.count_nonzero(np.isinf(want)) > 0


def test_stored_infinities_are_no_overflow():
    """F8_E5M2 has infinities: they stay and are not counted."""
    decoder = make((1, 3), (1, 1, 3), (1,), codes="F8_E5M2")
    values, overflow = decode(decoder, bytes([0x7C, 0xFC, 0x7B]), np.float32(2.0**127).tobytes())
    assert values.tolist() == [np.inf, -np.inf, np.inf]
    assert overflow == 1
    assert decode(decoder, bytes([0x7C, 0xFC, 0x7B]), np.float32(0.5).tobytes())[1] == 0


GRIDS = {
    "tensor": ((5, 7), (1, 5, 7), ()),
    "one element": ((5, 7), (1, 5, 7), (1,)),
    "row, 1-D": ((5, 7), (1, 1, 7), (5,)),
    "row": ((6, 8), (1, 1, 8), (6, 1)),
    "group": ((6, 64), (1, 1, 32), (6, 2)),
    "narrow group": ((6, 16), (1, 1, 4), (6, 4)),
    "ragged group": ((6, 10), (1, 1, 4), (6, 3)),
    "block": ((12, 32), (1, 4, 16), (3, 2)),
    "partial blocks": ((23, 37), (1, 8, 16), (3, 3)),
    "ModelOpt's spelling": ((23, 37), (1, 8, 16), (3, 1, 3, 1)),
    "low blocks": ((9, 37), (1, 2, 16), (5, 3)),
    "block larger than the matrix": ((3, 5), (1, 128, 128), (1, 1)),
    "experts' partial blocks": ((3, 9, 10), (3, 4, 8), (3, 3, 2)),
    "one an expert": ((3, 4, 6), (1, 4, 6), (3, 1, 1)),
    "experts' rows": ((3, 4, 6), (1, 1, 6), (3, 4, 1)),
    "two axes of experts": ((2, 3, 9, 10), (6, 4, 8), (2, 3, 3, 2)),
    "columns": ((3, 4, 6), (1, 4, 1), (3, 1, 6)),
    "convolution's rows": ((4, 3, 2, 2), (1, 6, 2), (4, 1, 1, 1)),
    "vector": ((9,), (1, 1, 9), (1,)),
    "0-d": ((), (1, 1, 1), ()),
    "no rows": ((0, 8), (1, 1, 8), (0, 1)),
    "no columns": ((4, 0), (1, 1, 1), (4, 0)),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("scale", ["F32", "F16", "BF16", "F8_E8M0", "U8"])
def test_grids(name, scale):
    """Every way to share scales, in every dtype of scales, equals the formula."""
    shape, grid, scale_shape = GRIDS[name]
    decoder = make(shape, grid, scale_shape, scale=scale)
    rng = np.random.default_rng(3)
    weight, stored = rng.integers(0, 256, decoder.items, np.uint8).tobytes(), scales_of(decoder, rng)
    values, overflow = decode(decoder, weight, stored)
    assert overflow == 0
    assert decoder.shape == shape
    assert decoder.spans(0, decoder.items)[0] == (0, len(weight))
    same(values, formula(decoder, weight, stored)) if shape else same(
        values, np.float32([code_value(weight[0], "F8_E4M3")]) * scale_value(stored, scale)
    )
    assert bind("float8", decoder.inputs, decoder.params) == decoder
    assert decoder.dtype.name == "BF16"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_cut_at_a_row_gives_the_same_bytes(data):
    """Rows decoded from their own spans join to the whole, whatever the blocks."""
    stack, height = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12))
    width, rows, cols = (data.draw(st.integers(1, 20)) for _ in range(3))
    scale = data.draw(st.sampled_from(["F32", "BF16", "U8"]))
    shape = (stack, -(-height // rows), -(-width // cols))
    decoder = make((stack, height, width), (stack, rows, cols), shape, scale=scale)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    weight, stored = rng.integers(0, 256, decoder.items, np.uint8).tobytes(), scales_of(decoder, rng)
    whole, _ = decode(decoder, weight, stored)
    same(whole, formula(decoder, weight, stored))
    edges = sorted({0, stack * height, *data.draw(st.sets(st.integers(0, stack * height), max_size=4))})
    pieces = [decode(decoder, weight, stored, a * width, b * width)[0] for a, b in pairwise(edges)]
    assert np.concatenate(pieces).tobytes() == whole.tobytes()


def test_spans_name_no_more_than_the_rows_need():
    """Rows 130 to 300 of 128-row blocks need block rows 1 and 2; an expert's rows its own."""
    decoder = make((320, 256), (1, 128, 128), (3, 2), scale="BF16")
    assert decoder.spans(130 * 256, 300 * 256) == ((130 * 256, 300 * 256), (4, 12))
    assert decoder.spans(256, 256)[1] == (0, 0)
    experts = make((4, 192, 256), (4, 128, 128), (4, 2, 2))
    assert experts.spans(192 * 256, 320 * 256)[1] == (16, 24)


@pytest.mark.parametrize(("word", "per"), [("U8", 1), ("U32", 4)])
def test_codes_in_words(word, per):
    """The same bytes under another dtype: U32 words hold four codes, the first lowest."""
    decoder = make((4, 64 // per), (1, 1, 32), (4, 2), scale="U8", word=word)
    plain = make((4, 64), (1, 1, 32), (4, 2), scale="U8")
    rng = np.random.default_rng(1)
    weight, stored = rng.integers(0, 256, 256, np.uint8).tobytes(), scales_of(plain, rng)
    assert decoder.shape == (4, 64)
    assert decode(decoder, weight, stored)[0].tobytes() == decode(plain, weight, stored)[0].tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_scale_that_is_no_number_is_damage(bad, dtype):
    """NaN or infinite scales are an error that names the tensor."""
    decoder = make((2, 4), (1, 1, 4), (2, 1), scale=dtype)
    stored = np.array([1, bad]).astype(NUMPY[dtype]).tobytes()
    with pytest.raises(CheckpointError, match=r"`x\.weight_scale`.*(NaN or infinity)"):
        decode(decoder, bytes(8), stored)


@pytest.mark.parametrize(
    ("shape", "grid", "scale_shape"),
    [
        ((192, 320), (1, 128, 128), (3, 2)),
        ((192, 320), (1, 128, 128), (2, 2)),
        ((192, 320), (1, 128, 128), (6,)),
        ((4, 8), (1, 1, 8), (3, 1)),
        ((4, 8), (1, 0, 8), (4, 1)),
        ((4, 8), (3, 1, 8), (4, 1)),
        ((4, 8), (1, 1, 4), (4, 0)),
        ((3, 9, 10), (3, 4, 8), (9, 2)),
    ],
)
def test_scales_of_another_grid_are_refused(shape, grid, scale_shape):
    """The error names the scale, its shape and the expected one."""
    with pytest.raises(CheckpointError, match=r"scale `x\.weight_scale` .*: expected \[.*\] for blocks of"):
        make(shape, grid, scale_shape)


def test_dtypes_are_checked():
    """Codes must be 8-bit floats, and scales floats or powers of two."""
    with pytest.raises(CheckpointError, match=r"weight `x\.weight` \(I8.*expected F8_E4M3"):
        make((4, 8), (1, 1, 8), (4, 1), word="I8")
    with pytest.raises(CheckpointError, match=r"weight `x\.weight` \(F8_E5M2"):
        make((4, 8), (1, 1, 8), (4, 1), word="F8_E5M2")
    with pytest.raises(CheckpointError, match=r"scale `x\.weight_scale` \(F64 .*expected BF16 or F16"):
        make((4, 8), (1, 1, 8), (4, 1), scale="F64")
    assert "F64" in DTYPES
