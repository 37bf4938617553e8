"""bitsandbytes 4-bit: packed here from the format's description, decoded item by item by a slow formula."""

from __future__ import annotations

import json
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.decode.bnb4 import Bnb4
from tensorport_hub.errors import CheckpointError
from tests.core.held import decoded, made
from tests.core.samples import specs

WEIGHT = "layers.0.proj.weight"
STATE = f"{WEIGHT}.quant_state.bitsandbytes__nf4"


def pack(
    shape: tuple[int, ...],
    *,
    blocksize: int = 64,
    nested: bool = False,
    output: str = "bfloat16",
    seed: int = 0,
) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.float32]]:
    """Stored tensors of random codes, and the float32 weight by the formula, one item after another."""
    rng = np.random.default_rng(prod(shape))
    count = prod(shape)
    codes = rng.integers(0, 16, count).tolist()
    table = np.sort(rng.uniform(-1, 1, 16)).astype(np.float32)
    blocks = -(-count // blocksize)
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": blocksize, "dtype": output, "shape": [*shape]}
    stored: dict[str, npt.NDArray[Any]] = {}
    if nested:
        maxima_codes = rng.integers(0, 256, blocks).astype(np.uint8)
        nested_map = np.sort(rng.uniform(-1, 1, 256)).astype(np.float32)
        nested_absmax = rng.uniform(0.1, 2, -(-blocks // 256)).astype(np.float32)
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.26370906829833984}
        absmax = [
            np.float32(nested_map[code] * nested_absmax[i // 256]) + np.float32(state["nested_offset"])
            for i, code in enumerate(maxima_codes.tolist())
        ]
        stored |= {
            f"{WEIGHT}.absmax": maxima_codes,
            f"{WEIGHT}.nested_absmax": nested_absmax,
            f"{WEIGHT}.nested_quant_map": nested_map,
        }
    else:
        absmax = [*rng.uniform(0.01, 3, blocks).astype(np.float32)]
        stored[f"{WEIGHT}.absmax"] = np.array(absmax, np.float32)
    even = [*codes, 0][: count + count % 2]
    data = bytes(high << 4 | low for high, low in zip(even[::2], even[1::2], strict=True))
    stored[WEIGHT] = np.frombuffer(data, np.uint8).reshape(-1, 1)
    stored[f"{WEIGHT}.quant_map"] = table
    stored[STATE] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    want = [np.float32(table[code] * absmax[i // blocksize]) for i, code in enumerate(codes)]
    return stored, np.array(want, np.float32).reshape(shape)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(10, 36), (7, 128), (3, 4, 50), (300, 128), (5, 7), (130,)])
@pytest.mark.parametrize("blocksize", [64, 32, 256])
def test_every_shape_equals_the_formula(shape, blocksize, nested):
    """Blocks run on over rows; the last may be short; rows may end inside a byte; bits of float32."""
    stored, want = pack(shape, blocksize=blocksize, nested=nested)
    recipe = made(stored)[WEIGHT]
    got = decoded(stored, recipe)
    assert got.shape == shape
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 70)),
    nested=st.booleans(),
    cuts=st.lists(st.integers(0, 40), max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_any_cut_gives_the_same_bytes(shape, nested, cuts):
    """Pieces cut at any rows, each from its own span's bytes alone."""
    stored, want = pack(shape, blocksize=32, nested=nested)
    rows = [row for row in cuts if row < shape[0]]
    got = decoded(stored, made(stored)[WEIGHT], rows)
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


def test_a_piece_reads_only_its_blocks():
    """A span names the bytes of its rows and of their maxima, and the small tables."""
    stored, _ = pack((512, 128), nested=True)
    decoder = made(stored)[WEIGHT].decoder
    assert not decoder.held
    assert decoder.spans(128 * 256, 128 * 300) == (
        (128 * 128, 128 * 150),
        (512, 600),
        (0, 64),
        (8, 12),
        (0, 1024),
    )


@pytest.mark.parametrize(("output", "name"), [("bfloat16", "BF16"), ("float16", "F16"), ("float32", "F32")])
@pytest.mark.parametrize("storage", [np.uint8, ml_dtypes.bfloat16, np.float16, np.float32])
def test_storage_is_only_bytes(output, name, storage):
    """Whatever dtype and shape hold the codes; the blob says what comes out."""
    stored, want = pack((16, 64), output=output)
    stored[WEIGHT] = np.frombuffer(stored[WEIGHT].tobytes(), storage).reshape(1, -1)
    recipe = made(stored)[WEIGHT]
    assert (recipe.dtype.name, recipe.shape) == (name, (16, 64))
    assert recipe.decoder.parameters == 16 * 64
    np.testing.assert_array_equal(decoded(stored, recipe), want)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_maxima_of_16_bits_are_widened(kind):
    """An absmax that a cast of the whole checkpoint rounded still has one reading."""
    stored, _ = pack((4, 64))
    stored[f"{WEIGHT}.absmax"] = stored[f"{WEIGHT}.absmax"].astype(kind)
    wide = dict(stored)
    wide[f"{WEIGHT}.absmax"] = stored[f"{WEIGHT}.absmax"].astype(np.float32)
    np.testing.assert_array_equal(decoded(stored, made(stored)[WEIGHT]), decoded(wide, made(wide)[WEIGHT]))


@pytest.mark.parametrize("name", [f"{WEIGHT}.absmax", f"{WEIGHT}.quant_map", f"{WEIGHT}.nested_absmax"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_scale_that_is_no_number_is_damage(name, value):
    """NaN and infinity in maxima and tables are refused when they are met."""
    stored, _ = pack((4, 64), nested="nested" in name)
    stored[name] = stored[name].copy()
    stored[name][0] = value
    recipe = made(stored)[WEIGHT]
    with pytest.raises(CheckpointError, match="expected finite values"):
        decoded(stored, recipe)


def test_overflow_is_counted():
    """A product beyond float32 is an infinity that the count tells."""
    stored, _ = pack((1, 64))
    stored[f"{WEIGHT}.quant_map"] = np.full(16, 4, np.float32)
    stored[f"{WEIGHT}.absmax"] = np.array([3e38], np.float32)
    decoder = made(stored)[WEIGHT].decoder
    data = [np.frombuffer(stored[t.name].tobytes(), np.uint8) for t in decoder.inputs]
    values, overflow = decoder.decode(data, 0, 64)
    assert np.isinf(values).all()
    assert overflow == 64


@pytest.mark.parametrize(
    ("absmax", "table", "dims", "message"),
    [
        (("F32", (3,)), ("F32", (16,)), "4,64", r"expected F32 or BF16 or F16 \[4\] to match `x`"),
        (("I8", (4,)), ("F32", (16,)), "4,64", r"expected F32 or BF16 or F16 \[4\]"),
        (("F32", (4,)), ("F32", (15,)), "4,64", r"expected F32 \[16\]"),
        (("F32", (4,)), ("F32", (16,)), "4,65", "expected 130 bytes of 4-bit codes"),
        (("F32", (4,)), ("F32", (16,)), "0,64", "expected a shape"),
    ],
)
def test_inputs_that_do_not_belong_together(absmax, table, dims, message):
    """Sizes and dtypes are checked against each other."""
    inputs = specs([("x", "U8", (128, 1)), ("x.absmax", *absmax), ("x.quant_map", *table)])
    with pytest.raises(CheckpointError, match=message):
        Bnb4(*inputs, dims=dims, blocksize=64, output="BF16")
