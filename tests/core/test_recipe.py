"""Which stored tensors make which output; every other scheme is refused by name, from headers alone."""

from __future__ import annotations

import pytest

from tensorport_hub.core.decode.mxfp4 import Mxfp4
from tensorport_hub.core.decode.plain import Plain
from tensorport_hub.core.detect import logical_name
from tensorport_hub.core.recipe import Recipe
from tensorport_hub.core.tensor import DTYPES
from tensorport_hub.errors import CheckpointError
from tests.core.samples import Stored, made_from, specs

X = "model.layers.0.mlp.down_proj"
E = "model.layers.0.mlp.experts"
GPT_OSS: list[Stored] = [
    (f"{E}.down_proj_blocks", "U8", (2, 64, 3, 16)),
    (f"{E}.down_proj_scales", "U8", (2, 64, 3)),
    (f"{E}.down_proj_bias", "BF16", (2, 64)),
    ("model.norm.weight", "BF16", (64,)),
]


def made(stored: list[Stored], **how) -> list[Recipe]:
    return made_from(specs(stored), **how)


def refusal(stored: list[Stored], **how) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        made(stored, **how)
    return caught.value


def outcome(stored: list[Stored]) -> list[Recipe] | CheckpointError:
    try:
        return made(stored)
    except CheckpointError as error:
        return error


# --- supported ---


def test_gpt_oss_pairs_become_one_tensor():
    """Blocks and scales make one bfloat16 tensor under the logical name; all else passes as stored."""
    out = {recipe.name: recipe for recipe in made(GPT_OSS)}
    assert list(out) == [f"{E}.down_proj", f"{E}.down_proj_bias", "model.norm.weight"]
    decoded = out[f"{E}.down_proj"]
    assert isinstance(decoded.decoder, Mxfp4)
    assert (decoded.dtype.name, decoded.shape, decoded.stored_shape) == ("BF16", (2, 64, 96), (2, 64, 96))
    assert not decoded.casts
    assert all(isinstance(recipe.decoder, Plain) for name, recipe in out.items() if name != decoded.name)


def test_partners_are_found_wherever_they_lie():
    """Scales before the blocks, or in another file, are the same pair, at the blocks' place."""
    blocks, scales, bias, norm = GPT_OSS
    there = specs([scales, bias], "a.safetensors") + specs([norm, blocks], "b.safetensors")
    out = made_from(there)
    assert [recipe.name for recipe in out] == [bias[0], norm[0], f"{E}.down_proj"]
    assert [t.file for t in out[-1].decoder.inputs] == ["b.safetensors", "a.safetensors"]


@pytest.mark.parametrize(
    ("precision", "floats"),
    [
        ("keep", ["BF16", "BF16", "F16", "F32", "F64"]),
        ("float32", ["F32"] * 5),
        ("float16", ["F16"] * 5),
        ("bfloat16", ["BF16"] * 5),
    ],
)
def test_precision_is_for_floats_only(precision, floats):
    """Floats of every width, decoded ones too, take the precision; integers, bools and complex stay."""
    stored = [
        ("w_blocks", "U8", (1, 2, 16)),
        ("w_scales", "U8", (1, 2)),
        ("a", "BF16", (2, 3)),
        ("b", "F16", (0, 3)),
        ("c", "F32", (4,)),
        ("d", "F64", ()),
        ("ids", "I64", (1, 512)),
        ("mask", "BOOL", (8, 8)),
        ("z", "C64", (2,)),
    ]
    out = made(stored, precision=precision)
    assert [recipe.name for recipe in out] == ["w", "a", "b", "c", "d", "ids", "mask", "z"]
    assert [recipe.dtype.name for recipe in out] == [*floats, "I64", "BOOL", "C64"]
    assert [recipe.casts for recipe in out] == [
        recipe.dtype.name != kept
        for recipe, kept in zip(out, ["BF16", "BF16", "F16", "F32", "F64", "I64", "BOOL", "C64"], strict=True)
    ]


def test_packed_floats_have_their_rows_in_bytes():
    """F4 and F6 pass as packed bytes: the logical shape stays, the stored last axis counts bytes."""
    four, six = made([("a", "F4", (3, 8)), ("b", "F6_E2M3", (5, 4))])
    assert (four.shape, four.stored_shape) == ((3, 8), (3, 4))
    assert (six.shape, six.stored_shape) == ((5, 4), (5, 3))


@pytest.mark.parametrize(
    "stored",
    [
        ("position_ids", "I64", (1, 512)),
        ("embeddings.position_ids", "I64", (1, 512)),
        ("token_type_ids", "I32", (1, 512)),
        ("causal_mask", "U8", (8, 8)),
        ("mask", "BOOL", (4, 8, 8)),
        ("model.bias", "BOOL", (1, 1, 8, 8)),
        ("counter", "I64", ()),
        ("bn.num_batches_tracked", "I64", ()),
        ("lookup.weight", "I32", (7,)),
        ("table.weight", "U8", (1, 2, 3, 4)),
        ("hash.coefficients", "U16", (3, 4)),
        ("vocab.relative_index", "U64", (3, 4)),
    ],
)
@pytest.mark.parametrize("precision", ["keep", "bfloat16"])
def test_integers_that_no_scheme_claims_pass(stored, precision):
    """Position ids, masks and counters are copied as they are, whatever the precision."""
    (recipe,) = made([stored], precision=precision)
    assert isinstance(recipe.decoder, Plain)
    assert recipe.dtype.name == stored[1]
    assert not recipe.casts


@pytest.mark.parametrize("dtype", [name for name, d in DTYPES.items() if d.kind in ("int", "bool")])
@pytest.mark.parametrize("name", ["weight", f"{X}.weight"])
@pytest.mark.parametrize("shape", [(4, 8), (2, 4, 8)])
def test_integer_weights_are_refused(name, dtype, shape):
    """A `weight` of rank 2 or 3 that holds integers is packed by somebody: never copied."""
    error = refusal([(name, dtype, shape)])
    assert f"`{name}` ({dtype} {list(shape)}" in error.message
    assert error.hint


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name.startswith("F8")])
def test_lone_8_bit_floats_pass(dtype):
    """Without any scale and without a stated quantization an F8 file is what it is."""
    stored = [(f"{X}.weight", dtype, (4, 8)), ("norm.weight", "BF16", (8,))]
    assert [r.dtype.name for r in made(stored)] == [dtype, "BF16"]
    assert [r.dtype.name for r in made(stored, precision="float32")] == ["F32", "F32"]


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F4", "F6_E2M3"])
@pytest.mark.parametrize(
    "scale",
    ["weight_scale_inv", "weight_scale", "scale", "scales", "scale_inv", "weight_scale_2", "input_scale"],
)
def test_small_floats_with_a_scale_never_pass(dtype, scale):
    """A scale anywhere means that F8, F6 and F4 values are not the weights yet: decoded, or refused."""
    stored = [(f"{X}.weight", dtype, (4, 8)), (f"{X}.{scale}", "F32", ())]
    if dtype in ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ") and scale in (
        "weight_scale_inv",
        "weight_scale",
        "scale",
    ):
        (decoded,) = made(stored)
        assert (decoded.decoder.scheme, decoded.dtype.name) == ("float8", "BF16")
    else:
        assert f"`{X}.weight`" in refusal(stored).message


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F4"])
def test_small_floats_under_a_stated_quantization_are_refused(dtype):
    """Where the configuration names a quantization, small floats are not copied even without scales."""
    assert f"`{X}.weight`" in refusal([(f"{X}.weight", dtype, (4, 8))], quantization_stated=True).message


def test_a_stated_quantization_does_not_stop_what_is_plain():
    """gpt-oss states one: its pairs decode and its bfloat16 passes."""
    assert len(made(GPT_OSS, quantization_stated=True)) == 3


# --- refused ---


def weights(dtype: str, shape, *companions: tuple, module: str = X) -> list[Stored]:
    """A module's `weight` and its companions by suffix."""
    return [(f"{module}.weight", dtype, shape), *((f"{module}.{s}", d, n) for s, d, n in companions)]


def group(*companions: tuple, module: str = X) -> list[Stored]:
    return [(f"{module}.{s}", d, n) for s, d, n in companions]


GPTQ = (("qweight", "I32", (16, 64)), ("qzeros", "I32", (4, 8)), ("scales", "F16", (4, 64)))
BNB_STATE = (
    ("weight.absmax", "F32", (128,)),
    ("weight.quant_map", "F32", (16,)),
    ("weight.quant_state.bitsandbytes__nf4", "U8", (79,)),
)
HQQ = (
    *(("scale", "BF16", (128, 1)), ("zero", "BF16", (128, 1)), ("shape", "I64", (2,)), ("axis", "I32", ())),
    *(("nbits", "I32", ()), ("group_size", "I32", ()), ("packing", "U8", (7,))),
)
FOREIGN: dict[str, tuple[list[Stored], list[str]]] = {
    "gpt-oss original": (
        [
            ("block.0.mlp.mlp1_weight.blocks", "U8", (2, 64, 3, 16)),
            ("block.0.mlp.mlp1_weight.scales", "U8", (2, 64, 3)),
            ("block.0.mlp.mlp1_bias", "BF16", (2, 64)),
        ],
        ["block.0.mlp.mlp1_weight.blocks"],
    ),
    "FP8 block (DeepSeek)": (
        weights("F8_E4M3", (256, 384), ("weight_scale_inv", "F32", (2, 3))),
        ["weight", "weight_scale_inv"],
    ),
    "FP8 block, ue8m0": (
        weights("F8_E4M3", (256, 384), ("weight_scale_inv", "F8_E8M0", (2, 3))),
        ["weight", "weight_scale_inv"],
    ),
    "FP8 per tensor, static": (
        weights("F8_E4M3", (64, 128), ("weight_scale", "F32", ()), ("input_scale", "F32", ())),
        ["weight", "weight_scale"],
    ),
    "FP8 Ministral": (
        weights("F8_E4M3", (64, 128), ("weight_scale_inv", "BF16", ()), ("activation_scale", "BF16", ())),
        ["weight", "weight_scale_inv"],
    ),
    "FP8 Mistral native": (
        weights("F8_E4M3", (64, 128), ("qscale_weight", "F32", ()), ("qscale_act", "F32", ())),
        ["weight", "qscale_weight"],
    ),
    "FP8 fbgemm": (
        weights("F8_E4M3", (64, 128), ("weight_scale", "F32", (64, 1)), ("input_scale_ub", "F32", (1,))),
        ["weight", "weight_scale"],
    ),
    "FP8 fbgemm, Llama-4 experts": (
        [(f"{E}.gate_up_proj", "F8_E4M3", (2, 8, 16)), (f"{E}.gate_up_proj_scale", "F32", (2, 1, 16))],
        [f"{E}.gate_up_proj"],
    ),
    "MXFP8 transformers": (
        weights("F8_E4M3", (64, 128), ("weight_scale_inv", "U8", (64, 4))),
        ["weight", "weight_scale_inv"],
    ),
    "MXFP8 Inkling": (
        [(f"{E}.w13_weight", "F8_E4M3", (2, 8, 64)), (f"{E}.w13_weight_scale", "U8", (2, 8, 2))],
        [f"{E}.w13_weight", f"{E}.w13_weight_scale"],
    ),
    "DeepSeek-V4 dense": (
        weights("F8_E4M3", (128, 256), ("scale", "F8_E8M0", (1, 2))),
        ["weight", "scale"],
    ),
    "DeepSeek-V4 experts": (weights("I8", (64, 64), ("scale", "F8_E8M0", (64, 4))), ["weight", "scale"]),
    "MiMo-V2 experts": (weights("U8", (64, 64), ("weight_scale", "U8", (64, 4))), ["weight", "weight_scale"]),
    "CT float-quantized": (
        weights("F8_E4M3", (64, 128), ("weight_scale", "BF16", (64, 1))),
        ["weight", "weight_scale"],
    ),
    "CT int-quantized": (
        weights("I8", (64, 128), ("weight_scale", "BF16", (64, 1)), ("weight_zero_point", "I8", (64, 1))),
        ["weight", "weight_scale", "weight_zero_point"],
    ),
    "CT pack-quantized": (
        group(
            ("weight_packed", "I32", (64, 16)),
            ("weight_scale", "BF16", (64, 4)),
            ("weight_shape", "I64", (2,)),
            ("weight_zero_point", "I32", (8, 4)),
            ("weight_g_idx", "I32", (128,)),
        ),
        ["weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx"],
    ),
    "CT nvfp4": (
        group(
            ("weight_packed", "U8", (64, 64)),
            ("weight_scale", "F8_E4M3", (64, 8)),
            ("weight_global_scale", "F32", (1,)),
            ("input_global_scale", "F32", (1,)),
        ),
        ["weight_packed", "weight_scale", "weight_global_scale"],
    ),
    "CT mxfp4": (
        group(("weight_packed", "U8", (64, 64)), ("weight_scale", "U8", (64, 4))),
        ["weight_packed", "weight_scale"],
    ),
    "CT sparse-24-bitmask": (
        group(("compressed", "BF16", (64, 64)), ("bitmask", "U8", (64, 16)), ("shape", "I64", (2, 1))),
        ["bitmask"],
    ),
    "CT sparse-bitmask": (
        group(("weight.compressed", "BF16", (9,)), ("weight.bitmask", "U8", (64, 16))),
        ["weight.bitmask"],
    ),
    "CT marlin-24": (
        group(("weight_packed", "I32", (4, 64)), ("scale_packed", "F16", (1, 64)), ("meta", "I16", (4, 64))),
        ["weight_packed"],
    ),
    "ModelOpt NVFP4": (
        weights(
            "U8",
            (256, 192),
            ("weight_scale", "F8_E4M3", (256, 24)),
            ("weight_scale_2", "F32", ()),
            ("input_scale", "F32", ()),
        ),
        ["weight", "weight_scale", "weight_scale_2"],
    ),
    "ModelOpt NVFP4 batched experts": (
        [
            (f"{E}.gate_up_proj", "U8", (2, 32, 64)),
            (f"{E}.gate_up_proj_weight_scale", "F8_E4M3", (2, 4, 64)),
            (f"{E}.gate_up_proj_weight_scale_2", "F32", ()),
            (f"{E}.gate_up_proj_input_scale", "F32", ()),
        ],
        [f"{E}.gate_up_proj", f"{E}.gate_up_proj_weight_scale", f"{E}.gate_up_proj_weight_scale_2"],
    ),
    "ModelOpt MXFP4 batched experts": (
        [(f"{E}.gate_up_proj", "U8", (2, 32, 64)), (f"{E}.gate_up_proj_weight_scale", "U8", (2, 2, 64))],
        [f"{E}.gate_up_proj", f"{E}.gate_up_proj_weight_scale"],
    ),
    "ModelOpt mxfp4": (weights("U8", (256, 192), ("weight_scale", "U8", (256, 12))), ["weight"]),
    "ModelOpt int4 AWQ": (
        weights("U8", (128, 384), ("weight_scale", "F32", (256, 3)), ("pre_quant_scale", "BF16", (384,))),
        ["weight", "weight_scale", "pre_quant_scale"],
    ),
    "GPTQ": (group(*GPTQ, ("g_idx", "I32", (128,))), ["qweight", "qzeros", "g_idx"]),
    "AWQ gemm": (
        group(("qweight", "I32", (256, 8)), ("qzeros", "I32", (2, 8)), ("scales", "F16", (2, 64))),
        ["qweight", "qzeros"],
    ),
    "AWQ gemv_fast": (
        group(("qweight", "I16", (16, 256)), ("qzeros", "F16", (16, 64)), ("scales", "F16", (16, 64))),
        ["qweight", "qzeros"],
    ),
    "bnb nf4": (
        weights("U8", (4096, 1), *BNB_STATE),
        ["weight", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"],
    ),
    "bnb nf4, double, bf16 storage": (
        weights(
            "BF16",
            (2048, 1),
            *BNB_STATE,
            ("weight.nested_absmax", "F32", (2,)),
            ("weight.nested_quant_map", "F32", (256,)),
        ),
        ["weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"],
    ),
    "bnb fp4": (
        weights("U8", (4096, 1), ("weight.quant_state.bitsandbytes__fp4", "U8", (79,))),
        ["weight", "weight.quant_state.bitsandbytes__fp4"],
    ),
    "bnb int8": (
        weights("I8", (64, 128), ("SCB", "F32", (64,)), ("weight_format", "U8", ())),
        ["weight", "SCB"],
    ),
    "MLX affine": (
        weights("U32", (64, 16), ("scales", "BF16", (64, 2)), ("biases", "BF16", (64, 2))),
        ["weight"],
    ),
    "MLX switch experts": (
        weights("U32", (4, 64, 16), ("scales", "U8", (4, 64, 4)), module="model.mlp.switch_mlp.up_proj"),
        ["model.mlp.switch_mlp.up_proj.weight"],
    ),
    "MLX mxfp4": (weights("U32", (64, 16), ("scales", "U8", (64, 4))), ["weight"]),
    "metal": (
        weights("U32", (64, 16), ("scales", "F16", (64, 2)), ("qbiases", "F16", (64, 2))),
        ["weight"],
    ),
    "HQQ 4 bit": (group(("W_q", "U8", (64, 64)), *HQQ), ["W_q"]),
    "HQQ 3 bit": (group(("W_q", "I32", (13, 64)), *HQQ), ["W_q"]),
    "quanto int8": (
        group(("weight._data", "I8", (64, 128)), ("weight._scale", "BF16", (64, 1))),
        ["weight._data"],
    ),
    "quanto int4": (
        group(
            ("weight._data._data", "U8", (32, 128)),
            ("weight._scale", "BF16", (64, 1)),
            ("weight._shift", "BF16", (64, 1)),
        ),
        ["weight._data._data"],
    ),
    "quanto float8": (
        group(("weight._data", "F8_E4M3", (64, 128)), ("weight._scale", "BF16", (64, 1))),
        ["weight._data"],
    ),
    "torchao int8": (
        group(("_weight_qdata", "I8", (64, 128)), ("_weight_scale", "F32", (64, 1))),
        ["_weight_qdata"],
    ),
    "torchao float8": (
        group(("_weight_qdata", "F8_E4M3", (64, 128)), ("_weight_scale", "F32", (64, 1))),
        ["_weight_qdata"],
    ),
    "torchao intx": (
        group(("_weight_qdata", "I8", (64, 128)), ("_weight_zero_point", "I8", (64, 4))),
        ["_weight_qdata"],
    ),
    "Quark int4": (
        weights("I32", (256, 16), ("weight_scale", "BF16", (8, 128)), ("weight_zero_point", "I32", (8, 16))),
        ["weight", "weight_scale", "weight_zero_point"],
    ),
    "BitNet": (weights("U8", (16, 128), ("weight_scale", "BF16", (1,))), ["weight", "weight_scale"]),
    "Gemma QAT": (
        weights("U8", (64, 64), ("weight_scale", "F32", (64, 1)), ("input_activation_scale", "F32", ())),
        ["weight", "weight_scale"],
    ),
    "Gemma QAT embedding": (
        [
            ("model.embed_tokens.embedding_quantized", "U8", (64, 64)),
            ("model.embed_tokens.embedding_scale", "F32", (64, 1)),
        ],
        ["model.embed_tokens.embedding_quantized"],
    ),
    "EETQ": (weights("I8", (128, 64), ("weight_scales", "F16", (64,))), ["weight"]),
    "AQLM": (
        group(
            ("codes", "I8", (8, 16, 1)), ("codebooks", "F16", (1, 256, 1, 8)), ("scales", "F16", (8, 1, 1, 1))
        ),
        ["codebooks"],
    ),
    "VPTQ": (group(("indices", "I32", (1, 8, 16)), ("centroids.weight", "F16", (1, 64))), ["indices"]),
    "VPTQ tensors": (group(("indices", "I32", (1, 8, 16)), ("centroids", "F16", (1, 64))), ["centroids"]),
    "EXL3": (
        group(("trellis", "I16", (4, 4, 48)), ("suh", "F16", (64,)), ("svh", "F16", (64,))),
        ["trellis"],
    ),
    "QuIP": (group(("qidxs", "I64", (64, 16)), ("SU", "F16", (64,))), ["qidxs"]),
    "FP-Quant": (group(("dqweight", "BF16", (64, 64)), ("scales", "U8", (64, 2))), ["dqweight"]),
    "F4 with a scale": (
        weights("F4", (64, 128), ("weight_scale", "F32", (64, 4))),
        ["weight", "weight_scale"],
    ),
}
FOREIGN.pop("VPTQ")


NEVER = ["CT marlin-24", "AQLM", "VPTQ tensors", "EXL3", "QuIP", "FP-Quant", "F4 with a scale"]


@pytest.mark.parametrize("scheme", FOREIGN)
def test_other_schemes_are_decoded_or_refused_by_name(scheme):
    """No tensor that carries packed values passes as it is, beside plain ones that do."""
    stored, named = FOREIGN[scheme]
    plain = [("model.norm.weight", "BF16", (64,)), (f"{X}.bias", "BF16", (64,))]
    full = [name if any(s[0] == name for s in stored) else f"{X}.{name}" for name in named]
    out = outcome([*plain, *stored])
    if isinstance(out, CheckpointError):
        assert f"`{full[0]}`" in out.message
        assert "norm" not in out.message
        assert f"`{X}.bias`" not in out.message
        assert "`--exclude`" in out.hint
        return
    assert scheme not in NEVER
    passed = {recipe.decoder.inputs[0].name for recipe in out if isinstance(recipe.decoder, Plain)}
    assert passed >= {name for name, _, _ in plain}
    assert passed.isdisjoint(full)
    assert any(not isinstance(recipe.decoder, Plain) for recipe in out)


@pytest.mark.parametrize("scheme", FOREIGN)
@pytest.mark.parametrize("precision", ["keep", "bfloat16"])
def test_packed_values_alone_never_pass(scheme, precision):
    """Without its companions, as after an `--exclude`, a packed tensor is still no weight."""
    stored, named = FOREIGN[scheme]
    full = {name if any(s[0] == name for s in stored) else f"{X}.{name}" for name in named}
    packed = [s for s in stored if s[0] in full and DTYPES[s[1]].kind == "int" and len(s[2]) > 1]
    for tensor in packed:
        if tensor[0].endswith((".gate_up_proj", "weight_scale")) and scheme.endswith("batched experts"):
            continue  # nothing in a lone header tells it from a mask
        assert f"`{tensor[0]}`" in refusal([tensor], precision=precision).message


# --- pairs that are none ---


@pytest.mark.parametrize(
    ("stored", "absent"),
    [(GPT_OSS[:1], f"{E}.down_proj_scales"), (GPT_OSS[1:2], f"{E}.down_proj_blocks")],
)
def test_a_companion_without_partner_is_refused(stored, absent):
    """Half a pair is an error that names both halves."""
    error = refusal(stored)
    assert f"`{stored[0][0]}`" in error.message
    assert f"`{absent}` is absent" in error.message


@pytest.mark.parametrize(
    "scales", [("U8", (2, 64, 2)), ("F8_E8M0", (2, 64, 3)), ("F32", (2, 64, 3)), ("U8", (2, 64, 3, 1))]
)
def test_a_pair_that_does_not_fit_is_refused(scales):
    """Scales of another shape or dtype than the blocks need are an error that says what was expected."""
    error = refusal([GPT_OSS[0], (GPT_OSS[1][0], *scales)])
    assert f"`{E}.down_proj_scales`" in error.message
    assert "expected U8 [2, 64, 3]" in error.message


def test_a_decoded_name_may_not_be_a_stored_one():
    """A pair whose logical name is a stored tensor too would write one file twice."""
    error = refusal([*GPT_OSS, (f"{E}.down_proj", "BF16", (2, 64, 96))])
    assert f"decodes to `{E}.down_proj`, which is a stored tensor too" in error.message


def test_all_problems_are_told_at_once():
    """Every bad tensor of a checkpoint is in one error."""
    stored = [(f"l.{i}.qweight", "I32", (4, 4)) for i in range(5)]
    stored += [GPT_OSS[0], ("a", "F4", (2, 3)), ("b", "F4", (2, 4))]
    error = refusal(stored, precision="float16")
    assert error.message.startswith("8 problems:")
    assert all(f"`{name}`" in error.message for name, _, _ in stored)


def test_hostile_names_are_quoted_printable():
    """A name with control characters or of thousands of bytes can't take the terminal over."""
    error = refusal([("\x1b[2J\n" + "x" * 5000 + ".qweight", "I32", (4, 4)), ("\r_blocks", "U8", (1, 1, 16))])
    assert all(line.isprintable() for line in error.message.splitlines())
    assert len(error.message) < 1000


@pytest.mark.parametrize(("dtype", "shape"), [("F4", (2, 3)), ("F6_E3M2", (4, 2)), ("F4", (2, 0, 1))])
def test_packed_rows_that_share_a_byte_are_refused(dtype, shape):
    """A packed last axis that ends inside a byte has no .npy form."""
    assert "does not fill whole bytes" in refusal([("x", dtype, shape)]).message


def test_a_packed_float_can_not_be_rounded():
    """A precision asks for numbers, which F4 has none of without a decoder."""
    error = refusal([("x", "F4", (2, 4))], precision="float32")
    assert "`x`" in error.message
    assert "float32" in error.message


@pytest.mark.parametrize(
    ("stored", "logical"),
    [
        ("a.w_blocks", "a.w"),
        ("a.w_scales", "a.w"),
        ("a.w", "a.w"),
        ("blocks", "blocks"),
        ("a.scales", "a.weight"),
    ],
)
def test_logical_names(stored, logical):
    """A pair's members belong to the name without their suffix."""
    assert logical_name(stored) == logical


def test_keep_rounds_nothing_of_an_unknown_scheme():
    """Under `quantized="keep"` a precision rounds plain weights, and no part of a scheme without a layout."""
    stored = [
        *group(("codes", "I16", (8, 8, 1)), ("codebooks", "F16", (1, 256, 1, 8))),
        ("norm.weight", "F16", (8,)),
    ]
    out = {recipe.name: recipe.dtype.name for recipe in made(stored, quantized="keep", precision="float32")}
    assert out == {f"{X}.codes": "I16", f"{X}.codebooks": "F16", "norm.weight": "F32"}
