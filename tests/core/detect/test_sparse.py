"""compressed-tensors' sparse modules, by names."""

from __future__ import annotations

import numpy as np
import pytest

from tensorport_hub.core.detect import logical_name
from tensorport_hub.core.detect.checkpoint import Checkpoint
from tensorport_hub.core.detect.sparse import claim
from tensorport_hub.errors import CheckpointError
from tests.core.samples import specs
from tests.foreign import check_checkpoint, check_wrapped

NAME = "ct_legacy_sparse24_bitmask"
HALF = [("x.compressed", "BF16", (6, 6)), ("x.bitmask", "U8", (6, 2)), ("x.shape", "I64", (2, 1))]
SOME = [
    ("x.weight.compressed", "BF16", (31,)),
    ("x.weight.bitmask", "U8", (6, 2)),
    ("x.weight.shape", "I64", (2,)),
    ("x.weight.row_offsets", "I64", (6,)),
]


def test_a_foreign_checkpoint(tmp_path):
    """What compressed-tensors 0.9.4 packed."""
    check_checkpoint(NAME, tmp_path)


def test_a_foreign_checkpoint_wrapped(tmp_path):
    """Under a prefix, with companions in another file."""
    check_wrapped(NAME, tmp_path)


def test_a_foreign_checkpoint_in_pieces(tmp_path):
    """Cut at every few rows."""
    check_checkpoint(NAME, tmp_path, shard_size=1500)


def read(stored, dims=(6, 12)):
    """The claim on the first tensor."""
    tensors = {t.name: t for t in specs(stored)}
    facts = {name: np.array(dims, "<i8").tobytes() for name in tensors if name.endswith(".shape")}
    return claim(tensors[stored[0][0]], Checkpoint(tensors, facts))


def test_claims():
    """Both spellings make `x.weight`."""
    half = read(HALF)
    assert (half.name, half.decoder.scheme, half.spent) == ("x.weight", "sparse24", ("x.shape",))
    some = read(SOME)
    assert (some.name, some.decoder.scheme) == ("x.weight", "sparse_bitmask")
    assert [t.name for t in some.decoder.inputs] == [SOME[i][0] for i in (0, 1, 3)]
    assert {logical_name(name) for name, *_ in (*HALF, *SOME)} == {"x.weight"}


def test_columns_not_in_fours():
    """Quads cross rows there, so that rows begin where the mask says."""
    stored = [("x.compressed", "BF16", (6, 3)), ("x.bitmask", "U8", (6, 1)), HALF[2]]
    assert read(stored, (6, 6)).decoder.scheme == "sparse_bitmask"


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I8"])
def test_eight_bit_values(dtype):
    """They take the weight's scale."""
    for stored in (HALF, SOME):
        values = (stored[0][0], dtype, stored[0][2])
        made = read([values, *stored[1:], ("x.weight_scale", "BF16", (6, 1))])
        assert made.name == "x.weight"
        assert made.decoder.dtype.name == "BF16"
        with pytest.raises(CheckpointError, match=r"x.weight_scale` is absent"):
            read([values, *stored[1:]])


@pytest.mark.parametrize(
    ("stored", "dims", "words"),
    [
        (HALF[:1], (6, 12), "x.bitmask` is absent"),
        (HALF[:2], (6, 12), "x.shape` is absent"),
        (HALF, (5, 12), "expected rows and columns to match"),
        (HALF, (6, 0), "expected rows and columns to match"),
        (HALF, (6, 12, 1), "expected rows and columns to match"),
        (HALF, (6, 20), r"expected U8 \[rows, 3\]"),
        (HALF, (6, 16), r"expected \[6, 8\]"),
        ([*SOME[:3], ("x.weight.row_offsets", "I64", (5,))], (6, 12), "row offsets"),
        ([*HALF, ("x.weight_zero_point", "I8", (6, 1))], (6, 12), "zero points"),
    ],
)
def test_damage(stored, dims, words):
    """What is missing or misshapen is named."""
    with pytest.raises(CheckpointError, match=words):
        read(stored, dims)
