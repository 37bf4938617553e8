"""Which GPTQ, auto-round and AWQ modules a checkpoint holds, from names, shapes and configurations."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tensorport_hub import convert
from tensorport_hub.core.detect import CLAIMS, logical_name
from tensorport_hub.core.detect.checkpoint import Checkpoint
from tensorport_hub.errors import CheckpointError
from tests.core.decode.test_awq import Case as AwqCase
from tests.core.decode.test_gptq import Case
from tests.core.samples import specs
from tests.foreign import check_checkpoint, check_wrapped, read_mirror, write

FOREIGN = [
    "autoround_6bit_native",
    "autoround_gptq_sym",
    "autoround_gptqmodel",
    "awq_gemm_g128",
    "awq_gemv_fast_g64",
    "gptq_v1_3bit_g32_sym",
    "gptq_v1_4bit_asym",
    "gptq_v1_4bit_g32_sym",
    "gptq_v1_8bit_g64_sym",
    "gptq_v2_4bit_asym",
    "gptq_v2_8bit",
]
STEM = "model.layers.3.mlp.up_proj."


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_checkpoints(name, tmp_path):
    """What AutoGPTQ, GPTQModel, auto-round and AutoAWQ packed decodes as they decode it."""
    check_checkpoint(name, tmp_path)


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_checkpoints_wrapped(name, tmp_path):
    """Under a prefix, with companions in another file."""
    check_wrapped(name, tmp_path)


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_checkpoints_in_pieces(name, tmp_path):
    """Cut at every few rows."""
    check_checkpoint(name, tmp_path, shard_size=1900)


def stored(bits=4, *, inputs=64, out=32, groups=4, g_idx=False, kind="I32", stem=STEM):
    """The tensors of one GPTQ module."""
    word = int(kind[1:])
    tensors = [
        (f"{stem}qweight", kind, (-(-inputs * bits // word), out)),
        (f"{stem}qzeros", kind, (groups, -(-out * bits // word))),
        (f"{stem}scales", "F16", (groups, out)),
    ]
    return tensors + [(f"{stem}g_idx", "I32", (inputs,))] * g_idx


def found(tensors, file="config.json", **config):
    """The claim of a checkpoint with these tensors and this quantization configuration."""
    made = {t.name: t for t in specs(tensors)}
    value = {"quantization_config": config} if file == "config.json" else config
    checkpoint = Checkpoint(made, configs={file: value} if config else {})
    claims = [c for c in (ask(t, checkpoint) for t in made.values() for ask in CLAIMS) if c is not None]
    assert len(claims) == 1
    return claims[0]


def gptq(tensors, **config):
    """The parameters that a module is decoded with under `quant_method: gptq`."""
    return dict(found(tensors, quant_method="gptq", **config).decoder.params)


def test_names():
    """Module, stack of experts, and bare tensor: the output's name."""
    assert found(stored(), quant_method="gptq").name == f"{STEM}weight"
    assert found(stored(stem=""), quant_method="gptq").name == "weight"
    assert found(stored(stem="experts.w13_"), quant_method="gptq").name == "experts.w13"
    assert {logical_name(t[0]) for t in stored(g_idx=True)} == {f"{STEM}weight"}


@pytest.mark.parametrize(
    ("said", "bits", "zeros", "packing"),
    [
        ({}, 4, "v1", "stream"),
        ({"checkpoint_format": "gptq"}, 4, "v1", "stream"),
        ({"format": "gptq_v2"}, 4, "v2", "stream"),
        ({"checkpoint_format": "gptq_p"}, 6, "v2", "planar"),
        ({"checkpoint_format": "gptq_p"}, 3, "v2", "planar"),
        ({"checkpoint_format": "gptq_v2"}, 6, "v2", "stream"),
    ],
)
def test_conventions_of_gptq(said, bits, zeros, packing):
    """`checkpoint_format` says how zero points and codes are stored."""
    params = gptq(stored(bits), bits=bits, group_size=16, **said)
    assert params == {"bits": bits, "size": 16, "zeros": zeros, "packing": packing}


@pytest.mark.parametrize(
    ("said", "zeros"),
    [
        ("auto_round", "v2"),
        ("auto_round:gptqmodel", "v2"),
        ("auto_round:gptq", "v1"),
        ("auto_round:auto_gptq", "v1"),
    ],
)
def test_conventions_of_auto_round(said, zeros):
    """`packing_format` says it for auto-round."""
    params = found(stored(), quant_method="auto-round", bits=4, packing_format=said).decoder.params
    assert params["zeros"] == zeros


def test_auto_round_awq():
    """auto-round packs AWQ too; the shapes tell."""
    tensors = [(f"{STEM}{n}", d, s) for n, d, s in AWQ_GEMM]
    claim = found(tensors, quant_method="auto-round", bits=4, packing_format="auto_round:auto_awq")
    assert claim.decoder.scheme == "awq_gemm"


def test_old_configuration_files():
    """`quantize_config.json` of GPTQ and `quant_config.json` of AWQ."""
    decoder = found(stored(8), "quantize_config.json", bits=8, group_size=16, desc_act=False).decoder
    assert decoder.params == {"bits": 8, "size": 16, "zeros": "v1", "packing": "stream"}
    tensors = [(f"{STEM}{n}", d, s) for n, d, s in AWQ_GEMM]
    claim = found(tensors, "quant_config.json", w_bit=4, q_group_size=16, zero_point=True, version="GEMM")
    assert claim.decoder.params == {"size": 16, "signed": 0, "zeros": "stored"}


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_bits_from_shapes(bits):
    """Where nothing is said of bits and groups, the shapes tell."""
    params = gptq(stored(bits, inputs=128), checkpoint_format="gptq_v2")
    assert (params["bits"], params["size"]) == (bits, 32)


def test_without_configuration():
    """Only symmetric zero points can tell, so the decoder will ask for them."""
    assert found(stored()).decoder.params["zeros"] == "middle"
    assert found(stored(), quant_method="compressed-tensors", bits=8).decoder.params["zeros"] == "middle"


@pytest.mark.parametrize("key", [r"+:.*\.up_proj", r".*\.layers\.3\..*", r"layers\.3\.mlp"])
def test_dynamic_overrides(key):
    """GPTQModel's `dynamic` says other bits and groups for some modules; skips are only hints."""
    dynamic = {r"-:.*\.up_proj": {}, r".*\.layers\.4\..*": {"bits": 2}, key: {"bits": 8, "group_size": 32}}
    params = gptq(stored(8, groups=2), bits=4, group_size=16, dynamic=dynamic)
    assert (params["bits"], params["size"]) == (8, 32)


@pytest.mark.parametrize("key", [STEM[:-1], STEM.removeprefix("model.")[:-1], r".*layers\.3\.mlp.*"])
def test_extra_config(key):
    """auto-round's `extra_config` does the same, by name or pattern; 16 bits are only a hint."""
    extra = {"model.layers.4.mlp.up_proj": {"bits": 2}, "model.layers.3": {"bits": 16}, key: {"bits": 8}}
    said = {"quant_method": "auto-round", "packing_format": "auto_round", "bits": 4, "group_size": 16}
    assert found(stored(8), **said, extra_config=extra).decoder.params["bits"] == 8


def test_act_order():
    """`g_idx` is used wherever it is."""
    claim = found(stored(g_idx=True), quant_method="gptq", bits=4, group_size=16, desc_act=True)
    assert claim.decoder.scheme == "gptq_ordered"
    assert [t.name.removeprefix(STEM) for t in claim.decoder.inputs] == [
        "qweight",
        "qzeros",
        "scales",
        "g_idx",
    ]


def test_one_group():
    """`group_size: -1` is one group for all columns."""
    assert gptq(stored(groups=1), bits=4, group_size=-1)["size"] == 64
    assert gptq(stored(groups=1), desc_act=True)["size"] == 64


def test_short_last_group():
    """A stated size may leave a short last group."""
    assert gptq(stored(inputs=160, groups=2), group_size=128)["size"] == 128


def replaced(at, shape, dtype="I32"):
    """A module with one tensor replaced."""
    tensors = stored()
    tensors[at] = (tensors[at][0], dtype, shape)
    return tensors


@pytest.mark.parametrize(
    ("tensors", "said", "words"),
    [
        (stored()[:2], {}, r"scales` is absent"),
        (stored()[::2], {}, r"qzeros` is absent"),
        (stored(), {"bits": 8}, r"expected the shapes of the configuration's 8 bits, got those of 4"),
        (stored(), {"bits": "4"}, r"expected a whole number for `bits`, got '4'"),
        (stored(), {"group_size": 32}, r"scales.*expected 2 groups, .* 32 of 64 columns each, got 4"),
        (stored(inputs=160, groups=2), {}, r"2 groups of 160 columns may be of \[80, 128\]"),
        (stored(out=8), {}, r"may have \[2, 4\] bits"),
        (stored(6), {}, r"6 bits may be in planes"),
        (stored(), {"desc_act": True}, r"`desc_act`, but .*g_idx.* is absent"),
        (stored(), {"checkpoint_format": "marlin"}, r"marlin, which is not supported"),
        (stored(), {"is_marlin_format": True}, r"marlin, which is not supported"),
        (stored(), {"checkpoint_format": "gptq_v9"}, r"expected a `checkpoint_format` of gptq, .*'gptq_v9'"),
        (stored(), {"dynamic": {"(": {"bits": 4}}}, r"regular expression.*`\(`"),
        (replaced(1, (3, 4)), {"bits": 4}, r"zero points .*expected I32 \[4, 4\].* got I32 \[3, 4\]"),
        (replaced(1, (4, 7)), {"bits": 4}, r"configuration's 4 bits, got those of none"),
        (replaced(1, (4, 4), "I16"), {"bits": 4}, r"zero points .*expected I32 \[4, 4\].* got I16"),
        (replaced(2, (0, 32), "F16"), {"bits": 4}, r"at least one group"),
        (replaced(2, (4, 33), "F16"), {"bits": 4}, r"expected the shapes of GPTQ, or of AWQ"),
        (replaced(2, (4, 32), "I32"), {"bits": 4}, r"scales .*expected F16, BF16, F32"),
        (replaced(0, (8, 32), "F16"), {"bits": 4}, r"expected the shapes of GPTQ, or of AWQ"),
    ],
)
def test_damaged_or_contradictory(tensors, said, words):
    """What is absent, misshapen, contradicted or ambiguous is an error that says so."""
    with pytest.raises(CheckpointError, match=words):
        found(tensors, quant_method="gptq", **said)


@pytest.mark.parametrize("said", [{}, {"packing_format": "auto_round:auto_awq"}, {"packing_format": "x"}])
def test_unknown_packing_formats(said):
    """auto-round must say a packing that is known and that the shapes have."""
    with pytest.raises(CheckpointError, match=r"expected a `packing_format` of auto_round, "):
        found(stored(), quant_method="auto-round", bits=4, **said)


AWQ_GEMM = (("qweight", "I32", (64, 4)), ("qzeros", "I32", (4, 4)), ("scales", "F16", (4, 32)))
AWQ_GEMV = (("qweight", "I32", (32, 32)), ("qzeros", "I32", (32, 1)), ("scales", "F16", (32, 8)))
AWQ_FAST = (("qweight", "I16", (8, 256)), ("qzeros", "F16", (8, 32)), ("scales", "F16", (8, 32)))


@pytest.mark.parametrize(
    ("tensors", "scheme", "shape", "size"),
    [
        (AWQ_GEMM, "awq_gemm", (32, 64), 16),
        (AWQ_GEMV, "awq_gemv", (32, 256), 128),
        (AWQ_FAST, "awq_gemv_fast", (32, 256), 128),
    ],
)
def test_awq_layouts(tensors, scheme, shape, size):
    """Shapes tell gemm, gemv and gemv_fast apart, with a configuration or without."""
    tensors = [(STEM + name, dtype, shape) for name, dtype, shape in tensors]
    version = scheme.removeprefix("awq_")
    said = {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True, "version": version}
    claim = found(tensors, **said)
    assert (claim.name, claim.decoder.scheme, claim.decoder.shape) == (f"{STEM}weight", scheme, shape)
    assert claim.decoder.params["size"] == size
    if scheme == "awq_gemm":
        assert found(tensors).decoder == claim.decoder


@pytest.mark.parametrize(
    ("tensors", "said", "words"),
    [
        (AWQ_GEMM, {"bits": 3}, "expected 4 bits, the configuration says 3"),
        (AWQ_GEMM, {"version": "gemv"}, "says AWQ gemv, got the shapes of gemm"),
        (AWQ_GEMM, {"version": "marlin"}, "marlin, which is not supported"),
        (AWQ_GEMM, {"group_size": 32}, "expected 2 groups"),
        (AWQ_GEMV, {"zero_point": False}, "`zero_point: false` is not supported"),
        (AWQ_GEMV, {"group_size": 16}, "expected at least 16 groups of 16"),
        (AWQ_GEMV, {}, r"groups of 256 columns may be of \[128, 256\]"),
        (AWQ_GEMM[:2], {}, "scales` is absent"),
    ],
)
def test_damaged_or_contradictory_awq(tensors, said, words):
    """The same for AWQ."""
    tensors = [(STEM + name, dtype, shape) for name, dtype, shape in tensors]
    with pytest.raises(CheckpointError, match=words):
        found(tensors, **{"quant_method": "awq", "bits": 4} | said)


def test_awq_without_zero_point():
    """`zero_point: false` is left to the zero points that are stored."""
    tensors = [(STEM + name, dtype, shape) for name, dtype, shape in AWQ_GEMM]
    claim = found(tensors, quant_method="awq", bits=4, group_size=16, zero_point=False)
    assert claim.decoder.params["zeros"] == "middle"


def save(folder, cases, config):
    """A checkpoint of modules, each with the tensors of a case."""
    folder.mkdir()
    tensors = {}
    for stem, decoder, data in cases:
        for suffix, spec, value in zip(
            ("qweight", "qzeros", "scales", "g_idx"), decoder.inputs, data, strict=False
        ):
            tensors[f"{stem}.{suffix}"] = {
                "dtype": spec.dtype.name,
                "shape": [*spec.shape],
                "data": bytes(value),
            }
    (folder / "model.safetensors").write_bytes(write(tensors, None))
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))


@pytest.mark.parametrize("precision", ["keep", "float32", "bfloat16"])
def test_modules_of_several_layouts_side_by_side(precision, tmp_path):
    """Bits by module, act-order, experts, AWQ beside GPTQ: all from one configuration, rounded once."""
    cases = {
        "a": Case(bits=8, columns=64, group=16, seed=1),
        "b": Case(bits=4, order="shuffled", seed=2),
        "c": Case(bits=4, lead=(3,), seed=3),
        "d": AwqCase("gemm", seed=4),
    }
    config = {"quant_method": "gptq", "bits": 4, "group_size": 16, "dynamic": {"a": {"bits": 8}}}
    save(tmp_path / "in", [(n, c.decoder, c.stored) for n, c in cases.items()], config)
    convert(str(tmp_path / "in"), str(tmp_path / "out"), precision=precision, shard_size=21000)
    made = read_mirror(tmp_path / "out")
    assert {*made} == {f"{name}.weight" for name in cases}
    for name, case in cases.items():
        array, dtype = made[f"{name}.weight"]
        assert dtype == {"keep": "F16", "float32": "F32", "bfloat16": "BF16"}[precision]
        np.testing.assert_array_equal(array, case.want.astype(array.dtype))


def test_column_groups_out_of_range(tmp_path):
    """A group that does not exist stops the conversion."""
    case = Case(order="shuffled")
    case.stored[3] = case.stored[3].copy()
    case.stored[3].view("<i4")[0] = 4
    save(tmp_path / "in", [("a", case.decoder, case.stored)], {"quant_method": "gptq", "bits": 4})
    with pytest.raises(CheckpointError, match=r"`a.g_idx`.*expected 0 to 3, got 4"):
        convert(str(tmp_path / "in"), str(tmp_path / "out"))
