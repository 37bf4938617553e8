"""4- and 6-bit floats of compressed-tensors, ModelOpt, Quark, MiMo and DeepSeek-V4, by dtypes and shapes.

- `X.weight_packed` U8 + `X.weight_scale`: F8_E4M3 is NVFP4, with `X.weight_global_scale` that divides; U8 is
  MXFP4 or MXFP6, which the widths tell apart.
- `X.weight` U8 / F4 + `X.weight_scale` F8_E4M3: NVFP4, with `X.weight_scale_2` that multiplies, and a
  `X.pre_quant_scale` where ModelOpt could not fuse it.
- `X.weight` U8 / F4 / I8 + `X.weight_scale`, `X.weight_scale_inv` or `X.scale` in U8 or F8_E8M0: MXFP4. An
  I8 weight with such a scale is no int8: DeepSeek-V4 stores its experts so.
- Stacked experts without `.weight`: `X` U8 3-D + `X_weight_scale`, `X_weight_scale_2`. The scale's shape says
  whether rows or columns are packed.

Refused: ModelOpt's `svdquant_lora_a/b` (the order of that sum is not documented) and its `csf` scales.
"""

from __future__ import annotations

from tensorport_hub.core.decode.decoder import Decoder
from tensorport_hub.core.decode.mxfp4 import Mxfp4
from tensorport_hub.core.decode.mxfp6 import Mxfp6
from tensorport_hub.core.decode.nvfp4 import Nvfp4, Nvfp4Awq, Nvfp4Over, Nvfp4Times
from tensorport_hub.core.decode.nvfp4_bmm import Nvfp4Bmm
from tensorport_hub.core.detect.checkpoint import Checkpoint, Claim
from tensorport_hub.core.tensor import TensorSpec, shorten
from tensorport_hub.errors import CheckpointError

SUFFIXES = (
    ("weight_packed", "weight"),
    ("weight_scale", "weight"),
    ("weight_scale_inv", "weight"),
    ("weight_scale_2", "weight"),
    ("weight_global_scale", "weight"),
)
FACTS: tuple[str, ...] = ()

_E8M0 = ("U8", "F8_E8M0")
_SCALES = {"U8": ("F8_E4M3", *_E8M0), "F4": ("F8_E4M3", *_E8M0), "I8": _E8M0}
"""Dtype of a weight -> dtypes of scales that make it a 4-bit float."""


def claim(tensor: TensorSpec, checkpoint: Checkpoint) -> Claim | None:
    """The module whose primary `tensor` is."""
    if tensor.name.endswith("weight_packed"):
        return _packed(tensor, checkpoint) if tensor.dtype.name == "U8" else None
    if tensor.dtype.name not in _SCALES or len(tensor.shape) < 2:
        return None
    stem, scales = tensor.name.removesuffix("weight"), _scales(tensor, checkpoint)
    if stem == tensor.name:
        stem = f"{stem}_"
    if scales is None:
        if checkpoint.find(f"{stem}weight_scale_2") is not None:
            checkpoint.need(f"{stem}weight_scale", of=tensor, scheme="NVFP4")
        return None
    _refuse_variants(tensor, stem, checkpoint)
    spent = checkpoint.present(f"{stem}input_scale")
    if scales.dtype.name != "F8_E4M3" and checkpoint.find(f"{scales.name}_2") is None:
        return Claim(tensor.name, Mxfp4(tensor, scales), spent)
    return Claim(tensor.name, _nvfp4(tensor, scales, stem, checkpoint), spent)


def _packed(tensor: TensorSpec, checkpoint: Checkpoint) -> Claim:
    """compressed-tensors: `X.weight_packed`."""
    name = tensor.name.removesuffix("_packed")
    scales = checkpoint.need(f"{name}_scale", of=tensor, scheme="compressed-tensors NVFP4, MXFP4 or MXFP6")
    decoder: Decoder
    divisor = checkpoint.find(f"{name}_global_scale")
    if scales.dtype.name == "F8_E4M3" or divisor is not None:
        divisor = checkpoint.need(f"{name}_global_scale", of=tensor, scheme="compressed-tensors NVFP4")
        decoder = Nvfp4Over(tensor, scales, divisor)
    elif scales.shape and tensor.shape and tensor.shape[-1] == 24 * scales.shape[-1] != 0:
        decoder = Mxfp6(tensor, scales)
    else:
        decoder = Mxfp4(tensor, scales)
    stem = name.removesuffix("weight")
    spent = checkpoint.present(f"{stem}input_global_scale", f"{stem}input_scale")
    return Claim(name, decoder, spent)


def _scales(tensor: TensorSpec, checkpoint: Checkpoint) -> TensorSpec | None:
    """The block scales of a weight, if they are those of a 4-bit float.

    Raises:
        CheckpointError: two tensors could be.
    """
    name = tensor.name
    names = [f"{name}_scale", f"{name}_scale_inv"]
    if name.endswith(".weight"):
        names.append(f"{name.removesuffix('weight')}scale")
    elif not name.endswith("weight"):
        names.append(f"{name}_weight_scale")
    wanted = _SCALES[tensor.dtype.name]
    found = [s for s in map(checkpoint.find, names) if s is not None and s.dtype.name in wanted]
    if len(found) > 1:
        raise CheckpointError(f"{tensor}: expected one scale, got " + ", ".join(str(s) for s in found))
    return found[0] if found else None


def _nvfp4(tensor: TensorSpec, scales: TensorSpec, stem: str, checkpoint: Checkpoint) -> Decoder:
    columns = checkpoint.find(f"{stem}pre_quant_scale")
    bmm = not tensor.name.endswith(".weight") and tensor.shape[-1:] == scales.shape[-1:]
    factor = checkpoint.find(f"{scales.name}_2")
    if factor is None and not bmm and columns is None:
        return Nvfp4(tensor, scales)
    factor = checkpoint.need(f"{scales.name}_2", of=tensor, scheme="NVFP4")
    if columns is None:
        return Nvfp4Bmm(tensor, scales, factor) if bmm else Nvfp4Times(tensor, scales, factor)
    if bmm:
        raise CheckpointError(f"{columns}: no layout is documented for experts packed along columns")
    return Nvfp4Awq(tensor, scales, factor, columns)


def _refuse_variants(tensor: TensorSpec, stem: str, checkpoint: Checkpoint) -> None:
    """Refuse what changes the weight in ways that are not documented.

    Raises:
        CheckpointError: such a variant.
    """
    for name in checkpoint.present(f"{stem}svdquant_lora_a", f"{stem}svdquant_lora_b"):
        raise CheckpointError(f"{tensor} is ModelOpt NVFP4_SVD (`{shorten(name)}`), which is not supported")
    for key, value in checkpoint.settings:
        if key in ("weight_scale_encoding", "quant_algo") and "csf" in value.lower():
            raise CheckpointError(f"{tensor}: `{key}` is `{value}`, which is not supported")
