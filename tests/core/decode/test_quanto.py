"""quanto int4 and int2: packed here row by row in plain Python, decoded item by item by a slow formula."""

from __future__ import annotations

from math import prod

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.decode.quanto import QuantoBits
from tensorport_hub.errors import CheckpointError
from tests.core.held import decoded, made
from tests.core.samples import specs


def pack(shape, nbits, group=None, kind=ml_dtypes.bfloat16, zeros=False):
    """Stored tensors with a bias, and the weight by the formula with a rounding after each operation."""
    rng = np.random.default_rng(nbits)
    count = prod(shape)
    rows = shape[0] if group is None else count // group
    width = count // rows
    slots = 8 // nbits
    packed = -(-rows // slots)
    words = [[0] * width for _ in range(packed)]
    scale = rng.uniform(-1, 1, rows).astype(kind)
    shift = (rng.integers(0, 2**nbits, rows) if zeros else rng.uniform(0, 8, rows)).astype(
        np.uint8 if zeros else kind
    )
    weight = []
    for i in range(rows):
        slot, at = divmod(i, packed)
        for j, code in enumerate(rng.integers(0, 2**nbits, width).tolist()):
            words[at][j] |= code << slot * nbits
            if zeros:
                weight.append(kind(np.float32(code - int(shift[i])) * np.float32(scale[i])))
            else:
                product = kind(np.float32(code) * np.float32(scale[i]))
                weight.append(kind(np.float32(product) - np.float32(shift[i])))
    rest = shape[1:] if group is None else (group,)
    ones = (1,) * len(rest)
    stored = {
        "m.weight._data._data": np.array(words, np.uint8).reshape(packed, *rest),
        "m.weight._scale": scale.reshape(rows, *ones),
        "m.weight._shift": shift.reshape(rows, *ones),
        "m.bias": np.zeros(shape[0], np.float32),
    }
    return stored, np.array(weight, kind).reshape(shape)


@pytest.mark.parametrize("nbits", [4, 2])
@pytest.mark.parametrize("kind", [ml_dtypes.bfloat16, np.float16, np.float32])
@pytest.mark.parametrize(
    ("shape", "group"),
    [
        ((16, 64), None),
        ((13, 40), None),
        ((6, 256), 128),
        ((5, 192), 96),
        ((7, 160), 32),
        ((9, 3, 2, 2), None),
    ],
)
@pytest.mark.parametrize("zeros", [False, True])
def test_every_shape_equals_the_formula(nbits, kind, shape, group, zeros):
    """Odd row counts, groups, convolutions, float shifts and integer zero points; whole and in odd pieces."""
    stored, want = pack(shape, nbits, group, kind, zeros)
    recipe = made(stored)["m.weight"]
    assert recipe.dtype.numpy == want.dtype
    assert recipe.shape == shape
    for rows in ((), (1, 2, 5)):
        assert decoded(stored, recipe, rows).tobytes() == want.tobytes()


@given(nbits=st.sampled_from([4, 2]), rows=st.integers(4, 20), cuts=st.lists(st.integers(1, 19), max_size=5))
@settings(max_examples=30, deadline=None)
def test_any_cut_gives_the_same_bytes(nbits, rows, cuts):
    """Pieces cut at any rows."""
    stored, want = pack((rows, 160), nbits, 32)
    got = decoded(stored, made(stored)["m.weight"], [cut for cut in cuts if cut < rows])
    assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("name", ["m.weight._scale", "m.weight._shift"])
def test_a_factor_that_is_no_number_is_damage(name):
    """Infinity is refused when it is met."""
    stored, _ = pack((4, 40), 4)
    stored[name][1] = np.inf
    with pytest.raises(CheckpointError, match="expected finite values"):
        decoded(stored, made(stored)["m.weight"])


@pytest.mark.parametrize(
    ("codes", "scale", "shift", "changes", "message"),
    [
        (("I8", (2, 40)), ("F16", (4, 1)), ("F16", (4, 1)), {}, r"expected U8 \[2, ..\] for 4 rows"),
        (("U8", (3, 40)), ("F16", (4, 1)), ("F16", (4, 1)), {}, r"expected U8 \[2, ..\] for 4 rows"),
        (("U8", (2, 40)), ("F16", (4, 2)), ("F16", (4, 2)), {}, r"expected floats \[rows, 1\]"),
        (("U8", (2, 40)), ("I8", (4, 1)), ("F16", (4, 1)), {}, r"expected floats \[rows, 1\]"),
        (("U8", (2, 40)), ("F16", (4, 1)), ("F16", (4,)), {}, "expected F16 or I8 or U8"),
        (("U8", (2, 40)), ("F16", (4, 1)), ("BF16", (4, 1)), {}, "expected F16 or I8 or U8"),
        (("U8", (2, 40)), ("F16", (4, 1)), ("F16", (4, 1)), {"nbits": 3}, "expected 4 or 2 bits, got 3"),
        (("U8", (2, 40)), ("F16", (4, 1)), ("F16", (4, 1)), {"dims": "4,41"}, "expected 164 codes"),
    ],
)
def test_inputs_that_do_not_belong_together(codes, scale, shift, changes, message):
    """Dtypes and shapes are checked against each other."""
    inputs = specs([("w._data._data", *codes), ("w._scale", *scale), ("w._shift", *shift)])
    with pytest.raises(CheckpointError, match=message):
        QuantoBits(*inputs, **{"dims": "4,40", "nbits": 4, **changes})
