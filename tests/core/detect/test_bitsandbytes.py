"""bitsandbytes modules: foreign checkpoints whole, wrapped and cut; and what is refused, in words."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tensorport_hub.errors import CheckpointError
from tests.core.decode import test_bnb8
from tests.core.decode.test_bnb4 import STATE, WEIGHT, pack
from tests.core.held import decoded, made
from tests.foreign import check_checkpoint, check_wrapped

CHECKPOINTS = ("bnb_fp4", "bnb_int8", "bnb_nf4", "bnb_nf4_double_quant", "bnb_nf4_f32")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_foreign_checkpoint_decodes_bit_for_bit(name, tmp_path):
    """What bitsandbytes returns, in its dtype; whole, and cut at every few rows."""
    check_checkpoint(name, tmp_path / "whole")
    check_checkpoint(name, tmp_path / "cut", shard_size=2_000)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_wrapped_copy_decodes_the_same(name, tmp_path):
    """Other names, and companions in another file."""
    check_wrapped(name, tmp_path)


def change(stored, **keys):
    """The blob with other values; None takes a key away."""
    blob = {**json.loads(stored[STATE].tobytes()), **keys}
    text = json.dumps({key: value for key, value in blob.items() if value is not None})
    return {**stored, STATE: np.frombuffer(text.encode(), np.uint8)}


def test_a_weight_needs_no_particular_name():
    """Fused experts are parameters of their own: the state beside a tensor is what counts."""
    stored, want = pack((3, 4, 64))
    renamed = {name.replace(WEIGHT, "mlp.experts.gate_up_proj"): array for name, array in stored.items()}
    recipe = made(renamed)["mlp.experts.gate_up_proj"]
    np.testing.assert_array_equal(decoded(renamed, recipe), want)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"quant_type": "fp4"}, "expected `quant_type` nf4, got 'fp4'"),
        ({"shape": [4, -64]}, r"expected `shape` a list of sizes, got \[4, -64\]"),
        ({"shape": None}, "expected `shape` a list of sizes, got None"),
        ({"blocksize": 0}, "expected `blocksize` a positive integer, got 0"),
        ({"dtype": "int8"}, "expected `dtype` float32 or bfloat16 or float16, got 'int8'"),
        ({"nested_offset": None}, "expected `nested_offset` a number, got None"),
        ({"nested_blocksize": "x"}, "expected `nested_blocksize` a positive integer"),
        ({"nested_offset": float("nan")}, "a finite offset"),
    ],
)
def test_a_damaged_blob(keys, message):
    """Each key is checked when it is asked for."""
    stored, _ = pack((4, 64), nested=True)
    with pytest.raises(CheckpointError, match=message):
        made(change(stored, **keys))


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff"])
def test_a_blob_that_is_no_object(text):
    """Bytes that are no JSON object are named."""
    stored, _ = pack((4, 64))
    with pytest.raises(CheckpointError, match="bitsandbytes__nf4`"):
        made({**stored, STATE: np.frombuffer(text, np.uint8)})


@pytest.mark.parametrize("nested", [False, True])
def test_every_missing_companion_is_an_error(nested):
    """Whatever is taken away, nothing passes as if it were a weight."""
    stored, _ = pack((4, 64), nested=nested)
    for name in stored:
        with pytest.raises(CheckpointError):
            made({other: array for other, array in stored.items() if other != name})


def test_maxima_that_say_two_things():
    """Float maxima beside nested ones, and two states for one weight."""
    stored, _ = pack((4, 64), nested=True)
    floats = np.zeros(4, np.float32)
    with pytest.raises(CheckpointError, match="expected U8 beside"):
        made({**stored, f"{WEIGHT}.absmax": floats})
    with pytest.raises(CheckpointError, match="two quantization states"):
        made({**stored, STATE.replace("nf4", "fp4"): stored[STATE]})


def test_8_bit_rows_only():
    """Format 0 decodes, as does none at all; the permuted ones of old GPUs are refused."""
    stored, want = test_bnb8.pack(4, 8)
    for form in ({}, {"m.weight_format": np.array(0, np.uint8)}):
        recipes = made({**stored, **form})
        assert recipes.keys() == {"m.weight"}
        np.testing.assert_array_equal(decoded(stored, recipes["m.weight"]), want)
    with pytest.raises(CheckpointError, match=r"expected `m.weight_format` 0 \(rows\), got \[2\]"):
        made({**stored, "m.weight_format": np.array(2, np.uint8)})


@pytest.mark.parametrize("name", ["m.weight", "m.SCB"])
def test_half_an_8_bit_module(name):
    """Codes or maxima alone are refused."""
    stored, _ = test_bnb8.pack(4, 8)
    del stored[name]
    with pytest.raises(CheckpointError):
        made(stored)
