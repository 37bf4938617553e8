"""GPTQ against plain Python: a bit at a time, one exact product a weight."""

from __future__ import annotations

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.decode.gptq import Gptq, GptqOrdered
from tensorport_hub.core.decode.table import bind
from tensorport_hub.errors import CheckpointError
from tests.core.held import decoded_items
from tests.core.samples import specs

NUMPY = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}
PLANES = {3: [(0, 2), (2, 1)], 5: [(0, 4), (4, 1)], 6: [(0, 4), (4, 2)], 7: [(0, 4), (4, 2), (6, 1)]}


def pack(codes: list[int], bits: int, planar: bool, word: int) -> list[int]:
    """Signed words that hold `codes`, low bits first; in planes 32 codes at a time."""
    if planar and bits in PLANES:
        found = []
        for at in range(0, len(codes), 32):
            block = codes[at : at + 32]
            for shift, width in PLANES[bits]:
                found += pack([code >> shift & ((1 << width) - 1) for code in block], width, False, word)
        return found
    stream = sum(code << (bits * j) for j, code in enumerate(codes))
    words = [stream >> (word * k) & ((1 << word) - 1) for k in range(-(-len(codes) * bits // word))]
    return [w - (1 << word) if w >> (word - 1) else w for w in words]


class Case:
    """One random weight, as stored and as it decodes."""

    def __init__(
        self, *, bits=4, rows=40, columns=64, group=16, zeros="v1", packing="stream", order=None, scale="F16",
        lead=(), word=32, sym=False, seed=0,
    ):  # fmt: skip
        rng = np.random.default_rng(seed)
        groups, planar = -(-columns // group), packing == "planar"
        codes = rng.integers(0, 1 << bits, (*lead, columns, rows))
        stored = rng.integers(0, 1 << bits, (*lead, groups, rows))
        if sym:
            stored[...] = (1 << (bits - 1)) - (sym == "v1")
        zero = {"v1": (stored + 1) % (1 << bits), "v2": stored, "middle": 1 << (bits - 1)}[zeros]
        zero = np.broadcast_to(zero, stored.shape)
        scales = rng.normal(size=(*lead, groups, rows)).astype(NUMPY[scale])
        index = np.arange(columns) // group
        if order == "shuffled":
            index = rng.permutation(index)
        elif order == "each":
            index = np.stack([rng.permutation(index) for _ in range(lead[0])])

        def packed(values: np.ndarray) -> np.ndarray:
            flat = values.reshape(-1, values.shape[-1]).tolist()
            made = [pack(row, bits, planar, word) for row in flat]
            return np.array(made, f"<i{word // 8}").reshape(*values.shape[:-1], -1)

        weight = packed(codes.swapaxes(-1, -2)).swapaxes(-1, -2)
        tensors = [("q", f"I{word}", weight), ("z", f"I{word}", packed(stored)), ("s", scale, scales)]
        if order:
            tensors.append(("g", "I32", index.astype("<i4")))
        self.specs = specs([(name, dtype, array.shape) for name, dtype, array in tensors])
        self.stored = [np.frombuffer(array.tobytes(), np.uint8) for _, _, array in tensors]
        kind = GptqOrdered if order else Gptq
        self.decoder = kind(*self.specs, bits=bits, size=0 if order else group, zeros=zeros, packing=packing)
        column = np.broadcast_to(index, (*lead, columns))[..., None]
        zero, factor = (np.take_along_axis(np.asarray(t), column, axis=-2) for t in (zero, scales))
        self.want = np.ascontiguousarray(
            ((codes - zero).astype(np.float32) * factor.astype(np.float32)).swapaxes(-1, -2)
        )

    def decode(self, start: int, stop: int) -> np.ndarray:
        """Items of a range, from the bytes that it needs."""
        values, overflow = decoded_items(self.decoder, self.stored, start, stop)
        assert overflow == 0
        assert values.dtype == np.float32
        return values


def check(**options) -> None:
    """The whole, and every row by itself, equal plain Python's; a plan's JSON makes the decoder again."""
    case = Case(**options)
    decoder = case.decoder
    assert decoder.held
    assert decoder.shape == case.want.shape
    assert decoder.dtype.name == options.get("scale", "F16")
    assert decoder.parameters == case.want.size
    assert case.decode(0, decoder.items).tobytes() == case.want.tobytes()
    flat = case.want.reshape(-1)
    for start in range(0, decoder.items, decoder.grain):
        stop = start + decoder.grain
        assert case.decode(start, stop).tobytes() == flat[start:stop].tobytes()
    assert bind(decoder.scheme, decoder.inputs, decoder.params) == decoder


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("zeros", ["v1", "v2"])
def test_every_number_of_bits(bits, zeros):
    """2 to 8 bits, either zero point, in a stream; rows that end inside a word of zero points."""
    check(bits=bits, zeros=zeros)
    check(bits=bits, zeros=zeros, rows=13, columns=32, group=32)


@pytest.mark.parametrize("bits", range(2, 9))
def test_planes(bits):
    """Bit planes, which only 3, 5, 6 and 7 bits have."""
    check(bits=bits, zeros="v2", packing="planar", rows=64)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_act_order(bits):
    """The group of a column is what `g_idx` says."""
    check(bits=bits, order="shuffled")
    check(bits=bits, order="plain", columns=96, group=40)


def test_short_last_group():
    """Columns that are no multiple of the group, wide groups and narrow ones."""
    check(columns=72, group=32)
    check(columns=320, group=128)
    check(columns=320, group=128, order="plain")


@pytest.mark.parametrize("scale", ["BF16", "F32"])
def test_other_scales(scale):
    """The result has the scale's dtype."""
    check(scale=scale)


@pytest.mark.parametrize("word", [8, 16, 64])
def test_other_words(word):
    """`pack_dtype` of 8, 16 and 64 bits."""
    check(word=word, rows=24)
    check(word=word, bits=8, rows=24)


def test_stacked_experts():
    """A leading axis of experts; one order for all, or one each."""
    check(lead=(3,), rows=10)
    check(lead=(2,), rows=10, order="shuffled")
    check(lead=(3,), rows=10, order="each")


def test_ordered_columns_may_end_inside_a_word():
    """With `g_idx`, which has one entry a column, the last word may be partly filled."""
    check(columns=61, order="plain")


@pytest.mark.parametrize("sym", ["v1", "v2"])
def test_symmetric_zero_points_tell_their_convention(sym):
    """Without a configuration, both conventions of the middle are understood."""
    check(zeros="middle", sym=sym)


def test_unsaid_asymmetric_zero_points_are_refused():
    """Without a configuration, anything but the middle is an error."""
    with pytest.raises(CheckpointError, match=r"no configuration says how they are stored.* all 7 or all 8"):
        Case(zeros="middle").decode(0, 64)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_cut_gives_the_same_values(data):
    """Any cuts at rows, across experts too."""
    case = Case(bits=data.draw(st.sampled_from([3, 4, 8])), lead=(2,), rows=9, columns=32, order="shuffled")
    rows = case.decoder.items // 32
    cuts = sorted(data.draw(st.sets(st.integers(0, rows))) | {0, rows})
    parts = [case.decode(a * 32, b * 32) for a, b in pairwise(cuts)]
    assert np.concatenate(parts).tobytes() == case.want.tobytes()


@pytest.mark.parametrize("index", [-1, 4, 2**31 - 1])
def test_column_groups_out_of_range(index):
    """A group that does not exist is an error, not another group."""
    case = Case(order="shuffled")
    case.stored[3] = case.stored[3].copy()
    case.stored[3].view("<i4")[5] = index
    with pytest.raises(CheckpointError, match=rf"column groups `g`.*expected 0 to 3, got {index}"):
        case.decode(0, 64)


def test_nan_scale():
    """A NaN scale is an error that names the tensor."""
    case = Case()
    case.stored[2] = np.full(case.stored[2].size, 0xFF, np.uint8)
    with pytest.raises(CheckpointError, match=r"`s`.*expected numbers, got NaN"):
        case.decode(0, 64)


GOOD = (("q", "I32", (8, 24)), ("z", "I32", (4, 3)), ("s", "F16", (4, 24)))


@pytest.mark.parametrize(
    ("at", "bad", "words"),
    [
        (0, ("q", "F16", (8, 24)), "GPTQ weight `q`.*expected I8, I16, I32, I64"),
        (0, ("q", "I32", (8,)), "GPTQ weight `q`"),
        (0, ("q", "I32", (8, 25)), "zero points `z`.*expected I32"),
        (0, ("q", "I32", (4, 24)), "scales `s`.*expected 2 groups of 16"),
        (1, ("z", "I32", (3, 3)), r"zero points `z`.*expected I32 \[4, 3\].*got I32 \[3, 3\]"),
        (1, ("z", "I16", (4, 3)), r"zero points `z`.*expected I32 \[4, 3\].*got I16"),
        (2, ("s", "I32", (4, 24)), "scales `s`.*expected F16, BF16, F32"),
        (2, ("s", "F16", (0, 24)), "scales `s`.*at least one group"),
        (2, ("s", "F16", (4, 25)), "scales `s`.*expected 24 columns"),
        (2, ("s", "F16", (96,)), "scales `s`"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_belong_together(at, bad, words):
    """Wrong dtypes and shapes are errors that name the tensor and what it should be."""
    stored = [bad if i == at else good for i, good in enumerate(GOOD)]
    with pytest.raises(CheckpointError, match=words):
        Gptq(*specs(stored), bits=4, size=16, zeros="v1", packing="stream")


@pytest.mark.parametrize("bad", [("g", "I64", (64,)), ("g", "I32", (50,)), ("g", "I32", (64, 1))])
def test_column_groups_that_do_not_belong(bad):
    """`g_idx` is I32 with one entry a column."""
    with pytest.raises(CheckpointError, match=r"`g`|`q`"):
        GptqOrdered(*specs([*GOOD, bad]), bits=4, size=0, zeros="v1", packing="stream")


@pytest.mark.parametrize("params", [{"bits": 9}, {"zeros": "v3"}, {"packing": "tiles"}, {"size": 0}])
def test_unknown_parameters(params):
    """Parameters that no layout has are refused."""
    with pytest.raises(CheckpointError):
        Gptq(*specs(GOOD), **{"bits": 4, "size": 16, "zeros": "v1", "packing": "stream"} | params)


def test_negative_scale_keeps_the_sign_of_zero():
    """Zero times a negative scale is -0, as torch computes it."""
    case = Case(zeros="middle", sym="v1", seed=3)
    assert np.signbit(case.want[case.want == 0]).any()
    assert case.decode(0, case.decoder.items).tobytes() == case.want.tobytes()
