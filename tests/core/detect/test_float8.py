"""8-bit float weights: the names, shapes and configurations of their producers."""

from __future__ import annotations

import json
from math import prod

import ml_dtypes
import numpy as np
import pytest

from tensorport_hub import convert
from tensorport_hub.core.detect import Checkpoint, logical_name
from tensorport_hub.core.recipe import recipes
from tensorport_hub.errors import CheckpointError
from tests.core.samples import specs
from tests.foreign import check_checkpoint, check_wrapped, read_mirror, write

CHECKPOINTS = [
    "ct_fp8_block",
    "ct_fp8_dynamic_per_channel",
    "ct_fp8_per_tensor",
    "ct_mxfp8",
    "deepseek_v4_fp4_experts",
    "fbgemm_fp8",
    "fp8_block_deepseek",
    "fp8_block_ue8m0",
    "fp8_static_per_tensor_autofp8",
    "modelopt_fp8",
    "modelopt_mxfp8",
    "quark_fp8",
]
X = "model.layers.0.mlp.down_proj"
E = "model.layers.0.mlp.experts"


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_foreign_checkpoints(name, tmp_path):
    """As their reference decoders, whole and cut at every few rows."""
    check_checkpoint(name, tmp_path / "whole")
    check_checkpoint(name, tmp_path / "cut", shard_size=5000)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_wrapped_checkpoints(name, tmp_path):
    """The same under a prefix, with scales in another file."""
    check_wrapped(name, tmp_path)


def ct(*groups, **rest):
    """A compressed-tensors configuration: (targets, what the weights' scheme says)."""
    made = {
        f"group_{k}": {"targets": targets, "weights": {"num_bits": 8, "type": "float", **weights}}
        for k, (targets, weights) in enumerate(groups)
    }
    return {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": made, **rest}


LINEAR = ["Linear"]
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
STATIC = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
QUARK = {
    "quant_method": "quark",
    "global_quant_config": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_group", "group_size": 16}},
}
# weight: name, shape; scale: name, dtype, shape; configuration; rows and columns of a block
VARIANTS = {
    "DeepSeek, edges": (f"{X}.weight", (192, 320), "weight_scale_inv", "F32", (2, 3), FP8, 128),
    "DeepSeek, 192 rows of two blocks": (
        f"{X}.weight",
        (192, 128),
        "weight_scale_inv",
        "F32",
        (2, 1),
        FP8,
        128,
    ),
    "no configuration": (f"{X}.weight", (576, 160), "weight_scale_inv", "BF16", (5, 2), None, 128),
    "Qwen, F16 scales": (f"{X}.weight", (130, 256), "weight_scale_inv", "F16", (2, 2), FP8, 128),
    "U8 powers": (f"{X}.weight", (130, 256), "weight_scale_inv", "U8", (2, 2), FP8, 128),
    "other blocks": (
        f"{X}.weight",
        (100, 70),
        "weight_scale_inv",
        "F32",
        (2, 2),
        {**FP8, "weight_block_size": [64, 64]},
        64,
    ),
    "stacked experts": (f"{X}.weight", (3, 130, 140), "weight_scale_inv", "F32", (3, 2, 2), FP8, 128),
    "Step": (
        "model.layers.4.moe.gate_proj.weight",
        (2, 140, 20),
        "weight_scale_inv",
        "F32",
        (2, 2, 1),
        FP8,
        128,
    ),
    "experts without .weight": (f"{E}.gate_up_proj", (2, 140, 150), "_scale_inv", "F32", (2, 2, 2), FP8, 128),
    "DeepSeek-V4": ("layers.0.attn.wq_a.weight", (130, 256), "scale", "F8_E8M0", (2, 2), FP8, 128),
    "DeepSeek-V4 Base": ("layers.0.ffn.experts.1.w1.weight", (130, 20), "scale", "F32", (2, 1), FP8, 128),
    "ModelOpt blocks": (
        f"{X}.weight",
        (200, 150),
        "weight_scale",
        "F32",
        (2, 1, 2, 1),
        {"quant_method": "modelopt", "quant_algo": "fp8_pb_wo"},
        128,
    ),
    "CT blocks": (
        f"{X}.weight",
        (100, 90),
        "weight_scale",
        "BF16",
        (2, 3),
        ct((LINEAR, {"strategy": "block", "block_structure": [64, 32]})),
        (64, 32),
    ),
    "CT blocks as a word": (
        f"{X}.weight",
        (100, 90),
        "weight_scale",
        "F32",
        (2, 3),
        ct((LINEAR, {"strategy": "block", "block_structure": "64x32"})),
        (64, 32),
    ),
    "CT groups": (
        f"{X}.weight",
        (6, 96),
        "weight_scale",
        "F16",
        (6, 3),
        ct((LINEAR, {"strategy": "group", "group_size": 32})),
        (1, 32),
    ),
    "CT experts' groups": (
        f"{X}.weight",
        (2, 6, 96),
        "weight_scale",
        "F32",
        (2, 6, 3),
        ct((LINEAR, {"strategy": "group", "group_size": 32})),
        (1, 32),
    ),
    "CT rows": (
        f"{X}.weight",
        (6, 9),
        "weight_scale",
        "F32",
        (6, 1),
        ct((LINEAR, {"strategy": "channel"})),
        (1, 9),
    ),
    "CT experts' rows": (
        f"{X}.weight",
        (2, 6, 9),
        "weight_scale",
        "F32",
        (2, 6, 1),
        ct((LINEAR, {"strategy": "channel"})),
        (1, 9),
    ),
    "CT tensor": (
        f"{X}.weight",
        (6, 9),
        "weight_scale",
        "F16",
        (1,),
        ct((LINEAR, {"strategy": "tensor"})),
        (6, 9),
    ),
    "CT embedding beside": (
        "model.embed_tokens.weight",
        (6, 9),
        "weight_scale",
        "F32",
        (1,),
        ct((LINEAR, {"strategy": "channel"}), (["Embedding"], {"strategy": "tensor"})),
        (6, 9),
    ),
    "CT, 2024": (
        f"{X}.weight",
        (6, 9),
        "weight_scale",
        "BF16",
        (6, 1),
        {"compression_config": ct((LINEAR, {"strategy": "channel"}))},
        (1, 9),
    ),
    "AutoFP8 [1]": (f"{X}.weight", (6, 9), "weight_scale", "F32", (1,), STATIC, (6, 9)),
    "Ministral": (f"{X}.weight", (6, 9), "weight_scale_inv", "BF16", (), STATIC, (6, 9)),
    "Mistral": ("layers.0.attention.wq.weight", (6, 9), "qscale_weight", "F32", (), None, (6, 9)),
    "fbgemm": (
        f"{X}.weight",
        (6, 9),
        "weight_scale",
        "F32",
        (6, 1),
        {"quant_method": "fbgemm_fp8"},
        (1, 9),
    ),
    "ModelOpt rows": (
        f"{X}.weight",
        (6, 9),
        "weight_scale",
        "F32",
        (6,),
        {"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"},
        (1, 9),
    ),
    "Quark rows": (f"{X}.weight", (6, 9), "weight_scale", "F16", (6,), {"quant_method": "quark"}, (1, 9)),
    "Quark groups": (f"{X}.weight", (6, 48), "weight_scale", "F32", (6, 3), QUARK, (1, 16)),
    "embedding": ("model.embed_tokens.weight", (6, 9), "weight_scale", "F32", (1,), FP8, (6, 9)),
    "one an expert": (f"{X}.weight", (3, 6, 9), "weight_scale", "F32", (3,), STATIC, (6, 9)),
    "one an expert, 3-D": (f"{X}.weight", (3, 6, 9), "weight_scale", "F32", (3, 1, 1), None, (6, 9)),
    "ModelOpt experts": (f"{E}.gate_up_proj", (3, 6, 9), "_weight_scale", "F32", (), STATIC, (18, 9)),
    "Llama-4 gate and up": (f"{E}.gate_up_proj", (3, 6, 9), "_scale", "F32", (3, 1, 9), None, (6, 1)),
    "Llama-4 down": (f"{E}.down_proj", (3, 6, 9), "_scale", "F32", (3, 9, 1), None, (6, 1)),
    "experts' rows without .weight": (f"{E}.down_proj", (3, 6, 9), "_scale", "F32", (3, 6, 1), None, (1, 9)),
    "MXFP8": (
        f"{X}.weight",
        (6, 96),
        "weight_scale_inv",
        "U8",
        (6, 3),
        {"quant_method": "fp8", "weight_block_size": [1, 32], "scale_fmt": "ue8m0"},
        (1, 32),
    ),
    "MXFP8 in a mixture": (f"{X}.weight", (6, 96), "weight_scale", "F8_E8M0", (6, 3), FP8, (1, 32)),
    "MXFP8 experts": (f"{X}.weight", (2, 6, 96), "weight_scale", "U8", (2, 6, 3), None, (1, 32)),
    "Inkling": (f"{E}.w13_weight", (2, 6, 96), "_scale", "F8_E8M0", (2, 6, 3), None, (1, 32)),
    "bare names": ("weight", (6, 9), "weight_scale", "F32", (6, 1), None, (1, 9)),
}
SCALES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def scale_name(weight: str, suffix: str) -> str:
    """`_scale` is put behind the weight's own name, anything else beside it."""
    if suffix.startswith("_"):
        return weight + suffix
    stem, dot, _ = weight.rpartition(".")
    return stem + dot + suffix


def stored(weight, shape, suffix, dtype, scale_shape, *, codes="F8_E4M3"):
    return specs([(weight, codes, shape), (scale_name(weight, suffix), dtype, scale_shape)])


def checkpoint(tensors, config) -> Checkpoint:
    whole = (
        {}
        if config is None
        else config
        if "compression_config" in config
        else {"quantization_config": config}
    )
    return Checkpoint({t.name: t for t in tensors}, {}, {"config.json": whole} if whole else {})


def expected(weight, scales, shape, scale_shape, size):
    """The formula, with the block sizes by hand: values in float32."""
    rows, cols = (size, size) if isinstance(size, int) else size
    height = shape[-2]
    total = prod(shape[:-1])
    experts = prod(shape[:-2]) if rows <= height else 1
    height = total // experts
    table = scales.reshape(-1, -(-height // rows), -(-shape[-1] // cols))
    table = np.broadcast_to(table, (experts, *table.shape[1:]))
    out = np.empty((experts, height, shape[-1]), np.float32)
    for e, i, j in np.ndindex(*out.shape):
        out[e, i, j] = weight.reshape(out.shape)[e, i, j] * table[e, i // rows, j // cols]
    return out.reshape(shape)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name):
    """Each producer's spelling is read as its documentation says."""
    weight, shape, suffix, dtype, scale_shape, config, size = VARIANTS[name]
    tensors = stored(weight, shape, suffix, dtype, scale_shape)
    (recipe,) = recipes(checkpoint(tensors, config)).made
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 0x7F, prod(shape), np.uint8)
    if dtype in ("U8", "F8_E8M0"):
        raw = rng.integers(110, 135, prod(scale_shape), np.uint8)
        scales = np.float32(2.0) ** (raw.astype(np.float32) - 127)
    else:
        raw = rng.uniform(0.01, 1, prod(scale_shape)).astype(SCALES[dtype])
        scales = raw.astype(np.float32)
    values, _ = recipe.decoder.decode([codes, raw.view(np.uint8)], 0, prod(shape))
    want = expected(codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32), scales, shape, scale_shape, size)
    np.testing.assert_array_equal(values.reshape(shape), want)
    assert recipe.name == weight
    assert recipe.shape == shape
    returned = dtype if name.startswith("CT") and dtype in SCALES else "BF16"
    assert recipe.dtype.name == returned


MIXED = ct(
    (LINEAR, {"strategy": "block", "block_structure": [128, 128]}),
    (["re:.*self_attn.*"], {"strategy": "block", "block_structure": [96, 96]}),
    (["model.layers.1.mlp.up_proj"], {"strategy": "block", "block_structure": [100, 100]}),
)


@pytest.mark.parametrize("prefix", ["", "language_model."])
@pytest.mark.parametrize(
    ("module", "rows"),
    [
        ("model.layers.0.self_attn.q_proj", 96),
        ("model.layers.1.mlp.up_proj", 100),
        ("model.layers.0.mlp.up_proj", 128),
    ],
)
def test_config_groups_tell_blocks_that_shapes_cannot(module, rows, prefix):
    """192 x 192 with a 2 x 2 grid: the group that names the module, or matches it, or is of its class."""
    tensors = stored(f"{prefix}{module}.weight", (192, 192), "weight_scale", "BF16", (2, 2))
    (recipe,) = recipes(checkpoint(tensors, MIXED)).made
    assert recipe.decoder.params["rows"] == recipe.decoder.params["cols"] == rows


def refusal(tensors, config=None) -> str:
    with pytest.raises(CheckpointError) as caught:
        recipes(checkpoint(tensors, config))
    return caught.value.message


def test_ambiguous_groups_are_refused():
    """Two groups of one class that give different blocks: an error, not a guess."""
    groups = ct(
        (LINEAR, {"strategy": "block", "block_structure": [128, 128]}),
        (LINEAR, {"strategy": "block", "block_structure": [96, 96]}),
    )
    message = refusal(stored(f"{X}.weight", (192, 192), "weight_scale", "BF16", (2, 2)), groups)
    assert f"`{X}.weight_scale`" in message


def test_groups_that_agree_are_one_reading():
    """A matrix smaller than both blocks has one scale either way."""
    groups = ct(
        (LINEAR, {"strategy": "block", "block_structure": [128, 128]}),
        (LINEAR, {"strategy": "block", "block_structure": [96, 96]}),
    )
    assert recipes(checkpoint(stored(f"{X}.weight", (64, 64), "weight_scale", "F32", (1, 1)), groups)).made


def test_configured_sizes_that_disagree_are_refused():
    """Two block sizes stated, both fit."""
    config = {"layers": [{"block_size": [128, 128]}, {"block_size": [96, 96]}], "quant_method": "fp8"}
    message = refusal(stored(f"{X}.weight", (192, 192), "weight_scale_inv", "F32", (2, 2)), config)
    assert "ambiguous" in message
    assert "96 × 96 or 128 × 128" in message


@pytest.mark.parametrize("scale", [(3, 9, 1)])
def test_llama4_axes_of_one_length_are_refused(scale):
    """[E, n, 1] over [E, n, n] may lie along either axis."""
    tensors = stored(f"{E}.down_proj", (3, 9, 9), "_scale", "F32", scale)
    assert "ambiguous: two axes" in refusal(tensors)


@pytest.mark.parametrize(
    ("shape", "suffix", "dtype", "scale", "config"),
    [
        ((192, 320), "weight_scale_inv", "F32", (2, 2), FP8),
        ((192, 320), "weight_scale_inv", "F32", (3, 2), FP8),
        ((192, 320), "weight_scale_inv", "F32", (1, 1), FP8),
        ((192, 320), "weight_scale_inv", "F32", (6,), FP8),
        ((192, 320), "weight_scale_inv", "F32", (2, 3), {**FP8, "weight_block_size": [64, 64]}),
        ((192, 320), "weight_scale_inv", "F32", (2, 5), None),
        ((192, 320), "weight_scale_inv", "F32", (0, 3), FP8),
        ((192, 320), "weight_scale", "F32", (191, 1), None),
        ((192, 320), "weight_scale", "F32", (1, 320), None),
        ((192, 320), "weight_scale", "F32", (3,), None),
        ((192, 320), "weight_scale", "U8", (192, 1), None),
        ((192, 320), "weight_scale", "U8", (), None),
        ((192, 320), "weight_scale", "U8", (192, 9), None),
        ((192, 320), "weight_scale", "F32", (192, 10), None),
        ((192, 320), "weight_scale", "BF16", (1,), ct((LINEAR, {"strategy": "channel"}))),
        ((192, 320), "weight_scale", "BF16", (192, 1), ct((LINEAR, {"strategy": "tensor"}))),
        ((192, 320), "weight_scale", "F64", (192, 1), None),
        ((192, 320), "weight_scale", "I32", (192, 1), None),
        ((3, 192, 320), "weight_scale_inv", "F32", (2, 2, 3), FP8),
        ((3, 192, 320), "weight_scale_inv", "F32", (2, 3), FP8),
        ((3, 192, 320), "weight_scale", "F32", (192,), None),
    ],
)
def test_scales_that_fit_nothing_are_refused(shape, suffix, dtype, scale, config):
    """The error names the scale, its shape, and the weight."""
    message = refusal(stored(f"{X}.weight", shape, suffix, dtype, scale), config)
    assert f"`{X}.{suffix}` ({dtype} {list(scale)}" in message
    assert f"`{X}.weight`" in message


def test_two_scales_are_refused():
    """Which of two names holds the scale can't be known."""
    tensors = specs(
        [
            (f"{X}.weight", "F8_E4M3", (4, 8)),
            (f"{X}.weight_scale", "F32", ()),
            (f"{X}.weight_scale_inv", "F32", ()),
        ]
    )
    message = refusal(tensors)
    assert f"its scale may be `{X}.weight_scale_inv` and `{X}.weight_scale`" in message


def test_a_weight_without_its_scale_is_refused():
    """Absent while others have theirs, and under a stated quantization; alone it passes as it is."""
    lone = specs([(f"{X}.weight", "F8_E4M3", (4, 8))])
    other = specs([("y.weight", "F8_E4M3", (4, 8)), ("y.weight_scale", "F32", ())], start=200)
    assert f"`{X}.weight`" in refusal([*lone, *other])
    assert f"`{X}.weight`" in refusal(lone, FP8)
    assert recipes(checkpoint(lone, None)).made[0].dtype.name == "F8_E4M3"


def test_a_scale_without_its_weight_is_refused():
    """A companion alone is never copied."""
    assert f"`{X}.weight_scale_inv`" in refusal(specs([(f"{X}.weight_scale_inv", "F32", (2, 2))]))


def test_scales_of_activations_are_left_out():
    """What is no weight is spent with a reason; real parameters called `scale` pass."""
    beside = ("input_scale", "activation_scale", "input_scale_ub", "qscale_act", "k_scale")
    tensors = specs(
        [
            (f"{X}.weight", "F8_E4M3", (4, 8)),
            (f"{X}.weight_scale", "F32", ()),
            *((f"{X}.{name}", "F32", ()) for name in beside),
            ("model.l2_clip.scale", "F32", (8,)),
            ("model.norm.weight", "BF16", (8,)),
        ]
    )
    made = recipes(checkpoint(tensors, STATIC))
    assert [r.name for r in made.made] == [f"{X}.weight", "model.l2_clip.scale", "model.norm.weight"]
    assert set(made.left_out) == {f"{X}.{name}" for name in beside}


@pytest.mark.parametrize(
    ("name", "logical"),
    [
        (f"{X}.weight_scale_inv", f"{X}.weight"),
        (f"{X}.weight_scale", f"{X}.weight"),
        (f"{X}.qscale_weight", f"{X}.weight"),
        (f"{X}.scale", f"{X}.weight"),
        (f"{E}.gate_up_proj_scale", f"{E}.gate_up_proj"),
        (f"{E}.down_proj_scale_inv", f"{E}.down_proj"),
        (f"{E}.gate_up_proj_weight_scale", f"{E}.gate_up_proj"),
        (f"{E}.w13_weight_scale", f"{E}.w13_weight"),
        (f"{X}.weight", f"{X}.weight"),
    ],
)
def test_scales_are_chosen_with_their_weights(name, logical):
    """Patterns that name the weight take its scale along."""
    assert logical_name(name) == logical


@pytest.mark.parametrize("codes", ["F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"])
def test_other_8_bit_floats(codes):
    """The same formula with another table."""
    tensors = stored(f"{X}.weight", (4, 8), "weight_scale", "F32", (4, 1), codes=codes)
    (recipe,) = recipes(checkpoint(tensors, None)).made
    assert recipe.decoder.params["codes"] == codes


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_precisions_round_the_exact_product_once(dtype, tmp_path):
    """Whatever the output precision, it is rounded from the float32 product."""
    rng = np.random.default_rng(9)
    codes = rng.integers(0, 0x7F, (70, 40), np.uint8)
    scale = rng.uniform(0.001, 1, (2, 2)).astype(np.float32)
    source = tmp_path / "source"
    source.mkdir()
    tensors = {
        f"{X}.weight": {"dtype": "F8_E4M3", "shape": [70, 40], "data": codes.tobytes()},
        f"{X}.weight_scale_inv": {"dtype": "F32", "shape": [2, 2], "data": scale.tobytes()},
    }
    (source / "model.safetensors").write_bytes(write(tensors, None))
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 32]}}
    (source / "config.json").write_text(json.dumps(config))
    convert(str(source), str(tmp_path / "out"), precision=dtype, shard_size=700)
    ((array, _),) = read_mirror(tmp_path / "out").values()
    spread = scale.repeat(64, 0)[:70].repeat(32, 1)[:, :40]
    product = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * spread
    assert array.tobytes() == product.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype).tobytes()


def test_a_nan_scale_stops_the_conversion(tmp_path):
    """Damage that shows only in the values is the checkpoint's fault, and names the scale."""
    source = tmp_path / "source"
    source.mkdir()
    tensors = {
        f"{X}.weight": {"dtype": "F8_E4M3", "shape": [4, 8], "data": bytes(32)},
        f"{X}.weight_scale": {"dtype": "F32", "shape": [4, 1], "data": np.full(4, np.nan, "<f4").tobytes()},
    }
    (source / "model.safetensors").write_bytes(write(tensors, None))
    with pytest.raises(CheckpointError, match=rf"`{X}.weight_scale`.*NaN"):
        convert(str(source), str(tmp_path / "out"))
