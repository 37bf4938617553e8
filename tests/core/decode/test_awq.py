"""AWQ gemm, gemv and gemv_fast, and Quark int4, against plain Python that packs a nibble at a time."""

from __future__ import annotations

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.decode.awq import AwqGemm
from tensorport_hub.core.decode.awq_gemv import AwqGemv, AwqGemvFast
from tensorport_hub.core.decode.decoder import Decoder
from tensorport_hub.core.decode.table import bind
from tensorport_hub.errors import CheckpointError
from tests.core.held import decoded_items
from tests.core.samples import specs

NUMPY = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}
COLUMN_OF_NIBBLE = [0, 2, 4, 6, 1, 3, 5, 7]


def words(codes: np.ndarray, order: list[int]) -> np.ndarray:
    """I32 words along the last axis: nibble j of a word is element `order[j]` of its eight."""
    flat = (codes.reshape(-1, 8) & 15).tolist()
    made = [sum(eight[order[j]] << (4 * j) for j in range(8)) for eight in flat]
    return np.array(made, np.uint32).view(np.int32).reshape(*codes.shape[:-1], -1)


def tiles(codes: np.ndarray) -> np.ndarray:
    """I16 words of gemv_fast, from where each code lies: one loop over rows and columns."""
    rows, columns = codes.shape
    out = np.zeros((rows // 4, columns), np.uint16)
    for row in range(rows):
        for column in range(columns):
            block, at = divmod(column, 32)
            pair, low = divmod(at, 2)
            at = (pair % 4 * 4 + pair // 4) * 2 + low  # pairs 0 4 8 12 1 5 ...: columns 0 1 8 9 16 17 24 25 2
            eight, place = divmod(at, 8)
            at = eight * 8 + place % 2 * 4 + place // 2  # the even ones of eight come first
            at += block % 2 * 32 + row % 4 * 64
            tile, nibble = divmod(at, 4)
            out[row // 4, column // 64 * 64 + tile] |= np.uint16(int(codes[row, column]) << (4 * nibble))
    return out.view(np.int16)


class Case:
    """One random weight: bound, as stored and as it decodes."""

    def __init__(
        self, layout: str, *, rows=32, columns=64, size=16, lead=(), scale="F16", signed=0, zeros="stored",
        width=None, seed=0,
    ):  # fmt: skip
        rng = np.random.default_rng(seed)
        groups = -(-columns // size)
        low = -8 if signed else 0
        codes = rng.integers(low, low + 16, (*lead, rows, columns))
        zero = rng.integers(low, low + 16, (*lead, rows, groups))
        if zeros == "middle":
            zero[...] = 8
        scales = rng.normal(size=(*lead, rows, groups)).astype(NUMPY[scale])
        index = np.arange(columns) // size
        each = scales[..., index].astype(np.float32)
        self.want = (codes - zero[..., index]).astype(np.float32) * each
        swap = lambda array: np.ascontiguousarray(array.swapaxes(-1, -2))  # noqa: E731
        self.decoder: Decoder
        if layout == "gemm":
            stored = [words(swap(codes), COLUMN_OF_NIBBLE), words(swap(zero), COLUMN_OF_NIBBLE), swap(scales)]
            tensors = [*zip("qzs", ("I32", "I32", scale), stored, strict=True)]
        elif layout == "gemv":
            width = width or -(-groups // 8)
            pad = [(0, 0)] * (len(lead) + 1) + [(0, 8 * width - groups)]
            stored = [words(codes, [*range(8)]), words(np.pad(zero, pad), [*range(8)]), np.pad(scales, pad)]
            tensors = [*zip("qzs", ("I32", "I32", scale), stored, strict=True)]
        else:
            width = width or 8
            offset = (-(scales.astype(np.float32)) * zero.astype(np.float32)).astype(NUMPY[scale])
            self.want = codes.astype(np.float32) * each + offset[..., index].astype(np.float32)
            pad = [(0, width - groups), (0, 0)]
            stored = [tiles(codes), np.pad(swap(offset), pad), np.pad(swap(scales), pad)]
            tensors = [*zip("qzs", ("I16", scale, scale), stored, strict=True)]
        self.tensors = specs([(name, dtype, array.shape) for name, dtype, array in tensors])
        self.stored = [np.frombuffer(array.tobytes(), np.uint8).copy() for _, _, array in tensors]
        if layout == "gemm":
            self.decoder = AwqGemm(*self.tensors, size=size, signed=signed, zeros=zeros)
        else:
            self.decoder = (AwqGemv if layout == "gemv" else AwqGemvFast)(*self.tensors, size=size)

    def decode(self, start: int, stop: int) -> np.ndarray:
        """Items of a range, from the bytes that it needs."""
        values, overflow = decoded_items(self.decoder, self.stored, start, stop)
        assert overflow == 0
        assert values.dtype == np.float32
        return values


def check(layout: str, **options) -> None:
    """The whole, and every row by itself, equal plain Python's; a plan's JSON makes the decoder again."""
    case = Case(layout, **options)
    decoder = case.decoder
    assert decoder.held == (layout == "gemm")
    assert decoder.shape == case.want.shape
    assert decoder.dtype.name == options.get("scale", "F16")
    assert case.decode(0, decoder.items).tobytes() == case.want.tobytes()
    flat = case.want.reshape(-1)
    for start in range(0, decoder.items, decoder.grain):
        stop = start + decoder.grain
        assert case.decode(start, stop).tobytes() == flat[start:stop].tobytes()
    assert bind(decoder.scheme, decoder.inputs, decoder.params) == decoder


@pytest.mark.parametrize("layout", ["gemm", "gemv", "gemv_fast"])
@pytest.mark.parametrize("scale", ["F16", "BF16", "F32"])
def test_layouts(layout, scale):
    """Each layout, narrow and wide groups, a short last one."""
    check(layout, scale=scale)
    check(layout, scale=scale, columns=320, size=128)
    check(layout, scale=scale, columns=64, size=64)


@pytest.mark.parametrize("layout", ["gemm", "gemv"])
def test_stacked_experts(layout):
    """A leading axis of experts."""
    check(layout, lead=(3,), rows=16)


def test_gemm_columns_need_not_fill_words():
    """gemm packs along the output axis: any number of columns."""
    check("gemm", columns=37, size=10)


def test_signed_codes():
    """Quark int4: codes and zero points are two's complement."""
    check("gemm", signed=1, scale="BF16")


def test_middle_zero_points():
    """`zero_point: false` is believed where every zero point is 8, and refused elsewhere."""
    check("gemm", zeros="middle")
    case = Case("gemm", zeros="middle")
    case.stored[1][0] = 0x77
    with pytest.raises(
        CheckpointError, match=r"zero points `z`.*`zero_point: false`; expected all 8, got 7 to 8"
    ):
        case.decode(0, case.decoder.items)


@pytest.mark.parametrize(("layout", "width"), [("gemv", 4), ("gemv_fast", 16)])
def test_padding_of_groups_is_ignored(layout, width):
    """Groups beyond the columns are not used."""
    check(layout, width=width)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_cut_gives_the_same_values(data):
    """Any cuts at rows, inside words and tiles too."""
    layout = data.draw(st.sampled_from(["gemm", "gemv", "gemv_fast"]))
    lead = (2,) if layout != "gemv_fast" else ()
    case = Case(layout, rows=16, lead=lead)
    rows = case.decoder.items // 64
    cuts = sorted(data.draw(st.sets(st.integers(0, rows))) | {0, rows})
    parts = [case.decode(a * 64, b * 64) for a, b in pairwise(cuts)]
    assert np.concatenate(parts).tobytes() == case.want.tobytes()


@pytest.mark.parametrize("layout", ["gemm", "gemv", "gemv_fast"])
def test_nan_scale(layout):
    """A NaN scale is an error that names the tensor."""
    case = Case(layout)
    case.stored[2][:] = 0xFF
    with pytest.raises(CheckpointError, match=r"`s`.*expected numbers, got NaN"):
        case.decode(0, 64)


GEMM = (("q", "I32", (64, 4)), ("z", "I32", (4, 4)), ("s", "F16", (4, 32)))
GEMV = (("q", "I32", (32, 8)), ("z", "I32", (32, 1)), ("s", "F16", (32, 8)))
FAST = (("q", "I16", (8, 64)), ("z", "F16", (8, 32)), ("s", "F16", (8, 32)))


@pytest.mark.parametrize(
    ("good", "at", "bad"),
    [
        (GEMM, 0, ("q", "I16", (64, 4))),
        (GEMM, 0, ("q", "I32", (256,))),
        (GEMM, 0, ("q", "I32", (80, 4))),
        (GEMM, 1, ("z", "I32", (3, 4))),
        (GEMM, 1, ("z", "F16", (4, 4))),
        (GEMM, 2, ("s", "F16", (4, 31))),
        (GEMM, 2, ("s", "F16", (0, 32))),
        (GEMM, 2, ("s", "I16", (4, 32))),
        (GEMV, 0, ("q", "I32", (33, 8))),
        (GEMV, 1, ("z", "I32", (32, 2))),
        (GEMV, 1, ("z", "I32", (32, 0))),
        (GEMV, 2, ("s", "F16", (32, 16))),
        (GEMV, 2, ("s", "U8", (32, 8))),
        (FAST, 0, ("q", "I16", (8, 96))),
        (FAST, 0, ("q", "I32", (8, 64))),
        (FAST, 1, ("z", "I32", (8, 32))),
        (FAST, 2, ("s", "F16", (2, 32))),
        (FAST, 2, ("s", "F16", (8, 36))),
    ],
)
def test_tensors_that_do_not_belong_together(good, at, bad):
    """Wrong dtypes and shapes are errors that name a tensor and what it should be."""
    stored = specs([bad if i == at else one for i, one in enumerate(good)])
    more = {"signed": 0, "zeros": "stored"} if good is GEMM else {}
    kind = {GEMM: AwqGemm, GEMV: AwqGemv, FAST: AwqGemvFast}[good]
    with pytest.raises(CheckpointError, match=r"AWQ .*`[qzs]`.*expected"):
        kind(*stored, size=16, **more)


@pytest.mark.parametrize("size", [0, 4])
def test_groups_must_cover_the_columns(size):
    """No groups, or more than there are scales, are an error."""
    with pytest.raises(CheckpointError, match="scales `s`"):
        AwqGemm(*specs(GEMM), size=size, signed=0, zeros="stored")
    with pytest.raises(CheckpointError, match="scales `s`"):
        AwqGemv(*specs(GEMV), size=size)
