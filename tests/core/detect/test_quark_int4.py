"""Which Quark int4 and uint4 modules a checkpoint holds."""

from __future__ import annotations

import pytest

from tensorport_hub.core.detect import CLAIMS
from tensorport_hub.core.detect.checkpoint import Checkpoint
from tensorport_hub.errors import CheckpointError
from tests.core.samples import specs
from tests.foreign import check_checkpoint, check_wrapped

NAME = "quark_int4_g32"
TENSORS = (
    ("a.mlp.up.weight", "I32", (64, 4)),
    ("a.mlp.up.weight_scale", "BF16", (4, 32)),
    ("a.mlp.up.weight_zero_point", "I32", (4, 4)),
)


def test_foreign_checkpoint(tmp_path):
    """What AMD Quark packed decodes as its own unpacking and product."""
    check_checkpoint(NAME, tmp_path)


def test_foreign_checkpoint_wrapped(tmp_path):
    """Under a prefix, with companions in another file."""
    check_wrapped(NAME, tmp_path)


def test_foreign_checkpoint_in_pieces(tmp_path):
    """Cut at every few rows."""
    check_checkpoint(NAME, tmp_path, shard_size=3000)


def found(tensors, weight, layers=None, method="reorder"):
    """The claim of a checkpoint whose configuration says this of weights."""
    config = {
        "quant_method": "quark",
        "export": {"pack_method": method},
        "global_quant_config": {"weight": weight},
        "layer_quant_config": layers or {},
    }
    made = {t.name: t for t in specs(tensors)}
    checkpoint = Checkpoint(made, configs={"config.json": {"quantization_config": config}})
    claims = [c for c in (ask(t, checkpoint) for t in made.values() for ask in CLAIMS) if c is not None]
    assert len(claims) == 1
    return claims[0]


@pytest.mark.parametrize(("dtype", "signed"), [("int4", 1), ("uint4", 0)])
def test_signs(dtype, signed):
    """`dtype` says whether codes are signed; the name stays."""
    claim = found(TENSORS, {"dtype": dtype, "group_size": 16, "qscheme": "per_group"})
    assert (claim.name, claim.decoder.shape) == ("a.mlp.up.weight", (32, 64))
    assert claim.decoder.params == {"size": 16, "signed": signed, "zeros": "stored"}


def test_layers():
    """`layer_quant_config` says otherwise for some modules."""
    layers = {
        "*.down": {"weight": {"dtype": "fp8"}},
        "*.up": {"weight": {"dtype": "uint4", "group_size": 16}},
    }
    assert found(TENSORS, {"dtype": "int4"}, layers).decoder.params["signed"] == 0


def test_per_channel():
    """One scale a row, whatever group size is stated."""
    tensors = [TENSORS[0], (TENSORS[1][0], "BF16", (1, 32)), (TENSORS[2][0], "I32", (1, 4))]
    claim = found(tensors, {"dtype": "int4", "group_size": 128, "qscheme": "per_channel"})
    assert claim.decoder.params["size"] == 64


@pytest.mark.parametrize(
    ("tensors", "weight", "method", "words"),
    [
        (TENSORS, {"dtype": "int4"}, "order", r"`pack_method` `reorder`, got 'order'"),
        (TENSORS, {"dtype": "int3"}, "reorder", r"`dtype` int4 or uint4, got 'int3'"),
        (TENSORS, {"dtype": "int4", "group_size": 32}, "reorder", r"expected 2 groups"),
        (TENSORS[:2], {"dtype": "int4"}, "reorder", r"weight_zero_point` is absent"),
        (
            [*TENSORS[:2], (TENSORS[2][0], "I32", (4, 3))],
            {"dtype": "int4"},
            "reorder",
            r"zero points.*\[4, 4\]",
        ),
    ],
)
def test_damaged_or_contradictory(tensors, weight, method, words):
    """What is absent, misshapen or contradicted is an error that says so."""
    with pytest.raises(CheckpointError, match=words):
        found(tensors, weight, method=method)
