"""ModelOpt's int4 modules, by shapes."""

from __future__ import annotations

import pytest

from tensorport_hub.core.detect.checkpoint import Checkpoint
from tensorport_hub.core.detect.modelopt_int4 import claim
from tensorport_hub.errors import CheckpointError
from tests.core.samples import specs
from tests.foreign import check_checkpoint, check_wrapped

NAME = "modelopt_int4_awq"
WEIGHT, SCALE = ("x.weight", "U8", (32, 256)), ("x.weight_scale", "F32", (64, 2))
PRE = ("x.pre_quant_scale", "BF16", (256,))


def test_a_foreign_checkpoint(tmp_path):
    """What ModelOpt packed is the effective weight."""
    check_checkpoint(NAME, tmp_path)


def test_a_foreign_checkpoint_wrapped(tmp_path):
    """Under a prefix, with companions in another file."""
    check_wrapped(NAME, tmp_path)


@pytest.mark.parametrize("shard_size", [1500, 2300])
def test_a_foreign_checkpoint_in_pieces(shard_size, tmp_path):
    """Cut at every row or few: an odd row begins inside a byte."""
    check_checkpoint(NAME, tmp_path, shard_size=shard_size)


def read(*stored, **quantization):
    """The claim on the first tensor."""
    tensors = {t.name: t for t in specs(stored)}
    found = Checkpoint(tensors, {}, {"config.json": {"quantization_config": quantization}})
    return claim(tensors[stored[0][0]], found)


def test_claims():
    """With input scales and without; the second step's scale is no part of the weight."""
    plain = read(WEIGHT, SCALE)
    assert (plain.decoder.scheme, plain.decoder.shape) == ("modelopt_int4", (64, 256))
    assert plain.decoder.params == {"group_size": 128}
    second = ("x.weight_scale_2", "F32", ())
    awq = read(WEIGHT, SCALE, PRE, second, quant_algo="W4A8_AWQ")
    assert awq.decoder.scheme == "modelopt_int4_awq"
    assert awq.spent == ("x.weight_scale_2",)
    stacked = read(("x.weight", "U8", (3, 32, 256)), ("x.weight_scale", "F32", (3, 64, 2)))
    assert stacked.decoder.shape == (3, 64, 256)


def test_the_group_size():
    """The configuration's where it fits, so that the last group may be smaller."""
    ragged = ("x.weight", "U8", (32, 200))
    assert read(ragged, SCALE, group_size=128).decoder.params == {"group_size": 128}
    assert read(ragged, SCALE, group_size=64).decoder.params == {"group_size": 100}
    with pytest.raises(CheckpointError, match=r"2 groups .* don't divide 201 columns"):
        read(("x.weight", "U8", (32, 201)), SCALE)


@pytest.mark.parametrize(
    "scale",
    [("x.weight_scale", "F32", (32, 1)), ("x.weight_scale", "F32", (1,)), ("x.weight_scale", "U8", (64, 2))],
)
def test_other_layouts_of_bytes(scale):
    """Scales of other shapes or dtypes are somebody else's."""
    assert read(WEIGHT, scale) is None


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ([WEIGHT, ("x.weight_scale", "F32", (32, 2))], r"expected `x.weight_scale` \[64, 'groups'\]"),
        ([WEIGHT, ("x.weight_scale", "F32", (64, 0))], "zero groups"),
        ([WEIGHT, SCALE, ("x.pre_quant_scale", "BF16", (128,))], r"`x.pre_quant_scale`.*expected .*\[256\]"),
    ],
)
def test_damage(stored, words):
    """A companion that does not fit is named."""
    with pytest.raises(CheckpointError, match=words):
        read(*stored, quant_algo="W4A16_AWQ")
