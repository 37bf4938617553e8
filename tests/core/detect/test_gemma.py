"""Gemma QAT: whole checkpoints, and the bits of each module."""

from __future__ import annotations

import numpy as np
import pytest

from tensorport_hub.core.decode.gemma import GemmaLowBits
from tensorport_hub.core.decode.int8 import Int8
from tensorport_hub.core.detect import Checkpoint, logical_name
from tensorport_hub.core.recipe import recipes
from tensorport_hub.errors import CheckpointError
from tests.core.samples import specs
from tests.foreign import check_checkpoint, check_wrapped

CHECKPOINTS = ("gemma_quant_int4", "gemma_quant_int8")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_foreign_checkpoint_decodes_bit_for_bit(name, tmp_path):
    """What transformers' `QuantizedLinear` makes of it, in float32."""
    check_checkpoint(name, tmp_path)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_wrapped_copy_decodes_the_same(name, tmp_path):
    """Other names, and companions in another file."""
    check_wrapped(name, tmp_path)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_tensors_cut_at_every_few_rows_decode_the_same(name, tmp_path):
    """Shards of two rows each."""
    check_checkpoint(name, tmp_path, shard_size=1_200)


def module(name, t, shape, blocks=1, scale="F32", embedding=False):
    """A weight and its scale."""
    ends = ("embedding_quantized", "embedding_scale") if embedding else ("weight", "weight_scale")
    return [(f"{name}.{ends[0]}", t, shape), (f"{name}.{ends[1]}", scale, (*shape[:-1], blocks))]


def made(tensors, **config):
    """All recipes of a checkpoint."""
    stated = {"quantization_config": {"quant_method": "gemma", **config}} if config else {}
    return recipes(Checkpoint({t.name: t for t in specs(tensors)}, configs={"config.json": stated}))


def decoders(tensors, **config):
    """Decoders by name."""
    return {recipe.name: recipe.decoder for recipe in made(tensors, **config).made}


PATTERNS = {
    "^lm_head$": {"num_bits": 2},
    r"layers\.(\d|1[0-4])\.mlp\.": {"num_bits": 4},
    r"layers\.\d+\.mlp\.": {"num_bits": 2},
    "embed_tokens": {},
}


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("lm_head", 2),
        ("model.layers.3.mlp.up_proj", 4),
        ("model.layers.30.mlp.up_proj", 2),
        ("model.layers.3.self_attn.q_proj", 4),
        ("model.embed_tokens", 4),
    ],
)
def test_the_first_pattern_that_finds_a_module_gives_its_bits(name, bits):
    """Else, or where it says nothing of them, the general ones."""
    decoder = decoders(module(name, "U8", (6, 8)), num_bits=4, module_quant_configs=PATTERNS)[
        f"{name}.weight"
    ]
    assert (type(decoder), decoder.bits, decoder.shape) == (GemmaLowBits, bits, (6, 64 // bits))


def test_the_leftmost_match_comes_before_the_first_pattern():
    """As one alternation of all patterns would find it."""
    patterns = {"q_proj": {"num_bits": 2}, "self_attn": {"num_bits": 4}}
    tensors = module("a.self_attn.q_proj", "U8", (6, 8))
    assert decoders(tensors, module_quant_configs=patterns)["a.self_attn.q_proj.weight"].bits == 4


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_embeddings_come_out_as_weights(bits):
    """`embedding_quantized` with a scale for each block of a row."""
    tensors = module("m.embed", "I8" if bits == 8 else "U8", (6, 8), blocks=2, embedding=True)
    found = decoders(tensors, num_bits=bits)
    assert set(found) == {"m.embed.weight"}
    decoder = found["m.embed.weight"]
    assert (decoder.shape, decoder.dtype.name) == ((6, 64 // bits), "F32")
    ones = np.ones(12, np.float32).view(np.uint8)
    out, _ = decoder.decode([np.zeros(48, np.uint8), ones], 0, decoder.items)
    assert set(out.tolist()) == {0.0 if bits == 8 else -(2.0 ** (bits - 1))}
    assert {logical_name(name) for name, *_ in tensors} == {"m.embed.weight"}


def test_eight_bits_need_no_configuration_of_them():
    """I8 is itself, whatever the general bits are; scales of activations belong to the module."""
    extra = [("x.input_activation_scale", "F32", ()), ("x.output_activation_scale", "F32", ())]
    plan = made([*module("x", "I8", (6, 8)), *extra], num_bits=4)
    (recipe,) = plan.made
    assert (type(recipe.decoder), recipe.decoder.dtype.name) == (Int8, "F32")
    assert set(plan.left_out) == {name for name, *_ in extra}


@pytest.mark.parametrize(
    ("tensors", "config", "match"),
    [
        (module("x", "U8", (6, 8)), {}, "the configuration says None"),
        (module("x", "U8", (6, 8)), {"num_bits": 8}, "the configuration says 8"),
        (module("x", "U8", (6, 8)), {"num_bits": "4"}, "the configuration says 4"),
        (
            module("x", "U8", (6, 8)),
            {"num_bits": 4, "module_quant_configs": {"(": {}}},
            "is no regular expression",
        ),
        (module("x", "U8", (6, 8))[:1], {"num_bits": 4}, r"`x\.weight_scale` is absent"),
        (module("x", "I8", (6, 8), embedding=True)[:1], {"num_bits": 8}, "embedding_scale` is absent"),
        (module("x", "U8", (6, 8), embedding=True)[:1], {}, "embedding_scale` is absent"),
        (module("x", "U8", (6, 8), embedding=True)[1:], {}, "embedding_scale"),
        (module("x", "U8", (6, 8), blocks=3), {"num_bits": 4}, "blocks of equal size"),
        (module("x", "I8", (6, 8), blocks=3), {"num_bits": 8}, "blocks of equal size"),
        ([("x.weight", "I8", (6, 8)), ("x.weight_scale", "F32", (5, 1))], {"num_bits": 8}, r"\[6, 1\]"),
        ([("x.weight", "U8", (6, 8)), ("x.weight_scale", "F32", (5, 1))], {"num_bits": 4}, r"\[6, 1\]"),
        (module("x", "U8", (6, 8), scale="BF16"), {"num_bits": 4}, "expected F32"),
    ],
)
def test_what_is_damaged_or_unsaid_is_an_error(tensors, config, match):
    """Bits are never guessed; shapes and dtypes are named."""
    with pytest.raises(CheckpointError, match=match):
        made(tensors, **config)
