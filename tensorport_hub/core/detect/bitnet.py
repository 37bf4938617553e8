"""BitNet: `X.weight` U8 [rows / 4, in] and `X.weight_scale`, one float.

`linear_class` of the configuration says whether the scale multiplies (`autobitlinear`) or divides
(`bitlinear`, also where `quant_method` is bitnet and says no more); the tensors can't tell.

Source: transformers `quantizers/quantizer_bitnet.py`, `utils/quantization_config.py` (`BitNetQuantConfig`).
"""

from __future__ import annotations

from tensorport_hub.core.decode.bitnet import BitnetOver, BitnetTimes
from tensorport_hub.core.decode.scales import FLOATS
from tensorport_hub.core.detect.checkpoint import Checkpoint, Claim
from tensorport_hub.core.tensor import TensorSpec, shorten
from tensorport_hub.errors import CheckpointError

SUFFIXES = ((".weight_scale", ".weight"),)
FACTS: tuple[str, ...] = ()

_CLASSES = {"autobitlinear": BitnetTimes, "bitlinear": BitnetOver}


def claim(tensor: TensorSpec, checkpoint: Checkpoint) -> Claim | None:
    """The module whose primary `tensor` is."""
    if tensor.dtype.name != "U8" or tensor.name.rpartition(".")[2] != "weight":
        return None
    mine = checkpoint.method == "bitnet"
    scale = checkpoint.find(f"{tensor.name}_scale")
    if scale is None:
        if mine:
            checkpoint.need(f"{tensor.name}_scale", of=tensor, scheme="BitNet")
        return None
    if scale.dtype.name not in FLOATS or len(scale.shape) > 1 or not (mine or scale.numel == 1):
        return None
    stated = checkpoint.quantization.get("linear_class", "bitlinear" if mine else None)
    kind = _CLASSES.get(str(stated).lower())
    if kind is None:
        raise CheckpointError(
            f"{tensor} looks like BitNet; expected a `linear_class` of autobitlinear or bitlinear in the"
            f" configuration, got {shorten(stated)}"
        )
    return Claim(tensor.name, kind(tensor, scale))
