"""torchao's safetensors: whole checkpoints, and what the metadata says of blocks, dtypes and subclasses."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tensorport_hub.core.decode.float8 import Float8
from tensorport_hub.core.decode.int8 import Int8, Int8Zero
from tensorport_hub.core.detect import Checkpoint
from tensorport_hub.core.recipe import recipes
from tensorport_hub.errors import CheckpointError
from tests.core.samples import specs
from tests.foreign import check_checkpoint, check_wrapped

CHECKPOINTS = ("torchao_float8_weight_only", "torchao_int8_weight_only", "torchao_int8da_int4w")
INTX, INT8, FLOAT8 = "IntxUnpackedToInt8Tensor", "Int8Tensor", "Float8Tensor"


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_foreign_checkpoint_decodes_bit_for_bit(name, tmp_path):
    """What torchao's own `dequantize` returns, in its dtype."""
    check_checkpoint(name, tmp_path)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_wrapped_copy_decodes_the_same(name, tmp_path):
    """Longer names than the metadata's, and companions in another file."""
    check_wrapped(name, tmp_path)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_tensors_cut_at_every_few_rows_decode_the_same(name, tmp_path):
    """Shards of a few rows each."""
    check_checkpoint(name, tmp_path, shard_size=600)


def described(kind, block, data=("qdata", "scale"), dtype="bfloat16", **more):
    """A tensor's entry in the metadata."""
    attributes = {"block_size": block, **more}
    if dtype:
        attributes["dtype"] = {"_type": "torch.dtype", "_data": dtype}
    return json.dumps({"_type": kind, "_data": attributes, "_tensor_data_names": [*data]})


def stored(q, scale, zero=None, stem="a.b._weight_"):
    """Dtype and shape of codes, scales and zero points."""
    tensors = [(f"{stem}qdata", *q), (f"{stem}scale", *scale)]
    return [*tensors, (f"{stem}zero_point", *zero)] if zero else tensors


def made(tensors, metadata):
    """All recipes of a checkpoint."""
    text = {"a.b.weight": metadata} if isinstance(metadata, str) else metadata
    return recipes(Checkpoint({t.name: t for t in specs(tensors)}, metadata=text))


@pytest.mark.parametrize(
    ("tensors", "metadata", "kind", "blocks", "dtype"),
    [
        (stored(("I8", (6, 64)), ("F32", (6, 1))), described(INT8, [1, 64]), Int8, (1, 1, 64), "BF16"),
        (stored(("I8", (6, 64)), ("F32", (1, 1))), described(INT8, [6, 64]), Int8, (1, 6, 64), "BF16"),
        (stored(("I8", (6, 64)), ("F32", ())), described(INT8, [-1, -1]), Int8, (1, 6, 64), "BF16"),
        (
            stored(("I8", (6, 64)), ("F16", (6, 1))),
            described(INT8, [1, 64], dtype=""),
            Int8,
            (1, 1, 64),
            "F16",
        ),
        (
            stored(("I8", (6, 64)), ("BF16", (6, 2)), ("I8", (6, 2))),
            described(INTX, [1, 32], dtype="float32"),
            Int8Zero,
            (1, 1, 32),
            "F32",
        ),
        (
            stored(("I8", (2, 6, 64)), ("BF16", (2, 6, 1)), ("I8", (2, 6, 1))),
            described(INT8, [1, 1, 64], ("zero_point", "qdata", "scale")),
            Int8Zero,
            (2, 1, 64),
            "BF16",
        ),
        (
            stored(("I8", (2, 6, 64)), ("F32", (1, 1, 1))),
            described(INT8, [2, 6, 64]),
            Int8,
            (1, 12, 64),
            "BF16",
        ),
        (
            stored(("F8_E4M3", (6, 64)), ("F32", (6, 1))),
            described(FLOAT8, [1, 64], dtype="float16"),
            Float8,
            (1, 1, 64),
            "F16",
        ),
        (
            stored(("F8_E5M2", (256, 256)), ("F32", (2, 2))),
            described(FLOAT8, [128, 128]),
            Float8,
            (1, 128, 128),
            "BF16",
        ),
        (
            stored(("F8_E4M3", (2, 6, 64)), ("F32", (2, 1, 1))),
            described(FLOAT8, [1, 6, 64]),
            Float8,
            (2, 6, 64),
            "BF16",
        ),
    ],
)
def test_blocks_and_dtype_come_from_the_metadata(tensors, metadata, kind, blocks, dtype):
    """One scale a row, a group, a block, an expert or a tensor."""
    (recipe,) = made(tensors, metadata).made
    decoder = recipe.decoder
    assert (type(decoder), recipe.name) == (kind, "a.b.weight")
    assert (decoder.stack, decoder.rows, decoder.cols) == blocks
    assert (decoder.dtype.name, decoder.shape) == (dtype, tensors[0][2])


def test_zero_points_are_subtracted_and_one_rounding_is_left():
    """(q - z) * s, by hand."""
    tensors = stored(("I8", (2, 4)), ("F32", (2, 2)), ("I8", (2, 2)))
    (recipe,) = made(tensors, described(INTX, [1, 2])).made
    q = np.array([-8, 7, 0, 1, 2, 3, 4, 5], np.int8)
    scale, zero = np.array([0.5, 2, 1, 0.25], np.float32), np.array([1, 0, -3, 5], np.int8)
    out, _ = recipe.decoder.decode([part.view(np.uint8) for part in (q, scale, zero)], 0, 8)
    assert out.tolist() == [-4.5, 3, 0, 2, 5, 6, -0.25, 0]


def test_other_attributes_than_weight_and_short_names():
    """A parameter of any name, at any depth."""
    tensors = [("_up_qdata", "I8", (4, 8)), ("_up_scale", "F32", (4, 1))]
    (recipe,) = made(tensors, {"up": described(INT8, [1, 8]), "format": "pt"}).made
    assert recipe.name == "up"


def test_scales_of_activations_are_accounted_for():
    """They belong to the output, and are no weights."""
    extra = ("a.b._weight_act_quant_scale", "F32", (1, 1))
    metadata = described(INT8, [1, 64], ("qdata", "scale", "act_quant_scale"))
    plan = made([*stored(("I8", (6, 64)), ("F32", (6, 1))), extra], metadata)
    assert [recipe.name for recipe in plan.made] == ["a.b.weight"]
    assert plan.left_out == {extra[0]: "belongs to `a.b.weight`"}


INTEGERS = stored(("I8", (6, 64)), ("F32", (6, 1)))


@pytest.mark.parametrize(
    ("tensors", "metadata", "match"),
    [
        (INTEGERS, {}, "does not describe `a.b.weight`"),
        (INTEGERS, {"format": "pt", "other.weight": described(INT8, [1, 64])}, "does not describe"),
        (INTEGERS, "{", "is no JSON"),
        (INTEGERS, "[" * 100_000, "is no JSON"),
        (INTEGERS, "[]", "torchao None is not supported"),
        (
            INTEGERS,
            described("Int4TilePackedTo4dTensor", [1, 32]),
            "Int4TilePackedTo4dTensor is not supported",
        ),
        (INTEGERS, described("Int4Tensor", [1, 32]), "Int4Tensor is not supported"),
        (INTEGERS, described(INT8, [1, 64], ("qdata", "scale", "act_pre_scale")), "`act_pre_scale` is not"),
        (
            [*INTEGERS, ("a.b._weight_act_pre_scale", "F32", (64,))],
            described(INT8, [1, 64]),
            "`act_pre_scale` is not supported",
        ),
        (INTEGERS, described(INT8, None), "expected a `block_size` for each axis, got None"),
        (INTEGERS, described(INT8, [64]), "expected a `block_size` for each axis"),
        (INTEGERS, described(INT8, [0, 64]), "expected a `block_size` for each axis"),
        (INTEGERS, described(INT8, [1, 64.0]), "expected a `block_size` for each axis"),
        (INTEGERS, described(INT8, [1, 32]), r"expected \[6, 2\]"),
        (INTEGERS, described(INT8, [1, 64], dtype="int8"), "expected a dtype of bfloat16"),
        (INTEGERS, described(FLOAT8, [1, 64]), "8-bit float weight"),
        (INTEGERS[:1], described(INT8, [1, 64]), "`a.b._weight_scale` is absent"),
        (INTEGERS, described(INT8, [1, 64], ("qdata", "scale", "zero_point")), "zero_point` is absent"),
        (stored(("F8_E4M3", (6, 64)), ("F32", (6, 1))), described(INT8, [1, 64]), "8-bit integer weight"),
        (
            stored(("F8_E4M3", (6, 64)), ("F32", (6, 1)), ("I8", (6, 1))),
            described(FLOAT8, [1, 64]),
            "has no zero points",
        ),
        (stored(("I8", (4, 6, 64)), ("F32", (2, 6, 1))), described(INT8, [2, 1, 64]), "blocks of"),
        (stored(("I8", (6, 64)), ("F32", (6, 1)), ("I8", (3, 1))), described(INT8, [1, 64]), "zero point"),
        ([("a.weight:qdata", "I8", (6, 64))], {}, "names with colons"),
    ],
)
def test_what_is_damaged_or_not_supported_is_named(tensors, metadata, match):
    """At plan time: subclasses by name, data by name, shapes with what was expected."""
    with pytest.raises(CheckpointError, match=match):
        made(tensors, metadata)


def test_scales_without_codes_are_an_error():
    """A companion alone is no weight."""
    with pytest.raises(CheckpointError, match="_weight_scale"):
        made(INTEGERS[1:], described(INT8, [1, 64]))
