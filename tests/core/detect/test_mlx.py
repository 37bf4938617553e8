"""MLX and metal: whole checkpoints of foreign packers, and what shapes and configuration say together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tensorport_hub.core.decode.float8 import Float8
from tensorport_hub.core.decode.mlx_affine import MetalAffine, MlxAffine
from tensorport_hub.core.decode.mxfp4 import Mxfp4
from tensorport_hub.core.decode.nvfp4 import Nvfp4
from tensorport_hub.core.detect import Checkpoint
from tensorport_hub.core.recipe import recipes
from tensorport_hub.errors import CheckpointError
from tests.core.samples import Stored, specs
from tests.foreign import check_checkpoint, check_wrapped

CHECKPOINTS = (
    "mlx_affine_3bit_g64",
    "mlx_affine_4bit_g128_f32",
    "mlx_affine_4bit_g64",
    "mlx_affine_5bit_g64",
    "mlx_affine_8bit_g64",
    "mlx_mxfp4",
    "mlx_nvfp4",
)
X = "model.layers.0.mlp.switch_mlp.up_proj"


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_foreign_checkpoint_decodes_bit_for_bit(name, tmp_path):
    """What mlx's own decoder returns, in its dtype."""
    check_checkpoint(name, tmp_path)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_wrapped_copy_decodes_the_same(name, tmp_path):
    """Other names, and companions in another file."""
    check_wrapped(name, tmp_path)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_tensors_cut_at_every_few_rows_decode_the_same(name, tmp_path):
    """Shards of a few rows each."""
    check_checkpoint(name, tmp_path, shard_size=1_500)


def made(stored: list[Stored], config: Any = None):
    """Decoders of a checkpoint's outputs, by name."""
    checkpoint = Checkpoint({t.name: t for t in specs(stored)}, configs={"config.json": config or {}})
    return {recipe.name: recipe.decoder for recipe in recipes(checkpoint).made}


def affine(words, groups, lead=(6,), offsets="biases", t="BF16", name=X):
    """The tensors of an affine module."""
    scales = (*lead, groups)
    return [
        (f"{name}.weight", "U32", (*lead, words)),
        (f"{name}.scales", t, scales),
        (f"{name}.{offsets}", t, scales),
        (f"{name}.bias", t, lead),
    ]


def test_all_leading_axes_and_the_real_bias():
    """Stacked experts come out [experts, out, in]; `bias` is a tensor of its own."""
    config = {"quantization": {"group_size": 64, "bits": 6}}
    decoders = made(affine(24, 2, (4, 6)), config)
    assert (decoders[f"{X}.weight"].shape, decoders[f"{X}.weight"].bits) == ((4, 6, 128), 6)
    assert set(decoders) == {f"{X}.weight", f"{X}.bias"}


@pytest.mark.parametrize(
    "config",
    [
        {"quantization": {"group_size": 64, "bits": 8}},
        {"quantization": {"bits": 8}},
        {"quantization": {"group_size": 64}},
        {"quantization_config": {"group_size": 64, "bits": 8, "mode": "affine"}},
        {"text_config": {"quantization": {"group_size": 64, "bits": 8}}},
        {"quantization": {"group_size": 64, "bits": 4, X: {"group_size": 64, "bits": 8}}},
        {"quantization": {"group_size": 64, "bits": 4, X.removeprefix("model."): {"bits": 8}}},
        {"quantization": {"group_size": 64, "bits": 4, f"language_model.{X}": {"bits": 8}}},
        {"quantization": {"group_size": 64, "bits": 8, X: False}},
        {"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4", X: {"group_size": 64, "bits": 8}}},
        {
            "quantization": {"group_size": 64, "bits": 8},
            "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128},
        },
    ],
)
def test_the_configuration_settles_bits(config):
    """512 bits a group are 8 bits in groups of 64, or 4 in 128: an entry of the module comes first."""
    decoder = made(affine(32, 2), config)[f"{X}.weight"]
    assert (decoder.bits, decoder.group_size, decoder.shape) == (8, 64, (6, 128))


@pytest.mark.parametrize(
    ("words", "groups", "bits"), [(20, 2, 5), (10, 2, 5), (40, 2, 5), (6, 2, 3), (32, 1, 8)]
)
def test_shapes_that_have_one_reading_need_no_configuration(words, groups, bits):
    """5 bits are never anything else; 3 bits in groups of 32, 8 bits in groups of 128."""
    assert made(affine(words, groups))[f"{X}.weight"].bits == bits


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"quantization": {"mode": "mxfp4", "bits": 4, "group_size": 32}},
        {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 64}},
    ],
)
def test_shapes_with_two_readings_and_no_word_are_refused(config):
    """256 bits a group: 4 in 64, 8 in 32, 2 in 128; a mode that is not affine says nothing of it."""
    with pytest.raises(CheckpointError, match="4 bits in groups of 64 or 8 bits in groups of 32"):
        made(affine(16, 2), config)


@pytest.mark.parametrize(
    "config",
    [
        {"quantization": {"group_size": 64, "bits": 3}},
        {"quantization": {"group_size": 48, "bits": 4}},
        {"quantization": {"group_size": 64, "bits": "4"}},
        {"quantization": {"group_size": 37}},
    ],
)
def test_a_configuration_that_contradicts_the_shapes_is_an_error(config):
    """Never a guess which of the two is right."""
    with pytest.raises(CheckpointError, match=r"the configuration says .* the shapes 256 bits a group"):
        made(affine(16, 2), config)


def test_two_entries_that_may_be_meant_and_differ_are_an_error():
    """Names that differ in leading parts alone."""
    config = {"quantization": {"mlp.x": {"bits": 4}, "a.mlp.x": {"bits": 8}, "c.b.a.mlp.x": {"bits": 4}}}
    with pytest.raises(CheckpointError, match=r"says two things of `b\.a\.mlp\.x`"):
        made(affine(16, 2, name="b.a.mlp.x"), config)


def test_metal_has_its_own_offsets():
    """`qbiases`: float32 and one rounding."""
    config = {"quantization_config": {"quant_method": "metal", "bits": 4, "group_size": 128}}
    decoder = made(affine(32, 2, offsets="qbiases"), config)[f"{X}.weight"]
    assert isinstance(decoder, MetalAffine)
    assert (decoder.shape, decoder.dtype.name) == ((6, 256), "BF16")
    assert not isinstance(made(affine(20, 2))[f"{X}.weight"], MetalAffine)


@pytest.mark.parametrize(
    ("words", "scales", "kind", "columns"),
    [(16, 4, Mxfp4, 128), (16, 8, Nvfp4, 128), (32, 4, Float8, 128)],
)
@pytest.mark.parametrize("lead", [(6,), (2, 6)])
@pytest.mark.parametrize("config", [{}, {"quantization": {"bits": 3, "group_size": 64}}])
def test_small_floats_are_told_apart_by_shape(words, scales, kind, columns, lead, config):
    """Words for each U8 scale, whatever the configuration says of other modules."""
    decoders = made([(f"{X}.weight", "U32", (*lead, words)), (f"{X}.scales", "U8", (*lead, scales))], config)
    decoder = decoders[f"{X}.weight"]
    assert type(decoder) is kind
    assert (decoder.shape, decoder.dtype.name) == ((*lead, columns), "BF16")


def test_mxfp8_bytes_lie_in_words():
    """E4M3 codes, the lowest byte of a word first, times a power of two for each 32."""
    tensors = [("x.weight", "U32", (2, 8)), ("x.scales", "U8", (2, 1))]
    decoder = made(tensors)["x.weight"]
    codes = np.arange(64, dtype=np.uint8)
    out, _ = decoder.decode([codes, np.array([126, 128], np.uint8)], 0, 64)
    want = codes.view(decoder.weight.dtype.numpy).view(np.uint8)
    assert want.tobytes() == codes.tobytes()
    assert out[:3].tolist() == [0, 2**-10, 2**-9]
    assert out[63] == 2 * (1 + 7 / 8)


@pytest.mark.parametrize(
    ("drop", "match"),
    [
        ("scales", r"looks like MLX affine, but `.*\.scales` is absent"),
        ("biases", r"looks like MLX affine, but `.*\.biases` is absent"),
        ("weight", r"looks like the offsets of MLX affine, but `.*\.weight` is absent"),
    ],
)
def test_a_missing_companion_is_named(drop, match):
    """At plan time, with the tensor that asked for it."""
    config = {"quantization": {"group_size": 64, "bits": 4}}
    with pytest.raises(CheckpointError, match=match):
        made([t for t in affine(16, 2) if not t[0].endswith(drop)], config)


@pytest.mark.parametrize(
    "change",
    [
        {f"{X}.scales": ("BF16", (6, 3))},
        {f"{X}.scales": ("BF16", (5, 2))},
        {f"{X}.scales": ("BF16", (6, 0))},
        {f"{X}.scales": ("I32", (6, 2))},
        {f"{X}.scales": ("U8", (6, 2))},
        {f"{X}.biases": ("F16", (6, 2))},
        {f"{X}.biases": ("BF16", (2, 6))},
        {f"{X}.qbiases": ("BF16", (6, 2))},
        {f"{X}.weight": ("U32", (6, 17))},
        {f"{X}.weight": ("U32", ())},
    ],
)
def test_damaged_companions_are_errors(change):
    """Wrong shapes and dtypes; offsets of both kinds."""
    stored = {name: (t, shape) for name, t, shape in affine(16, 2)} | change
    config = {"quantization": {"group_size": 64, "bits": 4}}
    with pytest.raises(CheckpointError, match="up_proj"):
        made([(name, *rest) for name, rest in stored.items()], config)


@pytest.mark.parametrize("scales", [3, 5, 0])
def test_u8_scales_of_no_known_share_are_errors(scales):
    """Neither 2, 4 nor 8 words for each."""
    with pytest.raises(CheckpointError, match="expected one for every 4 words"):
        made([("x.weight", "U32", (6, 16)), ("x.scales", "U8", (6, scales))])


def test_affine_modules_beside_others():
    """An affine embedding next to MXFP4 experts, each by its own tensors."""
    embedding = affine(16, 2, name="model.embed_tokens")
    config = {
        "quantization": {
            "group_size": 32,
            "bits": 4,
            "mode": "mxfp4",
            "model.embed_tokens": {"group_size": 64, "bits": 4, "mode": "affine"},
        }
    }
    experts = [(f"{X}.weight", "U32", (2, 6, 16)), (f"{X}.scales", "U8", (2, 6, 4))]
    decoders = made([*embedding, *experts], config)
    assert type(decoders["model.embed_tokens.weight"]) is MlxAffine
    assert type(decoders[f"{X}.weight"]) is Mxfp4
