"""bitsandbytes int8: the formula in its order, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.decode.bnb8 import Bnb8
from tensorport_hub.errors import CheckpointError
from tests.core.held import decoded, made
from tests.core.samples import specs


def pack(rows, columns, seed=0):
    """Stored tensors, and the weight, item by item in float32."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-128, 128, (rows, columns)).astype(np.int8)
    maxima = rng.uniform(0.01, 9, rows).astype(np.float32)
    want = [
        [(np.float32(code) * maximum) * np.float32(7.874015718698502e-3) for code in row.tolist()]
        for row, maximum in zip(codes, maxima, strict=True)
    ]
    return {"m.weight": codes, "m.SCB": maxima}, np.array(want, np.float32)


@given(st.integers(1, 12), st.integers(1, 40), st.lists(st.integers(1, 12), max_size=4))
@settings(max_examples=40, deadline=None)
def test_any_cut_gives_the_formula(rows, columns, cuts):
    """Bits of float32, from each piece's own bytes."""
    stored, want = pack(rows, columns)
    recipe = made(stored)["m.weight"]
    assert recipe.dtype.name == "F32"
    got = decoded(stored, recipe, [cut for cut in cuts if cut < rows])
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


def test_a_maximum_that_is_no_number_is_damage():
    """NaN is refused when it is met."""
    stored, _ = pack(4, 8)
    stored["m.SCB"][2] = np.nan
    with pytest.raises(CheckpointError, match="expected finite values"):
        decoded(stored, made(stored)["m.weight"])


@pytest.mark.parametrize(
    ("weight", "maxima", "message"),
    [
        (("U8", (4, 8)), ("F32", (4,)), r"expected I8 \[out, in\]"),
        (("I8", (32,)), ("F32", (32,)), r"expected I8 \[out, in\]"),
        (("I8", (4, 8)), ("F32", (8,)), r"expected F32 \[4\] to match `m.weight`"),
        (("I8", (4, 8)), ("F16", (4,)), r"expected F32 \[4\]"),
    ],
)
def test_inputs_that_do_not_belong_together(weight, maxima, message):
    """Dtypes and shapes are checked."""
    with pytest.raises(CheckpointError, match=message):
        Bnb8(*specs([("m.weight", *weight), ("m.SCB", *maxima)]))
