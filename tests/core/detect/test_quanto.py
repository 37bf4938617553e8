"""quanto modules: foreign checkpoints whole, wrapped and cut; 8-bit spellings; and what is refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tensorport_hub.errors import CheckpointError
from tests.core.decode.test_quanto import pack
from tests.core.held import decoded, made
from tests.foreign import check_checkpoint, check_wrapped

CHECKPOINTS = ("quanto_float8", "quanto_int4", "quanto_int8")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_foreign_checkpoint_decodes_bit_for_bit(name, tmp_path):
    """What quanto returns, in its dtype; whole, and cut at every few rows."""
    check_checkpoint(name, tmp_path / "whole")
    check_checkpoint(name, tmp_path / "cut", shard_size=2_000)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_wrapped_copy_decodes_the_same(name, tmp_path):
    """Other names, and companions in another file."""
    check_wrapped(name, tmp_path)


@pytest.mark.parametrize("codes", [np.int8, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
@pytest.mark.parametrize("kind", [ml_dtypes.bfloat16, np.float16, np.float32])
@pytest.mark.parametrize(
    ("shape", "factors"),
    [((6, 10), (6, 1)), ((6, 10), ()), ((6, 10), (1, 10)), ((4, 3, 2, 2), (4, 1, 1, 1)), ((6, 6), (6, 1))],
)
def test_8_bit_scales_broadcast(codes, kind, shape, factors):
    """One scale, one per output row, or one per column: what numpy's broadcasting of the shapes says."""
    rng = np.random.default_rng(1)
    data = rng.integers(-100, 100, shape).astype(np.int8).astype(codes)
    scale = rng.uniform(0.01, 2, factors).astype(kind)
    stored = {"m.weight._data": data, "m.weight._scale": scale, "m.input_scale": np.ones((), np.float32)}
    recipe = made(stored)["m.weight"]
    want = data.astype(np.float32) * scale.astype(np.float32)
    np.testing.assert_array_equal(decoded(stored, recipe, (1, 3)), want)
    assert recipe.dtype.numpy == scale.dtype


@pytest.mark.parametrize(
    ("data", "scale", "message"),
    [
        (np.zeros((6, 10), np.int32), np.ones((6, 1), np.float32), "expected I8 or an 8-bit float"),
        (np.zeros((6, 10), np.int8), np.ones((6,), np.float32), r"expected one scale, \[6, 1\] or \[1, 10\]"),
        (np.zeros((6, 10), np.int8), np.ones((6, 1), np.int8), "expected F32, BF16 or F16"),
    ],
)
def test_8_bit_damage(data, scale, message):
    """Dtypes and shapes are checked."""
    with pytest.raises(CheckpointError, match=message):
        made({"m.weight._data": data, "m.weight._scale": scale})


def test_a_shape_that_nothing_tells():
    """Rows of 128 codes may be groups of longer rows: without a bias that is an error, no guess."""
    stored, _ = pack((6, 256), 4, 128)
    del stored["m.bias"]
    with pytest.raises(CheckpointError, match="its shape is not stored"):
        made(stored)


def test_rows_of_no_group_size_are_whole():
    """No group has 40 or 300 codes, so the stored matrix is the weight, bias or not."""
    for width in (40, 300):
        stored, want = pack((6, width), 4)
        del stored["m.bias"]
        assert decoded(stored, made(stored)["m.weight"]).tobytes() == want.tobytes()


@pytest.mark.parametrize("rows", [5, 3, 24])
def test_a_bias_that_does_not_fit(rows):
    """It must divide the groups into rows; and rows that were cut are longer than 128."""
    stored, _ = pack((12, 32), 4)
    stored["m.bias"] = np.zeros(rows, np.float32)
    with pytest.raises(CheckpointError, match=r"m\.bias"):
        made(stored)


@pytest.mark.parametrize("module", ["conv_in", "down.0.Conv2d"])
def test_groups_of_a_convolution_are_refused(module):
    """A [6, 32, 3, 3] weight in groups of 96 has lost its last two axes; without groups it keeps them."""
    stored, _ = pack((6, 288), 4, 96)
    with pytest.raises(CheckpointError, match="named as a convolution"):
        made({module + name.removeprefix("m"): array for name, array in stored.items()})
    stored, want = pack((6, 3, 3, 3), 4)
    found = made({module + name.removeprefix("m"): array for name, array in stored.items()})
    weight = decoded(
        {module + name.removeprefix("m"): a for name, a in stored.items()}, found[f"{module}.weight"]
    )
    assert weight.shape == want.shape
    assert weight.tobytes() == want.tobytes()


def test_two_rows_may_have_4_or_2_bits():
    """One packed row is both; the configuration decides."""
    stored, want = pack((2, 40), 2)
    assert decoded(stored, made(stored, {"weights": "int2"})["m.weight"]).tobytes() == want.tobytes()
    with pytest.raises(CheckpointError, match="4-bit or of 2-bit codes"):
        made(stored)


@pytest.mark.parametrize("name", ["_data._data", "_scale", "_shift"])
def test_a_missing_part(name):
    """Nothing passes as if it were a weight."""
    stored, _ = pack((6, 40), 4)
    del stored[f"m.weight.{name}"]
    with pytest.raises(CheckpointError, match=r"m\.weight\."):
        made(stored)
