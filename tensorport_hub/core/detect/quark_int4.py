"""AMD Quark int4 and uint4: `X` I32, `X_scale` and `X_zero_point` make `X`; packed as AWQ gemm is.

`quant_method: "quark"` must say so, with `pack_method: "reorder"`; `dtype` of the weight says whether codes
are signed; `layer_quant_config` may say otherwise for some modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from tensorport_hub.core.decode.awq import AwqGemm
from tensorport_hub.core.detect.checkpoint import Checkpoint, Claim
from tensorport_hub.core.detect.qweight import Module
from tensorport_hub.core.tensor import TensorSpec
from tensorport_hub.errors import CheckpointError

SUFFIXES = ((".weight_zero_point", ".weight"),)
FACTS: tuple[str, ...] = ()

_SIGNED = {"int4": 1, "uint4": 0}


def claim(tensor: TensorSpec, checkpoint: Checkpoint) -> Claim | None:
    """The module whose primary `tensor` is."""
    stem, word, rest = tensor.name.rpartition("weight")
    if tensor.dtype.name != "I32" or rest or not word or checkpoint.method != "quark":
        return None
    if checkpoint.find(f"{tensor.name}_scale") is None:
        return None
    scheme = "Quark int4"
    scales = checkpoint.need(f"{tensor.name}_scale", of=tensor, scheme=scheme)
    zeros = checkpoint.need(f"{tensor.name}_zero_point", of=tensor, scheme=scheme)
    export = checkpoint.quantization.get("export")
    method = export.get("pack_method") if isinstance(export, Mapping) else None
    if method != "reorder":
        raise CheckpointError(f"{tensor}: expected Quark's `pack_method` `reorder`, got {method!r}")
    stated = _weight(stem.rstrip("."), checkpoint.quantization)
    dtype = str(stated.get("dtype"))
    if dtype not in _SIGNED:
        raise CheckpointError(f"{tensor}: expected Quark's `dtype` int4 or uint4, got {dtype!r}")
    if len(tensor.shape) < 2 or len(scales.shape) < 2:
        raise CheckpointError(f"{tensor} with {scales}: expected [in, out / 8] and [groups, out]")
    size = stated.get("group_size")
    if stated.get("qscheme") == "per_channel":
        size = -1
    found = Module(tensor, zeros, scales, None, stem, checkpoint)
    columns, groups = tensor.shape[-2], scales.shape[-2]
    size = found.group_size(columns, groups, size if type(size) is int else None)
    return Claim(
        tensor.name, AwqGemm(tensor, zeros, scales, size=size, signed=_SIGNED[dtype], zeros="stored")
    )


def _weight(module: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the configuration says of a module's weight: its own entry, else the general one."""
    layers = config.get("layer_quant_config")
    for pattern, entry in layers.items() if isinstance(layers, Mapping) else ():
        if fnmatchcase(module, pattern) or fnmatchcase(module, f"*.{pattern}"):
            weight = entry.get("weight") if isinstance(entry, Mapping) else None
            if isinstance(weight, Mapping):
                return weight
    general = config.get("global_quant_config")
    weight = general.get("weight") if isinstance(general, Mapping) else None
    return weight if isinstance(weight, Mapping) else {}
