"""torchao: a tensor `M.name` stored as `M._name_qdata`, `M._name_scale` and perhaps `M._name_zero_point`.

`__metadata__` has a JSON text under the tensor's name: `_type` (the subclass), `_data` (its attributes: block
sizes for each axis, dtype) and `_tensor_data_names`. Wrapped copies keep that key while their names grow, so
an entry whose name is the end of the tensor's counts too. Int8Tensor and IntxUnpackedToInt8Tensor are 8-bit
integers in blocks, Float8Tensor is 8-bit floats in blocks; scales of activations are accounted for.

Refused by name: other subclasses (packed tiles, int4, MX, NVFP4), whose layouts depend on kernels or are not
documented well enough; `act_pre_scale`, which would have to be multiplied in; the names with colons of
torchao's first versions.

Source: torchao `prototype/safetensors/safetensors_support.py`, `quantization/quantize_/workflows/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any

from tensorport_hub.core.decode.decoder import Decoder
from tensorport_hub.core.decode.float8 import Float8
from tensorport_hub.core.decode.int8 import Int8, Int8Zero
from tensorport_hub.core.detect.checkpoint import Checkpoint, Claim
from tensorport_hub.core.tensor import TensorSpec, shorten
from tensorport_hub.errors import CheckpointError

_DATA = ("qdata", "scale", "zero_point")
_ACTIVATIONS = ("act_quant_scale", "act_quant_zero_point", "act_scale", "act_zero_point")
_INTEGERS = ("Int8Tensor", "IntxUnpackedToInt8Tensor")
_FLOATS = ("Float8Tensor",)
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}

SUFFIXES = tuple((f"._weight_{name}", ".weight") for name in (*_DATA, *_ACTIVATIONS))
FACTS: tuple[str, ...] = ()


def claim(tensor: TensorSpec, checkpoint: Checkpoint) -> Claim | None:
    """The module whose primary `tensor` is."""
    if tensor.name.endswith(":qdata"):
        raise CheckpointError(f"{tensor}: names with colons, of torchao's first versions, are not supported")
    module, dot, last = tensor.name.rpartition(".")
    if not (last.startswith("_") and last.endswith("_qdata")):
        return None
    attribute = last.removeprefix("_").removesuffix("_qdata")
    name, stem = f"{module}{dot}{attribute}", f"{module}{dot}_{attribute}_"
    kind, attributes, data = _described(tensor, name, checkpoint)
    extra = [end for end in ("act_pre_scale", "scale_and_zero") if f"{stem}{end}" in checkpoint.tensors]
    for end in (*data, *extra):
        if end not in (*_DATA, *_ACTIVATIONS):
            raise CheckpointError(f"{tensor}: torchao {shorten(kind)} with `{shorten(end)}` is not supported")
    scale = checkpoint.need(f"{stem}scale", of=tensor, scheme=f"torchao {kind}")
    zero = checkpoint.find(f"{stem}zero_point")
    if zero is None and "zero_point" in data:
        checkpoint.need(f"{stem}zero_point", of=tensor, scheme=f"torchao {kind}")
    blocks = _blocks(tensor, attributes.get("block_size"))
    returns = _dtype(tensor, scale, attributes.get("dtype"))
    decoder: Decoder
    if kind in _FLOATS:
        if zero is not None:
            raise CheckpointError(f"{tensor}: a torchao {kind} has no zero points, got {zero}")
        decoder = Float8(tensor, scale, *blocks, codes=tensor.dtype.name, returns=returns)
    elif zero is not None:
        decoder = Int8Zero(tensor, scale, zero, *blocks, returns=returns)
    else:
        decoder = Int8(tensor, scale, *blocks, returns=returns)
    return Claim(name, decoder, checkpoint.present(*(f"{stem}{end}" for end in _ACTIVATIONS)))


def _described(
    tensor: TensorSpec, name: str, checkpoint: Checkpoint
) -> tuple[str, Mapping[str, Any], tuple[str, ...]]:
    """Subclass, attributes and names of the data, as the metadata states them.

    Raises:
        CheckpointError: it doesn't, or the subclass is not supported.
    """
    try:
        entry = json.loads(_entry(tensor, name, checkpoint))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{tensor}: `__metadata__` of `{shorten(name)}` is no JSON") from None
    kind = entry.get("_type") if isinstance(entry, dict) else None
    if kind not in (*_INTEGERS, *_FLOATS):
        raise CheckpointError(f"{tensor}: torchao {shorten(kind)} is not supported")
    attributes, data = entry.get("_data"), entry.get("_tensor_data_names", ())
    return (
        str(kind),
        attributes if isinstance(attributes, Mapping) else {},
        tuple(str(end) for end in data) if isinstance(data, list) else (),
    )


def _entry(tensor: TensorSpec, name: str, checkpoint: Checkpoint) -> str:
    """The metadata's text of `name`: the longest key that is the name, or its end after a dot."""
    at = 0
    while True:
        found = checkpoint.metadata.get(name[at:])
        if found is not None and name[at:] not in ("format", "tensor_names"):
            return found
        at = name.find(".", at) + 1
        if not at:
            raise CheckpointError(
                f"{tensor} looks like torchao, but `__metadata__` does not describe `{shorten(name)}`"
            )


def _blocks(tensor: TensorSpec, size: object) -> tuple[int, int, int]:
    """Block sizes for each axis as a stack of matrices with blocks of rows and columns.

    Raises:
        CheckpointError: they are not of that kind.
    """
    shape = tensor.shape
    wrong = f"{tensor}: expected a `block_size` for each axis, got {shorten(size)}"
    if not isinstance(size, list) or len(size) != len(shape) or len(shape) < 2:
        raise CheckpointError(wrong)
    if any(type(each) is not int or each < -1 or each == 0 for each in size):
        raise CheckpointError(wrong)
    each = [length if one == -1 else one for one, length in zip(size, shape, strict=True)]
    *lead, rows, columns = each
    if all(one == 1 for one in lead):
        return prod(shape[:-2]), rows, columns
    if each[:-1] == list(shape[:-1]):
        return 1, prod(shape[:-1]), columns
    raise CheckpointError(f"{tensor}: blocks of {each} are not supported: expected [1, ..., rows, columns]")


def _dtype(tensor: TensorSpec, scale: TensorSpec, stated: object) -> str:
    """The dtype that the subclass pretends to have: the stated one, else that of its scale.

    Raises:
        CheckpointError: it is no float that is supported.
    """
    if stated is None:
        name = scale.dtype.name
    else:
        word = stated.get("_data") if isinstance(stated, Mapping) else stated
        name = _DTYPES.get(str(word).removeprefix("torch."), "")
    if name not in _DTYPES.values():
        raise CheckpointError(f"{tensor}: expected a dtype of {', '.join(_DTYPES)}, got {shorten(stated)}")
    return name
