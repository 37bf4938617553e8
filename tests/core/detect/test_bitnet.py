"""BitNet: a whole checkpoint of the packer, and what the configuration must say."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

from tensorport_hub import convert
from tensorport_hub.core.decode.bitnet import BitnetOver, BitnetTimes
from tensorport_hub.core.detect import Checkpoint
from tensorport_hub.core.recipe import recipes
from tensorport_hub.errors import CheckpointError
from tests.core.samples import specs
from tests.foreign import check_checkpoint, check_wrapped, read_mirror, stage

NAME = "bitnet_offline"


def test_a_foreign_checkpoint_decodes_bit_for_bit(tmp_path):
    """What transformers' packer was given, times the scale."""
    check_checkpoint(NAME, tmp_path)


def test_a_wrapped_copy_decodes_the_same(tmp_path):
    """Another name, and the scale in another file."""
    check_wrapped(NAME, tmp_path)


@pytest.mark.parametrize("shard_size", [600, 5_000])
def test_tensors_cut_at_every_few_rows_decode_the_same(tmp_path, shard_size):
    """Shards that end inside a quarter of the rows, and in the next one."""
    check_checkpoint(NAME, tmp_path, shard_size=shard_size)


def test_bitlinear_divides(tmp_path):
    """The same tensors under `linear_class: bitlinear`."""
    source = stage(NAME, tmp_path / "source")
    config = {"quantization_config": {"quant_method": "bitnet", "linear_class": "bitlinear"}}
    (source / "config.json").write_text(json.dumps(config))
    convert(str(source), str(tmp_path / "mirror"))
    (array, dtype), *_ = [v for k, v in read_mirror(tmp_path / "mirror").items() if "down_proj" in k]
    scale = np.frombuffer(b"\x9aA", ml_dtypes.bfloat16).astype(np.float32)
    third = (np.float32(1) / scale).astype(ml_dtypes.bfloat16)
    assert dtype == "BF16"
    assert set(np.abs(array.astype(np.float32)).reshape(-1).tolist()) == {0.0, float(third[0])}


def made(tensors, **config):
    """Decoders by name."""
    checkpoint = Checkpoint(
        {t.name: t for t in specs(tensors)}, configs={"config.json": {"quantization_config": config}}
    )
    return {recipe.name: recipe.decoder for recipe in recipes(checkpoint).made}


TENSORS = [("x.weight", "U8", (4, 8)), ("x.weight_scale", "BF16", (1,)), ("norm.weight", "BF16", (8,))]


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"quant_method": "bitnet"}, BitnetOver),
        ({"quant_method": "bitnet", "linear_class": "bitlinear"}, BitnetOver),
        ({"quant_method": "bitnet", "linear_class": "autobitlinear"}, BitnetTimes),
        ({"linear_class": "AutoBitLinear"}, BitnetTimes),
    ],
)
def test_the_linear_class_says_how_to_scale(config, kind):
    """Without a word, the method's default."""
    decoder = made(TENSORS, **config)["x.weight"]
    assert type(decoder) is kind
    assert (decoder.shape, decoder.parameters) == ((16, 8), 128)


@pytest.mark.parametrize(
    ("tensors", "config", "match"),
    [
        (TENSORS, {}, "expected a `linear_class` of autobitlinear or bitlinear"),
        (TENSORS, {"quant_method": "bitnet", "linear_class": "other"}, "got other"),
        (TENSORS[:1], {"quant_method": "bitnet"}, r"`x\.weight_scale` is absent"),
        ([TENSORS[0], ("x.weight_scale", "BF16", (4,))], {"quant_method": "bitnet"}, "BitNet scale"),
        ([("x.weight", "U8", (2, 4, 8)), TENSORS[1]], {"quant_method": "bitnet"}, "BitNet weight"),
        (TENSORS[1:], {"quant_method": "bitnet"}, "weight_scale"),
    ],
)
def test_what_is_damaged_or_unsaid_is_an_error(tensors, config, match):
    """Never a guess whether the scale multiplies."""
    with pytest.raises(CheckpointError, match=match):
        made(tensors, **config)
