"""8-bit integer weights of compressed-tensors: `X.weight` I8, `X.weight_scale`, maybe `X.weight_zero_point`.

The dtype is that of the scales, as compressed-tensors gives it; Quark and ModelOpt give BF16. Powers of two
as scales belong to 4-bit floats in I8, and gemma's own files to their family: they are none of these.
"""

from __future__ import annotations

from tensorport_hub.core.decode.int8 import Int8, Int8Zero
from tensorport_hub.core.decode.scales import FLOATS
from tensorport_hub.core.detect.blocks import read_blocks
from tensorport_hub.core.detect.checkpoint import Checkpoint, Claim
from tensorport_hub.core.tensor import TensorSpec

SUFFIXES = ((".weight_zero_point", ".weight"),)
FACTS: tuple[str, ...] = ()

_OTHERS = ("gemma",)
_BF16 = ("quark", "modelopt")
"""Their scales are F32 whatever the model's dtype is."""


def claim(tensor: TensorSpec, checkpoint: Checkpoint) -> Claim | None:
    """The module whose primary `tensor` is."""
    if tensor.dtype.name != "I8" or not tensor.name.endswith("weight") or checkpoint.method in _OTHERS:
        return None
    scale = checkpoint.find(f"{tensor.name}_scale")
    if scale is None or scale.dtype.name not in FLOATS:
        return None
    module = tensor.name.removesuffix("weight").rstrip("._")
    blocks = read_blocks(tensor, scale, checkpoint, module=module)
    returns = "BF16" if checkpoint.method in _BF16 else scale.dtype.name
    zero = checkpoint.find(f"{tensor.name}_zero_point")
    if zero is not None:
        return Claim(tensor.name, Int8Zero(tensor, scale, zero, *blocks, returns))
    return Claim(tensor.name, Int8(tensor, scale, *blocks, returns))
