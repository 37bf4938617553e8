"""ModelOpt W4A16_AWQ and W4A8_AWQ: `X.weight` U8 with twice as many rows of `X.weight_scale`.

`X.pre_quant_scale` is applied where it is stored. `X.weight_scale_2` (W4A8_AWQ) belongs to the second,
8-bit step of the computation and not to the weight. The group size is the configuration's where it fits the
number of scales, else the columns divided by it.
"""

from __future__ import annotations

from tensorport_hub.core.decode.modelopt_int4 import ModelOptInt4, ModelOptInt4Awq
from tensorport_hub.core.decode.scales import FLOATS
from tensorport_hub.core.detect.checkpoint import Checkpoint, Claim
from tensorport_hub.core.tensor import TensorSpec
from tensorport_hub.errors import CheckpointError

SUFFIXES: tuple[tuple[str, str], ...] = ((".pre_quant_scale", ".weight"), (".weight_scale_2", ".weight"))
FACTS: tuple[str, ...] = ()


def claim(tensor: TensorSpec, checkpoint: Checkpoint) -> Claim | None:
    """The module whose packed rows `tensor` is."""
    if tensor.dtype.name != "U8" or not tensor.name.endswith(".weight") or len(tensor.shape) < 2:
        return None
    module = tensor.name.removesuffix(".weight")
    scale = checkpoint.find(f"{module}.weight_scale")
    if scale is None or scale.dtype.name not in FLOATS:
        return None
    *lead, pairs, columns = tensor.shape
    if len(scale.shape) != len(tensor.shape) or scale.shape[:-1] != (*lead, pairs * 2):
        if len(scale.shape) < 2 or not _is_stated(checkpoint):
            return None
        raise CheckpointError(
            f"{tensor} looks like ModelOpt int4: expected `{scale.name}` {[*lead, pairs * 2, 'groups']},"
            f" got {list(scale.shape)}"
        )
    size = _group_size(tensor, scale, columns, checkpoint)
    spent = checkpoint.present(f"{module}.weight_scale_2", f"{module}.input_scale")
    pre = checkpoint.find(f"{module}.pre_quant_scale")
    if pre is None:
        return Claim(tensor.name, ModelOptInt4(tensor, scale, size), spent)
    return Claim(tensor.name, ModelOptInt4Awq(tensor, scale, pre, size), spent)


def _is_stated(checkpoint: Checkpoint) -> bool:
    return str(checkpoint.quantization.get("quant_algo", "")).upper() in ("W4A16_AWQ", "W4A8_AWQ", "INT4_AWQ")


def _group_size(weight: TensorSpec, scale: TensorSpec, columns: int, checkpoint: Checkpoint) -> int:
    groups = scale.shape[-1]
    if not groups:
        raise CheckpointError(f"{weight}: expected scales, got zero groups in {scale}")
    stated = checkpoint.quantization.get("group_size")
    if isinstance(stated, int) and stated > 0 and -(-columns // stated) == groups:
        return stated
    if columns % groups == 0:
        return columns // groups
    raise CheckpointError(
        f"{weight}: {groups} groups of scales in `{scale.name}` don't divide {columns} columns, and the"
        " configuration has no `group_size` that would"
    )
