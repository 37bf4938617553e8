"""HQQ modules: foreign checkpoints whole, wrapped and cut; and what is refused, in words."""

from __future__ import annotations

import numpy as np
import pytest

from tensorport_hub.errors import CheckpointError
from tests.core.decode.test_hqq import pack
from tests.core.held import decoded, made
from tests.foreign import check_checkpoint, check_wrapped

CHECKPOINTS = ("hqq_3bit_g64_axis1", "hqq_4bit_g64_axis1", "hqq_8bit_g64_axis1")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_foreign_checkpoint_decodes_bit_for_bit(name, tmp_path):
    """What HQQ returns, in its dtype; whole, and cut at every few rows."""
    check_checkpoint(name, tmp_path / "whole")
    check_checkpoint(name, tmp_path / "cut", shard_size=2_000)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_wrapped_copy_decodes_the_same(name, tmp_path):
    """Other names, and companions in another file."""
    check_wrapped(name, tmp_path)


def without(stored, *names):
    """The module without some of its tensors."""
    return {name: array for name, array in stored.items() if name.removeprefix("m.") not in names}


def test_the_configuration_fills_in():
    """Bits, groups and axis that are not stored beside the codes are configured."""
    stored, want = pack((16, 64), 4, 64, 1)
    bare = without(stored, "nbits", "axis", "packing", "group_size", "compute_dtype", "view_as_float")
    config = {"quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64, "axis": 1}}}
    assert decoded(bare, made(bare, config)["m.weight"]).tobytes() == want.tobytes()
    with pytest.raises(CheckpointError, match=r"expected `m\.nbits`, or `nbits` in the configuration"):
        made(bare)


def test_ternary_codes_have_two_bits():
    """The packing says how codes lie; 1.58 bits are stored in 2."""
    stored, want = pack((16, 64), 2, 64, 1)
    stored["m.nbits"] = np.array(1.58, np.float32)
    assert decoded(stored, made(stored)["m.weight"]).tobytes() == want.tobytes()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("quant_scale", np.array(1, np.uint8), r"expected `m.quant_scale` 0, got \[1\]"),
        ("quant_zero", np.array(1, np.uint8), r"expected `m.quant_zero` 0, got \[1\]"),
        ("channel_wise", np.array(0, np.uint8), r"expected `m.channel_wise` 1, got \[0\]"),
        ("shape", np.array([4, 0], np.int64), r"expected `m.shape` with sizes, got \[4, 0\]"),
        ("shape", np.array([1.5, 4], np.float32), "expected whole numbers"),
        ("axis", np.array([1, 1], np.int32), "expected one number in `m.axis`"),
        ("packing", np.frombuffer(b"marlin", np.uint8), "expected a packing like `4bit_u8`, got `marlin`"),
        ("compute_dtype", np.frombuffer(b"torch.int8", np.uint8), "expected a compute dtype"),
    ],
)
def test_damaged_facts(name, value, message):
    """Each number and word beside the codes is checked."""
    stored, _ = pack((16, 64), 4, 64, 1)
    with pytest.raises(CheckpointError, match=message):
        made({**stored, f"m.{name}": value})


@pytest.mark.parametrize("name", ["W_q", "scale", "zero", "shape"])
def test_a_missing_part(name):
    """Codes need both factors and the shape; without codes there is no module, but plain tensors."""
    stored, _ = pack((16, 64), 4, 64, 1)
    if name == "W_q":
        assert "m.weight" not in made(without(stored, name))
        return
    with pytest.raises(CheckpointError, match=f"m.{name}`"):
        made(without(stored, name))


def test_another_method_with_such_names():
    """SINQ's codes have further scales: refused."""
    stored, _ = pack((16, 64), 4, 64, 1)
    with pytest.raises(CheckpointError, match="no supported scheme"):
        made(stored, {"quant_method": "sinq"})
