"""Sparse matrices against numpy's own mask assignment over the whole."""

from __future__ import annotations

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.decode.sparse import Sparse24, SparseBitmask
from tensorport_hub.core.decode.table import bind
from tensorport_hub.errors import CheckpointError
from tests.core.held import decoded_items
from tests.core.samples import specs

NUMPY = {
    "BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "I8": np.int8,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
}  # fmt: skip


def sample(kind="24", dtype="BF16", rows=6, columns=12, scales=None, seed=0):
    """A decoder, its stored bytes, and the dense values.

    `kind`: "24"; "quads": 2:4 over quads that cross rows; "any"; "offsets": any, with row offsets.
    """
    rng = np.random.default_rng(seed)
    if kind in ("24", "quads"):
        quads = rng.permuted(np.tile([True, True, False, False], (rows * columns // 4, 1)), axis=1)
        mask = quads.reshape(rows, columns)
    else:
        mask = rng.random((rows, columns)) < 0.4
    dense = np.zeros((rows, columns), NUMPY[dtype])
    values = rng.normal(size=int(mask.sum())) * (20 if dtype == "I8" else 1)
    dense[mask] = values.astype(NUMPY[dtype])
    stored = dense[mask]
    arrays = [
        ("compressed", dtype, stored.reshape(rows, -1) if kind in ("24", "quads") else stored),
        ("bitmask", "U8", np.packbits(mask, axis=1, bitorder="little")),
    ]
    params = {"columns": columns, "group_size": columns, "scaled": "no"}
    want = dense
    if scales is not None:
        scale = rng.normal(size=scales).astype(np.float32)
        arrays.append(("scale", "F32", scale))
        groups = scales[1] if len(scales) == 2 else 1
        params |= {"scaled": "yes", "group_size": columns // groups}
        each = scale.reshape(-1, groups) if scale.size > 1 else scale.reshape(1, 1)
        want = dense.astype(np.float32) * np.repeat(each, columns // groups, axis=1)
    if kind != "24":
        params["offsets"] = "stored" if kind == "offsets" else "no"
    if kind == "offsets":
        counts = mask.sum(axis=1)
        arrays.append(("row_offsets", "I64", (np.cumsum(counts) - counts).astype("<i8")))
    tensors = specs([(name, kind, array.shape) for name, kind, array in arrays])
    decoder = (Sparse24 if kind == "24" else SparseBitmask)(*tensors, **params)
    return decoder, [np.frombuffer(array.tobytes(), np.uint8) for _, _, array in arrays], want


def decode(decoder, stored, start, stop):
    """A range from nothing but the bytes that it needs."""
    return decoded_items(decoder, stored, start, stop)[0]


@pytest.mark.parametrize("kind", ["24", "quads", "any", "offsets"])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_unscaled(kind, dtype):
    """Values keep their bits, the rest is zero."""
    decoder, stored, want = sample(kind, dtype, columns=12 if kind == "24" else 10)
    assert (decoder.dtype.name, decoder.exact.name, decoder.shape) == (dtype, dtype, want.shape)
    assert decode(decoder, stored, 0, decoder.items).tobytes() == want.tobytes()
    assert bind(decoder.scheme, decoder.inputs, decoder.params) == decoder


@pytest.mark.parametrize("kind", ["24", "any", "offsets"])
@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "I8"])
@pytest.mark.parametrize("scales", [(), (1,), (6,), (6, 1), (6, 3)])
def test_scaled(kind, dtype, scales):
    """8-bit values times their scales; the dtype is the scales'."""
    decoder, stored, want = sample(kind, dtype, scales=scales)
    assert (decoder.dtype.name, decoder.exact.name) == ("F32", "F32")
    assert decode(decoder, stored, 0, decoder.items).tobytes() == want.tobytes()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_cut_gives_the_same_bytes(data):
    """Whatever the layout, rows joined from any cut are the whole."""
    draw = data.draw
    kind = draw(st.sampled_from(["24", "quads", "any", "offsets"]))
    rows = draw(st.integers(1, 6)) * (2 if kind == "quads" else 1)
    columns = {"24": 4, "quads": 2}.get(kind, 1) * draw(st.integers(1, 7))
    decoder, stored, want = sample(kind, rows=rows, columns=columns, seed=draw(st.integers(0, 99)))
    edges = sorted({0, rows, *draw(st.sets(st.integers(0, rows)))})
    pieces = [decode(decoder, stored, a * columns, b * columns) for a, b in pairwise(edges)]
    assert np.concatenate(pieces).tobytes() == want.tobytes()


def test_a_mask_that_does_not_fit_the_values():
    """Too many or too few bits are an error that names the row."""
    decoder, stored, _ = sample("24")
    stored[1] = stored[1].copy()
    stored[1][2] ^= 1
    with pytest.raises(CheckpointError, match=r"bit mask `bitmask`.*expected 6 values in row 1, got [57]"):
        decode(decoder, stored, 0, decoder.items)
    for kind in ("any", "offsets"):
        decoder, stored, _ = sample(kind)
        stored[1] = stored[1].copy()
        stored[1][2] ^= 1
        with pytest.raises(CheckpointError, match="bit mask `bitmask`"):
            decode(decoder, stored, 0, decoder.items)


@pytest.mark.parametrize("offset", [-1, 1 << 40])
def test_row_offsets_out_of_range(offset):
    """Offsets outside the values are an error."""
    decoder, stored, _ = sample("offsets")
    stored[-1] = np.full(6, offset, "<i8").view(np.uint8)
    with pytest.raises(CheckpointError, match="bit mask `bitmask`"):
        decode(decoder, stored, 12, 24)


def test_a_nan_scale_is_an_error():
    """Scales are numbers."""
    decoder, stored, _ = sample("24", "I8", scales=(6, 1))
    stored[2] = np.full(24, 0xFF, np.uint8)
    with pytest.raises(CheckpointError, match=r"`scale`.*expected numbers, got NaN"):
        decode(decoder, stored, 0, decoder.items)


@pytest.mark.parametrize(
    ("place", "dtype", "shape", "words"),
    [
        (0, "U8", (6, 6), "expected F8_E4M3"),
        (0, "BF16", (6, 6), "expected F8_E4M3"),
        (0, "I8", (6, 5), r"expected \[6, 6\]"),
        (0, "I8", (36,), "columns in fours"),
        (0, "I8", (1, 6, 6), "expected"),
        (1, "I8", (6, 2), r"expected U8 \[rows, 2\]"),
        (1, "U8", (6, 3), r"expected U8 \[rows, 2\]"),
        (1, "U8", (5, 2), r"expected \[5, 6\]"),
        (2, "U8", (6, 1), "expected F16"),
        (2, "F32", (5, 1), r"expected one, or \[6, 1\]"),
    ],
)
def test_what_does_not_belong_together(place, dtype, shape, words):
    """A wrong dtype or shape of any input is an error."""
    stored = [("compressed", "I8", (6, 6)), ("bitmask", "U8", (6, 2)), ("scale", "F32", (6, 1))]
    stored[place] = (stored[place][0], dtype, shape)
    with pytest.raises(CheckpointError, match=words):
        Sparse24(*specs(stored), columns=12, group_size=12, scaled="yes")
