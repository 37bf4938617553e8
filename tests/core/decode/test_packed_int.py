"""Packed integers against plain Python: a bit at a time, one multiplication in exact rationals."""

from __future__ import annotations

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.decode.packed_int import PackedInt
from tensorport_hub.core.decode.table import bind
from tensorport_hub.errors import CheckpointError
from tests.core.samples import specs

NUMPY = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}


def pack(codes: list[int], bits: int, packing: str) -> list[int]:
    """Signed 32-bit words that hold `codes`, low bits first."""
    if packing == "padded":
        per = 32 // bits
        chunks = [codes[i : i + per] for i in range(0, len(codes), per)]
        found = [sum(code << (bits * j) for j, code in enumerate(chunk)) for chunk in chunks]
    else:
        stream = sum(code << (bits * j) for j, code in enumerate(codes))
        count = -(-len(codes) * bits // 32)
        found = [stream >> (32 * k) & 0xFFFFFFFF for k in range(count)]
    return [word - (1 << 32) if word >> 31 else word for word in found]


def pack_rows(codes: np.ndarray, bits: int, packing: str) -> np.ndarray:
    """Words of a matrix, packed along its last axis."""
    rows = [pack([int(c) for c in row], bits, packing) for row in codes.reshape(-1, codes.shape[-1])]
    return np.array(rows, "<i4").reshape(*codes.shape[:-1], -1)


class Case:
    """One random weight: its codes, scales, zero points and groups, as stored and as decoded."""

    def __init__(
        self, *, bits=4, packing="dense", lead=(), rows=5, columns=20, group=8, zeros="none", scale="BF16",
        order=False, scales="group", seed=0,
    ):  # fmt: skip
        rng = np.random.default_rng(seed)
        groups = -(-columns // group)
        half = 1 << (bits - 1)
        self.codes = rng.integers(0, 2 * half, (*lead, rows, columns))
        shape = {
            "group": (*lead, rows, groups), "channel": (*lead, rows, 1), "row": (rows,), "one": (1,),
            "none": (), "expert": (*lead, 1, 1),
        }[scales]  # fmt: skip
        if scales != "group":
            groups, group = 1, columns
        values = rng.normal(size=shape).astype(NUMPY[scale])
        tensors = [("w_packed", "I32", pack_rows(self.codes, bits, packing)), ("w_scale", scale, values)]
        zero = np.zeros((*lead, rows, groups), np.int64)
        if zeros == "plain":
            zero = rng.integers(-half, half, shape)
            tensors.append(("w_zero_point", "I8", zero.astype(np.int8)))
        elif zeros == "packed":
            zero = rng.integers(-half, half, (*lead, rows, groups))
            words = pack_rows((zero + half).swapaxes(-1, -2), bits, packing).swapaxes(-1, -2)
            tensors.append(("w_zero_point", "I32", np.ascontiguousarray(words)))
        index = np.arange(columns) // group
        if order:
            index = rng.integers(0, groups, columns)
            tensors.append(("w_g_idx", "I32", index.astype("<i4")))
        self.specs = specs([(name, dtype, array.shape) for name, dtype, array in tensors])
        self.stored = [np.frombuffer(array.tobytes(), np.uint8) for _, _, array in tensors]
        self.params = {
            "columns": columns, "bits": bits, "packing": packing, "group_size": group, "zeros": zeros,
            "order": "g_idx" if order else "plain",
        }  # fmt: skip
        self.decoder = PackedInt(*self.specs, **self.params)
        full = np.broadcast_to(
            values.reshape((rows, 1) if scales == "row" else values.shape), (*lead, rows, groups)
        )
        zero = np.broadcast_to(zero.reshape((rows, 1) if scales == "row" else zero.shape), full.shape)
        q = (self.codes - half - zero[..., index]).astype(np.float32)
        self.want = q * full[..., index].astype(np.float32)

    def decode(self, start: int, stop: int) -> np.ndarray:
        """Items of a range, from nothing but the bytes of its spans."""
        spans = self.decoder.spans(start, stop)
        cut = [data[a:b] for data, (a, b) in zip(self.stored, spans, strict=True)]
        values, overflow = self.decoder.decode(cut, start, stop)
        assert overflow == 0
        assert values.dtype == np.float32
        return values


def check(**options) -> None:
    """The whole, and every row by itself, equal plain Python's."""
    case = Case(**options)
    decoder = case.decoder
    assert decoder.shape == case.want.shape
    assert decoder.dtype.name == options.get("scale", "BF16")
    assert decoder.parameters == case.want.size
    assert case.decode(0, decoder.items).tobytes() == case.want.tobytes()
    flat = case.want.reshape(-1)
    for start in range(0, decoder.items, decoder.grain):
        row = case.decode(start, start + decoder.grain)
        assert row.tobytes() == flat[start : start + decoder.grain].tobytes()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("packing", ["dense", "padded"])
@pytest.mark.parametrize("zeros", ["none", "packed", "plain"])
def test_every_number_of_bits(bits, packing, zeros):
    """2 to 8 bits, dense or padded words, ragged columns and rows, symmetric or not."""
    check(bits=bits, packing=packing, zeros=zeros, rows=37, columns=43, group=16)
    check(bits=bits, packing=packing, zeros=zeros, rows=64, columns=64, group=32)


@pytest.mark.parametrize("zeros", ["none", "packed", "plain"])
@pytest.mark.parametrize("bits", [3, 4])
def test_stacked_experts(bits, zeros):
    """Each expert's zero points start in a word of their own."""
    check(bits=bits, lead=(3,), rows=11, columns=24, zeros=zeros)
    check(bits=bits, lead=(3,), rows=1, columns=24, zeros=zeros)


@pytest.mark.parametrize("scales", ["channel", "row", "one", "none"])
@pytest.mark.parametrize("zeros", ["none", "plain"])
def test_scales_of_rows_and_tensors(scales, zeros):
    """One scale a row, or one in all."""
    check(scales=scales, zeros=zeros, scale="F16", columns=17)


def test_scales_of_experts():
    """One scale an expert, and one for all of them."""
    check(scales="expert", lead=(3,), rows=4, scale="F32")
    check(scales="expert", lead=(3,), rows=1, scale="F32")
    check(scales="one", lead=(3,), rows=1, zeros="plain")
    check(scales="channel", lead=(2,), zeros="packed")


@pytest.mark.parametrize("zeros", ["none", "packed", "plain"])
@pytest.mark.parametrize("lead", [(), (2,)])
def test_column_groups(zeros, lead):
    """Act-order: any column may belong to any group."""
    check(order=True, zeros=zeros, lead=lead, columns=24)


def test_column_groups_of_minus_one_are_none():
    """A tensor that is all -1 means groups in the columns' order."""
    case = Case(order=True, columns=24)
    plain = Case(columns=24)
    case.stored[-1] = np.full(24, -1, "<i4").view(np.uint8)
    case.stored[:2] = plain.stored[:2]
    assert case.decode(0, case.decoder.items).tobytes() == plain.want.tobytes()


@pytest.mark.parametrize(("index", "got"), [(3, "3"), (-1, "-1"), (-7, "-7")])
def test_column_groups_out_of_range(index, got):
    """A group that does not exist is an error that names the tensor."""
    case = Case(order=True, columns=24, group=8)
    groups = np.zeros(24, "<i4")
    groups[5] = index
    case.stored[-1] = groups.view(np.uint8)
    with pytest.raises(CheckpointError, match=rf"column groups `w_g_idx`.*expected 0 to 2, got {got}"):
        case.decode(0, case.decoder.items)


def test_a_nan_scale_is_an_error():
    """Scales are numbers."""
    case = Case(scale="F32")
    case.stored[1] = np.full(case.stored[1].size // 4, np.nan, np.float32).view(np.uint8)
    with pytest.raises(CheckpointError, match=r"`w_scale`.*expected numbers, got NaN"):
        case.decode(0, case.decoder.grain)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_cut_gives_the_same_bytes(data):
    """Whatever the layout, rows joined from any cut are the whole."""
    draw = data.draw
    case = Case(
        bits=draw(st.integers(2, 8)),
        packing=draw(st.sampled_from(["dense", "padded"])),
        lead=draw(st.sampled_from([(), (2,)])),
        rows=draw(st.integers(1, 70)),
        columns=draw(st.integers(1, 40)),
        group=draw(st.integers(1, 16)),
        zeros=draw(st.sampled_from(["none", "packed", "plain"])),
        order=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )
    rows = case.decoder.items // case.decoder.grain
    edges = sorted({0, rows, *draw(st.sets(st.integers(0, rows), max_size=4))})
    grain = case.decoder.grain
    pieces = [case.decode(start * grain, stop * grain) for start, stop in pairwise(edges)]
    assert np.concatenate(pieces).tobytes() == case.want.tobytes()
    primary = [case.decoder.spans(start * grain, stop * grain)[0] for start, stop in pairwise(edges)]
    width = case.specs[0].nbytes // rows
    assert primary == [(start * width, stop * width) for start, stop in pairwise(edges)]


def test_bound_again_from_a_plan():
    """Scheme, inputs and params make the same decoder."""
    decoder = Case(zeros="packed", order=True).decoder
    assert bind(decoder.scheme, decoder.inputs, decoder.params) == decoder


@pytest.mark.parametrize(
    ("place", "dtype", "shape", "words"),
    [
        (0, "U8", (5, 3), "I32"),
        (0, "I32", (5, 4), "expected 3 words a row for 20 columns of 4 bits, got 4"),
        (0, "I32", (15,), r"\[..., out, words\]"),
        (1, "F8_E4M3", (5, 3), "expected F16, BF16, F32"),
        (1, "BF16", (5, 2), r"expected \[5, 3\]"),
        (1, "BF16", (4, 3), r"expected \[5, 3\]"),
        (2, "I32", (5, 3), r"expected I32 \[1, 3\]"),
        (2, "I8", (5, 3), r"expected I32 \[1, 3\]"),
        (3, "I32", (19,), r"expected I32 \[20\]"),
        (3, "I64", (20,), r"expected I32 \[20\]"),
    ],
)
def test_what_does_not_belong_together(place, dtype, shape, words):
    """A wrong dtype or shape of any input is an error that names it."""
    case = Case(zeros="packed", order=True)
    stored = [(t.name, t.dtype.name, t.shape) for t in case.specs]
    stored[place] = (stored[place][0], dtype, shape)
    with pytest.raises(CheckpointError, match=f"{stored[place][0]}.*{words}"):
        PackedInt(*specs(stored), **case.params)
