"""8-bit integer weights: compressed-tensors W8A8 and what shares its names."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

from tensorport_hub import convert
from tensorport_hub.core.detect import Checkpoint, logical_name
from tensorport_hub.core.recipe import recipes
from tensorport_hub.errors import CheckpointError
from tests.core.samples import specs
from tests.foreign import check_checkpoint, check_wrapped, read_mirror, write

X = "model.layers.0.mlp.down_proj"


def test_the_foreign_checkpoint(tmp_path):
    """As compressed-tensors decompresses it: whole, cut at every few rows, and wrapped."""
    check_checkpoint("ct_int8_w8a8", tmp_path / "whole")
    check_checkpoint("ct_int8_w8a8", tmp_path / "cut", shard_size=1000)
    check_wrapped("ct_int8_w8a8", tmp_path / "wrapped")


def ct(**weights):
    """A compressed-tensors configuration of one group."""
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", **weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"group_0": group},
    }


def checkpoint(stored, config=None) -> Checkpoint:
    tensors = {t.name: t for t in specs(stored)}
    return Checkpoint(tensors, {}, {"config.json": {"quantization_config": config}} if config else {})


def refusal(stored, config=None) -> str:
    with pytest.raises(CheckpointError) as caught:
        recipes(checkpoint(stored, config))
    return caught.value.message


@pytest.mark.parametrize(
    ("shape", "scale", "config", "blocks"),
    [
        ((6, 8), (6, 1), ct(strategy="channel"), (1, 8)),
        ((6, 8), (6, 1), None, (1, 8)),
        ((6, 8), (6,), None, (1, 8)),
        ((6, 8), (1,), ct(strategy="tensor"), (6, 8)),
        ((6, 8), (), None, (6, 8)),
        ((6, 64), (6, 4), ct(strategy="group", group_size=16), (1, 16)),
        ((6, 64), (2, 3), ct(strategy="block", block_structure=[4, 24]), (4, 24)),
        ((2, 6, 8), (2, 6, 1), ct(strategy="channel"), (1, 8)),
        ((6, 8), (6, 1), ct(num_bits=4, strategy="channel"), (1, 8)),
        ((6, 64), (6, 2), ct(num_bits=4, strategy="group", group_size=32), (1, 32)),
    ],
)
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_strategies(shape, scale, config, blocks, dtype):
    """Each way to share scales; the output has the scales' dtype."""
    stored = [(f"{X}.weight", "I8", shape), (f"{X}.weight_scale", dtype, scale)]
    (recipe,) = recipes(checkpoint(stored, config)).made
    assert (recipe.name, recipe.shape, recipe.dtype.name) == (f"{X}.weight", shape, dtype)
    assert (recipe.decoder.params["rows"], recipe.decoder.params["cols"]) == blocks


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_zero_points(dtype, tmp_path):
    """Asymmetric: (q - zero) * scale, rounded once to the scales' dtype."""
    kind = ml_dtypes.bfloat16 if dtype == "BF16" else {"F32": np.float32, "F16": np.float16}[dtype]
    rng = np.random.default_rng(2)
    q = rng.integers(-128, 128, (37, 20), np.int8)
    zero = rng.integers(-128, 128, (37, 1), np.int8)
    scale = rng.uniform(0.001, 0.1, (37, 1)).astype(kind)
    source = tmp_path / "source"
    source.mkdir()
    tensors = {
        f"{X}.weight": {"dtype": "I8", "shape": [37, 20], "data": q.tobytes()},
        f"{X}.weight_scale": {"dtype": dtype, "shape": [37, 1], "data": scale.tobytes()},
        f"{X}.weight_zero_point": {"dtype": "I8", "shape": [37, 1], "data": zero.tobytes()},
    }
    (source / "model.safetensors").write_bytes(write(tensors, None))
    config = {"quantization_config": ct(strategy="channel", symmetric=False)}
    (source / "config.json").write_text(json.dumps(config))
    convert(str(source), str(tmp_path / "out"), shard_size=400)
    ((array, got),) = read_mirror(tmp_path / "out").values()
    product = (q.astype(np.float32) - zero.astype(np.float32)) * scale.astype(np.float32)
    assert got == dtype
    assert array.tobytes() == product.astype(kind).tobytes()


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ([("weight_scale", "F32", (5, 1))], "weight_scale"),
        ([("weight_scale", "F32", (1, 8))], "weight_scale"),
        ([("weight_scale", "F32", (6, 1)), ("weight_zero_point", "I8", (6,))], "weight_zero_point"),
        ([("weight_scale", "F32", (6, 1)), ("weight_zero_point", "I32", (6, 1))], "weight_zero_point"),
        ([("weight_zero_point", "I8", (6, 1))], "weight_zero_point"),
        ([], "weight"),
    ],
)
def test_damaged_companions_are_refused(beside, words):
    """Wrong shapes and dtypes, and absent scales, are errors that name the tensor."""
    stored = [(f"{X}.weight", "I8", (6, 8)), *((f"{X}.{name}", d, s) for name, d, s in beside)]
    assert f"`{X}.{words}`" in refusal(stored)
    assert f"`{X}.{words}`" in refusal(stored, ct(strategy="channel"))


def test_the_configured_strategy_decides():
    """One scale where the configuration says one a row is damage."""
    stored = [(f"{X}.weight", "I8", (6, 8)), (f"{X}.weight_scale", "F32", (1,))]
    message = refusal(stored, ct(strategy="channel"))
    assert "`group_0` says 8 bits, one scale a channel" in message


def test_zero_points_are_chosen_with_their_weights():
    """Patterns that name the weight take its companions along."""
    assert logical_name(f"{X}.weight_zero_point") == f"{X}.weight"


@pytest.mark.parametrize(("method", "dtype"), [("modelopt", "BF16"), ("quark", "BF16"), ("", "F32")])
def test_the_dtype_of_producers(method, dtype):
    """ModelOpt and Quark store F32 scales for models of 16 bits."""
    stored = [(f"{X}.weight", "I8", (4, 64)), (f"{X}.weight_scale", "F32", (4,))]
    (made,) = recipes(checkpoint(stored, {"quant_method": method})).made
    assert made.decoder.dtype.name == dtype
