"""Which packed integers a checkpoint holds, from names, shapes and config groups."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

from tensorport_hub import convert
from tensorport_hub.core.detect import logical_name
from tensorport_hub.core.detect.checkpoint import Checkpoint
from tensorport_hub.core.detect.packed_int import claim
from tensorport_hub.errors import CheckpointError
from tests.core.decode.test_packed_int import Case
from tests.core.samples import specs
from tests.foreign import check_checkpoint, check_wrapped, read_mirror, write

FOREIGN = [
    "ct_legacy_w4a16_actorder_gidx",
    "ct_legacy_w4a16_asym_int8zp",
    "ct_w4a16_asym",
    "ct_w4a16_g128_sym",
    "ct_w4a16_g32_sym_kimi",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_checkpoints(name, tmp_path):
    """What compressed-tensors packed decodes as it decodes it."""
    check_checkpoint(name, tmp_path)


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_checkpoints_wrapped(name, tmp_path):
    """Under a prefix, with companions in another file."""
    check_wrapped(name, tmp_path)


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_checkpoints_in_pieces(name, tmp_path):
    """Cut at every few rows."""
    check_checkpoint(name, tmp_path, shard_size=1500)


def group(bits, size=None, targets=("Linear",), **weights):
    """One config group."""
    strategy = "group" if size else "channel"
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": strategy} | weights
    return {"targets": [*targets], "weights": {"group_size": size, **weights}}


def config(*groups, **more):
    """A configuration with these groups."""
    named = {f"group_{i}": value for i, value in enumerate(groups)}
    stated = {"quant_method": "compressed-tensors", "config_groups": named, "format": "pack-quantized"}
    return {"config.json": {"quantization_config": stated | more}}


def checkpoint(configs, *stored, shapes=None):
    """Tensors of module `m.a.proj` (or others, by full name), facts of their shapes, configuration."""
    tensors = specs([(name if "." in name else f"m.a.proj.{name}", *rest) for name, *rest in stored])
    shapes = {"m.a.proj.weight_shape": (64, 128)} if shapes is None else shapes
    facts = {name: np.array(dims, "<i8").tobytes() for name, dims in shapes.items()}
    return Checkpoint({t.name: t for t in tensors}, facts, configs)


def weight(words, groups, *more, rows=64):
    """The usual tensors of a symmetric weight."""
    return [
        ("weight_packed", "I32", (rows, words)),
        ("weight_scale", "BF16", (rows, groups)),
        ("weight_shape", "I64", (2,)),
        *more,
    ]


def read(found, name="m.a.proj.weight_packed"):
    """The claim on a tensor."""
    return claim(found.tensors[name], found)


def params(found, name="m.a.proj.weight_packed"):
    """Bits, packing and group size of the module."""
    said = read(found, name).decoder.params
    return said["bits"], said["packing"], said["group_size"]


def test_a_claim():
    """Codes and scales are inputs, the shape is accounted for, the name is the weight's."""
    found = checkpoint(config(group(4, 32)), *weight(16, 4))
    made = read(found)
    assert made.name == "m.a.proj.weight"
    assert made.spent == ("m.a.proj.weight_shape",)
    assert made.decoder.shape == (64, 128)
    assert [t.name.rpartition(".")[2] for t in made.decoder.inputs] == ["weight_packed", "weight_scale"]
    assert claim(found.tensors["m.a.proj.weight_scale"], found) is None
    assert {logical_name(name) for name in found.tensors} == {"m.a.proj.weight"}


@pytest.mark.parametrize(
    ("words", "bits", "packing"),
    [(12, 3, "dense"), (13, 3, "padded"), (20, 5, "dense"), (22, 5, "padded"), (8, 2, "dense")],
)
def test_the_width_tells_bits_and_packing(words, bits, packing):
    """Without any configuration, where the reading is unique."""
    assert params(checkpoint({}, *weight(words, 4))) == (bits, packing, 32)


def test_eight_bits_or_seven_padded():
    """The same width: the configuration decides, and without one it is refused."""
    assert params(checkpoint(config(group(8)), *weight(32, 1))) == (8, "dense", 128)
    assert params(checkpoint(config(group(7)), *weight(32, 1))) == (7, "padded", 128)
    with pytest.raises(CheckpointError, match="fits 7 bits padded, 8 bits dense"):
        read(checkpoint({}, *weight(32, 1)))


@pytest.mark.parametrize(
    ("version", "packing"), [("0.9.4", "padded"), ("0.17.1", "padded"), ("0.18.0", "dense"), ("1.0", "dense")]
)
def test_equal_widths_by_version(version, packing):
    """Seven columns of 5 bits fill two words both ways."""
    stored = weight(2, 1)
    found = checkpoint(config(group(5), version=version), *stored, shapes={"m.a.proj.weight_shape": (64, 7)})
    assert params(found) == (5, packing, 7)
    found = checkpoint(config(group(5)), *stored, shapes={"m.a.proj.weight_shape": (64, 7)})
    with pytest.raises(CheckpointError, match="dense and padded"):
        read(found)


def test_zero_points_tell_equal_widths():
    """Packed zero points have a width too."""
    zero = ("weight_zero_point", "I32", (10, 1))
    shapes = {"m.a.proj.weight_shape": (64, 7)}
    found = checkpoint(config(group(5, symmetric=False)), *weight(2, 1, zero), shapes=shapes)
    assert params(found) == (5, "dense", 7)


def test_several_groups_by_class_name():
    """Class names can't be seen: the shapes tell."""
    said = config(group(4, 32), group(8, targets=("Embedding",)))
    assert params(checkpoint(said, *weight(16, 4))) == (4, "dense", 32)
    assert params(checkpoint(said, *weight(32, 1))) == (8, "dense", 128)


@pytest.mark.parametrize("target", ["m.a.proj", "re:.*proj$", "re:m[.]a", "a.proj", "re:a[.]proj"])
def test_names_before_class_names(target):
    """A target that names the module wins, also behind another prefix."""
    said = config(group(8), group(7, targets=(target,)))
    assert params(checkpoint(said, *weight(32, 1))) == (7, "padded", 128)


def test_an_exact_name_before_a_pattern():
    """The most exact target wins."""
    said = config(group(8, targets=("re:.*proj",)), group(7, targets=("m.a.proj",)))
    assert params(checkpoint(said, *weight(32, 1))) == (7, "padded", 128)


def test_groups_of_one_kind_but_different_meaning():
    """Two groups that both fit in different ways are refused."""
    said = config(group(8), group(7, targets=("Embedding",)))
    with pytest.raises(CheckpointError, match=r"config groups `group_0`, `group_1` fit it in different ways"):
        read(checkpoint(said, *weight(32, 1)))


def test_a_named_group_that_does_not_fit():
    """A configuration that contradicts the shapes is an error, not a reason to guess."""
    said = config(group(4, 64, targets=("m.a.proj",)), group(4, 32))
    with pytest.raises(CheckpointError, match=r"shapes don't fit.*`group_0` says 4 bits, groups of 64"):
        read(checkpoint(said, *weight(16, 4)))


def test_a_name_that_matches_nothing():
    """Where no target matches, all groups are asked."""
    said = config(group(4, 32, targets=("other.name",)), group(8, targets=("more",)))
    assert params(checkpoint(said, *weight(16, 4))) == (4, "dense", 32)


def test_float_groups_are_not_asked():
    """A group of another kind never explains integers."""
    said = config(group(4, 16, type="float"), group(4, 32))
    assert params(checkpoint(said, *weight(16, 4))) == (4, "dense", 32)


def test_no_shape_but_groups():
    """Without `weight_shape`, groups times their size are the columns."""
    stored = weight(16, 4)[:2]
    assert params(checkpoint(config(group(4, 32)), *stored, shapes={})) == (4, "dense", 32)
    for said in (config(group(4)), {}):
        with pytest.raises(CheckpointError, match="weight_shape` is absent"):
            read(checkpoint(said, *stored, shapes={}))


@pytest.mark.parametrize("dims", [(3, 64, 128), (64, 128), ((64, 128),) * 3])
def test_stacked_experts(dims):
    """A leading axis, with the shape of all or of each."""
    shape = np.array(dims).shape
    stored = [
        ("weight_packed", "I32", (3, 64, 16)),
        ("weight_scale", "BF16", (3, 64, 4)),
        ("weight_shape", "I64", shape),
    ]
    found = checkpoint(config(group(4, 32)), *stored, shapes={"m.a.proj.weight_shape": dims})
    assert read(found).decoder.shape == (3, 64, 128)


@pytest.mark.parametrize("dims", [(63, 128), (64, 0), (2, 64, 128), (128,), (64, -128)])
def test_a_shape_that_contradicts(dims):
    """The shape tensor must say the packed tensor's rows."""
    stored = [*weight(16, 4)[:2], ("weight_shape", "I64", (len(dims),))]
    found = checkpoint(config(group(4, 32)), *stored, shapes={"m.a.proj.weight_shape": dims})
    with pytest.raises(CheckpointError, match=r"weight_shape`.*expected \[64, 'columns'\]"):
        read(found)


@pytest.mark.parametrize(
    ("stored", "said", "words"),
    [
        (weight(16, 4)[:1], group(4, 32), "weight_scale` is absent"),
        (weight(16, 0), group(4, 32), "zero groups"),
        (weight(16, 4), group(4, 32, symmetric=False), "weight_zero_point` is absent"),
        (weight(16, 4), group(4, 32, actorder="group"), "weight_g_idx` is absent"),
        (weight(17, 4), group(4, 32), "shapes don't fit"),
        (weight(16, 3), group(4, 32), "shapes don't fit"),
        ([*weight(16, 4), ("weight_zero_point", "I32", (9, 4))], group(4, 32), r"expected I32 \[8, 4\]"),
        ([*weight(16, 4), ("weight_g_idx", "I32", (64,))], group(4, 32), r"expected I32 \[128\]"),
        ([*weight(16, 4), ("scale_packed", "F16", (4, 64))], group(4, 32), "marlin-24"),
        ([*weight(16, 4), ("meta", "I16", (4, 64))], group(4, 32), "marlin-24"),
    ],
)
def test_damage(stored, said, words):
    """What is missing or misshapen is named."""
    with pytest.raises(CheckpointError, match=words):
        read(checkpoint(config(said), *stored))


def test_a_checkpoint_of_several_groups(tmp_path):
    """Modules of different bits side by side, end to end, in pieces."""
    cases = {
        "model.a": Case(bits=4, rows=40, columns=64, group=32),
        "model.b": Case(bits=8, rows=40, columns=64, group=64, zeros="packed"),
        "model.c": Case(bits=3, rows=40, columns=64, group=16, zeros="packed", order=True, lead=(2,)),
    }
    tensors = {}
    for module, case in cases.items():
        for spec, data in zip(case.specs, case.stored, strict=True):
            name = f"{module}.weight{spec.name.removeprefix('w')}"
            tensors[name] = {"dtype": spec.dtype.name, "shape": spec.shape, "data": data.tobytes()}
        dims = np.array(case.want.shape, "<i8")
        tensors[f"{module}.weight_shape"] = {"dtype": "I64", "shape": dims.shape, "data": dims.tobytes()}
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "model.safetensors").write_bytes(write(tensors, None))
    said = config(
        group(4, 32), group(8, 64, ("re:.*b$",), symmetric=False), group(3, 16, ("model.c",), symmetric=False)
    )
    (tmp_path / "in" / "config.json").write_text(json.dumps(said["config.json"]))
    convert(str(tmp_path / "in"), str(tmp_path / "out"), shard_size=6000)
    made = read_mirror(tmp_path / "out")
    assert made.keys() == {f"{module}.weight" for module in cases}
    for module, case in cases.items():
        array, dtype = made[f"{module}.weight"]
        assert dtype == "BF16"
        assert array.tobytes() == case.want.astype(ml_dtypes.bfloat16).tobytes()
