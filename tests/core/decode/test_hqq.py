"""HQQ: packed here row by row in plain Python, decoded item by item by a slow formula."""

from __future__ import annotations

from math import prod

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.decode.hqq import Hqq
from tensorport_hub.errors import CheckpointError
from tests.core.held import decoded, made
from tests.core.samples import specs

SLOTS = {8: 1, 4: 2, 3: 10, 2: 4, 1: 8}
PACKING = {8: "8bit_u8", 4: "4bit_u8", 3: "3bit_32", 2: "2bit_u8", 1: "1bit_u8"}
KINDS = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}


def pack(shape, nbits, group, axis, kind="bfloat16"):
    """Stored tensors, and the weight by the formula with a rounding after each operation."""
    rng = np.random.default_rng(nbits * 100 + axis)
    count, to = prod(shape), KINDS[kind]
    if group is None:
        rows, columns = shape
    else:
        rows, columns = (count // group, group) if axis == 1 else (group, count // group)
    codes = rng.integers(0, 2**nbits, (rows, columns)).tolist()
    groups = rows if axis == 1 else columns
    scale = (rng.uniform(-1, 1, groups) / 2**nbits).astype(to)
    zero = rng.uniform(0, 2**nbits, groups).astype(to)
    slots = SLOTS[nbits]
    steps = -(-rows // slots)
    words = [[0] * columns for _ in range(steps)]
    weight = []
    for i, row in enumerate(codes):
        slot, at = divmod(i, steps)
        for j, code in enumerate(row):
            words[at][j] |= code << (slots - 1 - slot) * nbits
            k = i if axis == 1 else j
            difference = to(np.float32(code) - np.float32(zero[k]))
            weight.append(to(np.float32(difference) * np.float32(scale[k])))
    factors = (rows, 1) if axis == 1 else (1, columns)
    stored = {
        "m.W_q": np.array(words, np.int32 if nbits == 3 else np.uint8),
        "m.scale": scale.reshape(factors),
        "m.zero": zero.reshape(factors),
        "m.shape": np.array(shape, np.int64),
        "m.nbits": np.array(nbits, np.int32),
        "m.axis": np.array(axis, np.int32),
        "m.packing": np.frombuffer(PACKING[nbits].encode(), np.uint8),
        "m.compute_dtype": np.frombuffer(f"torch.{kind}".encode(), np.uint8),
        "m.view_as_float": np.array(0, np.uint8),
    }
    if group is not None:
        stored["m.group_size"] = np.array(group, np.int32)
    return stored, np.array(weight, to).reshape(shape)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("nbits", [8, 4, 3, 2, 1])
@pytest.mark.parametrize("group", [8, 16, 64, None])
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32"])
def test_all_bits_and_axes(axis, nbits, group, kind):
    """Two roundings in the compute dtype, bit for bit, whole and in odd pieces."""
    stored, want = pack((32, 32), nbits, group, axis, kind)
    recipes = made(stored)
    assert recipes.keys() == {"m.weight"}
    recipe = recipes["m.weight"]
    assert recipe.dtype.numpy == want.dtype
    for rows in ((), (1, 2, 7, 12, 23)):
        assert decoded(stored, recipe, rows).tobytes() == want.tobytes()


@given(
    nbits=st.sampled_from([8, 4, 3, 2, 1]),
    axis=st.integers(0, 1),
    cuts=st.lists(st.integers(1, 15), max_size=6),
    group=st.sampled_from([8, 24, 48]),
)
@settings(max_examples=40, deadline=None)
def test_any_cut_gives_the_same_bytes(nbits, axis, cuts, group):
    """Rows may end inside a group and groups inside a row."""
    stored, want = pack((16, 24), nbits, group, axis)
    assert decoded(stored, made(stored)["m.weight"], cuts).tobytes() == want.tobytes()


def test_only_plain_bytes_in_order_are_not_held():
    """8 bits are decoded as they come; of the rest, several rows take their bits from the same words."""
    held = {
        (nbits, axis): made(pack((16, 64), nbits, 64, axis)[0])["m.weight"].decoder.held
        for nbits in SLOTS
        for axis in (0, 1)
    }
    assert [key for key, value in held.items() if not value] == [(8, 0), (8, 1)]


@pytest.mark.parametrize("nbits", [8, 4, 3])
def test_codes_viewed_as_floats(nbits):
    """`view_as_float` changes the dtype of W_q and its width, not its bytes."""
    stored, want = pack((16, 64), nbits, 64, 1)
    stored["m.W_q"] = stored["m.W_q"].view(np.float32 if nbits == 3 else ml_dtypes.bfloat16)
    stored["m.view_as_float"] = np.array(1, np.uint8)
    assert decoded(stored, made(stored)["m.weight"]).tobytes() == want.tobytes()


def test_factors_wider_than_the_compute_dtype():
    """torch then computes in float32."""
    stored, _ = pack((16, 64), 4, 64, 1, "float32")
    stored["m.compute_dtype"] = np.frombuffer(b"torch.float16", np.uint8)
    assert made(stored)["m.weight"].dtype.name == "F32"


def test_overflow_is_counted():
    """A product beyond float16 is an infinity that the count tells."""
    stored, _ = pack((2, 64), 8, 64, 1, "float16")
    stored["m.scale"] = np.full((2, 1), 6e4, np.float16)
    stored["m.zero"] = np.full((2, 1), -2, np.float16)
    decoder = made(stored)["m.weight"].decoder
    data = [np.frombuffer(stored[t.name].tobytes(), np.uint8) for t in decoder.inputs]
    values, overflow = decoder.decode(data, 0, 128)
    assert overflow == np.count_nonzero(np.isinf(values)) == 128


@pytest.mark.parametrize("name", ["m.scale", "m.zero"])
def test_a_factor_that_is_no_number_is_damage(name):
    """NaN is refused when it is met."""
    stored, _ = pack((4, 64), 4, 64, 1)
    stored[name][1] = np.nan
    with pytest.raises(CheckpointError, match="expected finite values"):
        decoded(stored, made(stored)["m.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nbits": 5}, "expected 8, 4, 3, 2 or 1 bits"),
        ({"axis": 2}, "axis 0 or 1"),
        ({"group_size": 7}, "to divide into groups, got groups of 7"),
        ({"group_size": -1}, "to divide into groups"),
        ({"nbits": 8}, r"expected 8-bit codes in U8 \[4, 64\]"),
        ({"nbits": 3}, r"expected 3-bit codes in I32 \[1, 64\]"),
        ({"dims": "4,128"}, r"expected 4-bit codes in U8 \[4, 64\]"),
        ({"dims": "3,64"}, "expected 4-bit codes"),
        ({"axis": 0}, r"expected 4-bit codes in U8 \[32, 4\]"),
        ({"compute": "I8"}, "a float type"),
    ],
)
def test_parameters_that_do_not_fit(changes, message):
    """Sizes of the codes follow from shape, bits, groups and axis."""
    inputs = specs([("m.W_q", "U8", (2, 64)), ("m.scale", "BF16", (4, 1)), ("m.zero", "BF16", (4, 1))])
    good = {"dims": "4,64", "nbits": 4, "group_size": 64, "axis": 1, "compute": "BF16"}
    assert Hqq(*inputs, **good).shape == (4, 64)
    with pytest.raises(CheckpointError, match=message):
        Hqq(*inputs, **{**good, **changes})


@pytest.mark.parametrize(
    ("scale", "zero", "message"),
    [
        (("BF16", (4,)), ("BF16", (4, 1)), r"`m.scale`.*expected floats \[4, 1\]"),
        (("BF16", (4, 1)), ("BF16", (1, 4)), r"`m.zero`.*expected floats \[4, 1\]"),
        (("U8", (4, 1)), ("BF16", (4, 1)), r"`m.scale`.*expected floats"),
        (("F32", (4, 1)), ("BF16", (4, 1)), "expected F32 like `m.scale`"),
    ],
)
def test_factors_that_do_not_fit(scale, zero, message):
    """One factor a group, both of one dtype."""
    inputs = specs([("m.W_q", "U8", (2, 64)), ("m.scale", *scale), ("m.zero", *zero)])
    with pytest.raises(CheckpointError, match=message):
        Hqq(*inputs, dims="4,64", nbits=4, group_size=64, axis=1, compute="BF16")
