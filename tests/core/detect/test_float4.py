"""4- and 6-bit floats: whole checkpoints of foreign packers, and every spelling, by shapes alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tensorport_hub.core.decode.decoder import Decoder
from tensorport_hub.core.decode.mxfp4 import Mxfp4
from tensorport_hub.core.decode.mxfp6 import Mxfp6
from tensorport_hub.core.decode.nvfp4 import Nvfp4, Nvfp4Awq, Nvfp4Over, Nvfp4Times
from tensorport_hub.core.decode.nvfp4_bmm import Nvfp4Bmm
from tensorport_hub.core.detect import Checkpoint, Claim, float4, gpt_oss
from tensorport_hub.core.recipe import Recipe, recipes
from tensorport_hub.errors import CheckpointError
from tests.core.samples import Stored, specs
from tests.foreign import check_checkpoint, check_wrapped

CHECKPOINTS = ("ct_mxfp4a16", "ct_nvfp4a16", "deepseek_v4_fp4_experts", "modelopt_mxfp4", "modelopt_nvfp4")
CHECKPOINTS += ("gptoss_mxfp4", "quark_mxfp4")
MATRIX = "layers.3.mlp.down_proj."


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_foreign_checkpoint_decodes_bit_for_bit(name, tmp_path):
    """What the format's own decoder returns, in its dtype."""
    check_checkpoint(name, tmp_path)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_wrapped_copy_decodes_the_same(name, tmp_path):
    """Other names, and companions in another file."""
    check_wrapped(name, tmp_path)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_tensors_cut_at_every_few_rows_decode_the_same(name, tmp_path):
    """Shards of a few rows each (of one expert each, where those are stacked)."""
    check_checkpoint(name, tmp_path, shard_size=25_000 if name == "gptoss_mxfp4" else 2_000)


def claims(stored: list[Stored], **config: Any) -> dict[str, Claim]:
    """Claims of the family, by output name."""
    tensors = {t.name: t for t in specs(stored)}
    checkpoint = Checkpoint(tensors, configs={"config.json": {"quantization_config": config}})
    found = [float4.claim(t, checkpoint) for t in tensors.values()]
    return {c.name: c for c in found if c is not None}


def made(stored: list[Stored], **config: Any) -> dict[str, Recipe]:
    """Output tensors of a whole checkpoint, by name."""
    configs = {"config.json": {"quantization_config": config}}
    checkpoint = Checkpoint({t.name: t for t in specs(stored)}, configs=configs)
    return {recipe.name: recipe for recipe in recipes(checkpoint).made}


E4M3, E8M0 = "F8_E4M3", "F8_E8M0"
SPELLINGS: list[tuple[type[Decoder], str, list[Stored], tuple[int, ...]]] = [
    (Mxfp4, "weight", [("weight_packed", "U8", (6, 32)), ("weight_scale", "U8", (6, 2))], (6, 64)),
    (Mxfp6, "weight", [("weight_packed", "U8", (6, 48)), ("weight_scale", "U8", (6, 2))], (6, 64)),
    (Mxfp6, "weight", [("weight_packed", "U8", (2, 6, 24)), ("weight_scale", "U8", (2, 6, 1))], (2, 6, 32)),
    (
        Nvfp4Over,
        "weight",
        [
            ("weight_packed", "U8", (6, 24)),
            ("weight_scale", E4M3, (6, 3)),
            ("weight_global_scale", "F32", (1,)),
            ("input_global_scale", "F32", (1,)),
        ],
        (6, 48),
    ),
    (
        Nvfp4Over,
        "weight",
        [
            ("weight_packed", "U8", (2, 6, 24)),
            ("weight_scale", E4M3, (2, 6, 3)),
            ("weight_global_scale", "F32", (2, 1)),
        ],
        (2, 6, 48),
    ),
    (
        Nvfp4Times,
        "weight",
        [
            ("weight", "U8", (6, 24)),
            ("weight_scale", E4M3, (6, 3)),
            ("weight_scale_2", "F32", ()),
            ("input_scale", "F32", ()),
        ],
        (6, 48),
    ),
    (
        Nvfp4Times,
        "weight",
        [("weight", "U8", (2, 6, 24)), ("weight_scale", E4M3, (2, 6, 3)), ("weight_scale_2", "F32", (2,))],
        (2, 6, 48),
    ),
    (
        Nvfp4Awq,
        "weight",
        [
            ("weight", "U8", (6, 24)),
            ("weight_scale", E4M3, (6, 3)),
            ("weight_scale_2", "F32", ()),
            ("pre_quant_scale", "BF16", (48,)),
        ],
        (6, 48),
    ),
    (Nvfp4, "weight", [("weight", "U8", (6, 24)), ("weight_scale", E4M3, (6, 3))], (6, 48)),
    (Nvfp4, "weight", [("weight", "F4", (6, 48)), ("weight_scale", E4M3, (6, 3))], (6, 48)),
    (Mxfp4, "weight", [("weight", "U8", (6, 32)), ("weight_scale", "U8", (6, 2))], (6, 64)),
    (Mxfp4, "weight", [("weight", "U8", (2, 6, 32)), ("weight_scale", E8M0, (2, 6, 2))], (2, 6, 64)),
    (Mxfp4, "weight", [("weight", "U8", (6, 32)), ("weight_scale_inv", "U8", (6, 2))], (6, 64)),
    (Mxfp4, "weight", [("weight", "I8", (6, 32)), ("scale", E8M0, (6, 2))], (6, 64)),
    (Mxfp4, "weight", [("weight", "I8", (2, 6, 32)), ("scale", E8M0, (2, 6, 2))], (2, 6, 64)),
    (Mxfp4, "weight", [("weight", "I8", (6, 32)), ("weight_scale_inv", E8M0, (6, 2))], (6, 64)),
    (
        Mxfp4,
        "w13_weight",
        [("w13_weight", "U8", (2, 6, 32)), ("w13_weight_scale", "U8", (2, 6, 2))],
        (2, 6, 64),
    ),
    (
        Nvfp4Bmm,
        "gate_up_proj",
        [
            ("gate_up_proj", "U8", (2, 24, 6)),
            ("gate_up_proj_weight_scale", E4M3, (2, 3, 6)),
            ("gate_up_proj_weight_scale_2", "F32", ()),
            ("gate_up_proj_input_scale", "F32", ()),
        ],
        (2, 48, 6),
    ),
    (
        Nvfp4Times,
        "gate_up_proj",
        [
            ("gate_up_proj", "U8", (2, 6, 24)),
            ("gate_up_proj_weight_scale", E4M3, (2, 6, 3)),
            ("gate_up_proj_weight_scale_2", "F32", (2,)),
        ],
        (2, 6, 48),
    ),
]


@pytest.mark.parametrize(("kind", "name", "stored", "shape"), SPELLINGS)
def test_every_spelling_is_read_by_dtypes_and_shapes_alone(kind, name, stored, shape):
    """Without any configuration, and in any order of tensors: one output of the right layout and shape."""
    stored = [(MATRIX + n, dtype, size) for n, dtype, size in stored]
    for order in (stored, stored[::-1]):
        found = made(order)
        assert [*found] == [MATRIX + name]
        decoder = found[MATRIX + name].decoder
        assert type(decoder) is kind
        assert decoder.shape == shape
        assert found[MATRIX + name].dtype.name == "BF16"
        assert decoder.parameters == np.prod(shape)
    spent = claims(stored)[MATRIX + name].spent
    assert spent == tuple(n for n, _, _ in stored if "input" in n)


@pytest.mark.parametrize(("kind", "name", "stored", "shape"), SPELLINGS)
def test_a_companion_that_is_damaged_is_named(kind, name, stored, shape):
    """Each companion in turn of another shape: an error that names it or its weight."""
    for at in range(1, len(stored)):
        bad = [(MATRIX + n, d, (7, *s) if i == at else s) for i, (n, d, s) in enumerate(stored)]
        if "input" in stored[at][0]:
            assert claims(bad)
        else:
            with pytest.raises(CheckpointError, match="expected"):
                made(bad)


@pytest.mark.parametrize(("kind", "name", "stored", "shape"), SPELLINGS)
def test_a_companion_that_is_absent_is_named(kind, name, stored, shape):
    """A checkpoint without the block scales, or without the weight, is refused."""
    for at in (0, 1):
        rest = [(MATRIX + n, d, s) for i, (n, d, s) in enumerate(stored) if i != at]
        if [dtype for _, dtype, _ in rest] == ["F4"]:
            continue  # alone, it is a float like others
        with pytest.raises(CheckpointError, match=MATRIX.replace(".", r"\.")):
            made(rest)


def test_a_global_scale_that_is_absent_is_named():
    """compressed-tensors' NVFP4 and experts packed along columns have no reading without it."""
    stored = [("x.weight_packed", "U8", (6, 24)), ("x.weight_scale", E4M3, (6, 3))]
    with pytest.raises(CheckpointError, match=r"NVFP4, but `x\.weight_global_scale` is absent"):
        made(stored)
    stored = [("experts.down_proj", "U8", (2, 24, 6)), ("experts.down_proj_weight_scale", E4M3, (2, 3, 6))]
    with pytest.raises(CheckpointError, match=r"NVFP4, but `experts\.down_proj_weight_scale_2` is absent"):
        made(stored)
    stored = [("x.weight", "U8", (6, 24)), ("x.weight_scale_2", "F32", ())]
    with pytest.raises(CheckpointError, match=r"NVFP4, but `x\.weight_scale` is absent"):
        made(stored)


def test_no_guess_between_two_scales():
    """Two tensors that could be the scale are both named."""
    stored = [("x.weight", "I8", (6, 32)), ("x.scale", E8M0, (6, 2)), ("x.weight_scale", E8M0, (6, 2))]
    with pytest.raises(CheckpointError, match=r"expected one scale.*x\.weight_scale.*x\.scale"):
        made(stored)


def test_other_families_are_left_alone():
    """Integers with float scales, 8-bit floats and ternary weights are none of this family's."""
    assert not claims([("x.weight", "I8", (6, 32)), ("x.weight_scale", "F32", (6, 1))])
    assert not claims([("x.weight", "U8", (3, 256)), ("x.weight_scale", "F32", (6, 2))])
    assert not claims([("x.weight", "U8", (6, 32)), ("x.weight_scale", "BF16", (1,))])
    assert not claims([("x.weight", E4M3, (128, 256)), ("x.scale", E8M0, (1, 2))])
    assert not claims([("x.weight_packed", "I32", (6, 4)), ("x.weight_scale", "BF16", (6, 1))])


NVFP4: list[Stored] = [
    ("x.weight", "U8", (6, 24)),
    ("x.weight_scale", E4M3, (6, 3)),
    ("x.weight_scale_2", "F32", ()),
]


def test_low_rank_corrections_are_refused():
    """NVFP4_SVD is named; a weight without its correction would be wrong."""
    stored = [*NVFP4, ("x.svdquant_lora_a", "BF16", (4, 48)), ("x.svdquant_lora_b", "BF16", (6, 4))]
    with pytest.raises(CheckpointError, match=r"NVFP4_SVD \(`x\.svdquant_lora_a`\)"):
        made(stored)


@pytest.mark.parametrize(
    "config",
    [
        {"config_groups": {"group_0": {"weights": {"weight_scale_encoding": "csf"}}}},
        {"quantized_layers": {"x": {"quant_algo": "nvfp4_csf_fixed"}}},
        {"quant_algo": "MXFP4_CSF"},
    ],
)
def test_csf_scales_are_refused(config):
    """Scales in an encoding that is not E4M3, however deep the configuration says so."""
    with pytest.raises(CheckpointError, match=r"(?i)`x\.weight`.*csf.*not supported"):
        made(NVFP4, **config)
    assert made(NVFP4, quant_algo="W4A16_NVFP4", weight_scale_encoding="e4m3")


@pytest.mark.parametrize("names", [("x_blocks", "x_scales"), ("x.blocks", "x.scales")])
def test_both_names_of_gpt_oss(names):
    """The model's own files have a dot where the Hugging Face model's have an underscore."""
    tensors = {t.name: t for t in specs([(names[0], "U8", (2, 6, 3, 16)), (names[1], "U8", (2, 6, 3))])}
    checkpoint = Checkpoint(tensors)
    found = [gpt_oss.claim(t, checkpoint) for t in tensors.values()]
    assert [claim.name for claim in found if claim] == ["x"]
    with pytest.raises(CheckpointError, match=f"`{names[1]}` is absent"):
        gpt_oss.claim(tensors[names[0]], Checkpoint({names[0]: tensors[names[0]]}))
