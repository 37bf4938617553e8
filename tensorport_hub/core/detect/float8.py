"""8-bit float weights with scales, by any of the names that producers give the scale.

`X.weight` with `X.weight_scale_inv` (DeepSeek, Qwen, MiniMax, Ministral, Step), `X.weight_scale` (AutoFP8,
fbgemm, compressed-tensors, ModelOpt, Quark, MXFP8), `X.scale` (DeepSeek-V4) or `X.qscale_weight` (Mistral's
own files) makes `X.weight`; experts without `.weight` in their names (Llama-4 `gate_up_proj`, Inkling
`w13_weight`) keep theirs. The dtype is BF16, but with compressed-tensors that of the scales.

Llama-4's experts are stored [experts, in, out], and the axis that their scales belong to is told by size.
"""

from __future__ import annotations

from tensorport_hub.core.decode.float8 import CODES, Float8
from tensorport_hub.core.decode.scales import FLOATS
from tensorport_hub.core.detect.blocks import Blocks, is_compressed_tensors, read_blocks
from tensorport_hub.core.detect.checkpoint import Checkpoint, Claim
from tensorport_hub.core.tensor import TensorSpec, shorten
from tensorport_hub.errors import CheckpointError

SUFFIXES = (
    (".weight_scale_inv", ".weight"),
    (".weight_scale", ".weight"),
    (".qscale_weight", ".weight"),
    (".scale", ".weight"),
    ("proj_weight_scale", "proj"),
    ("_weight_scale", "_weight"),
    ("_weight_scale_inv", "_weight"),
    ("proj_scale_inv", "proj"),
    ("proj_scale", "proj"),
)
FACTS: tuple[str, ...] = ()

_WEIGHT = "weight"


def claim(tensor: TensorSpec, checkpoint: Checkpoint) -> Claim | None:
    """The module whose primary `tensor` is."""
    if tensor.dtype.name not in CODES:
        return None
    names = checkpoint.present(*_scale_names(tensor.name))
    if not names:
        return None
    if len(names) > 1:
        listed = " and ".join(f"`{shorten(name)}`" for name in names)
        raise CheckpointError(f"{tensor} is ambiguous: its scale may be {listed}")
    scale = checkpoint.tensors[names[0]]
    blocks = _expert_blocks(tensor, scale) or read_blocks(
        tensor, scale, checkpoint, module=tensor.name.removesuffix(_WEIGHT).rstrip("._")
    )
    as_scale = is_compressed_tensors(checkpoint) and scale.dtype.name in FLOATS
    returns = scale.dtype.name if as_scale else "BF16"
    return Claim(tensor.name, Float8(tensor, scale, *blocks, tensor.dtype.name, returns))


def _scale_names(name: str) -> list[str]:
    """What the scale of a weight may be called."""
    names = [f"{name}_scale_inv", f"{name}_scale"]
    stem, _, last = name.rpartition(".")
    if last == _WEIGHT:
        prefix = f"{stem}." if stem else ""
        return [*names, f"{prefix}scale", f"{prefix}qscale_weight"]
    if not name.endswith(_WEIGHT):
        names += [f"{name}_weight_scale", f"{name}_weight_scale_inv"]
    return names


def _expert_blocks(tensor: TensorSpec, scale: TensorSpec) -> Blocks | None:
    """Llama-4: one scale for each index of an axis that only its length tells.

    `gate_up_proj_scale` [E, 1, n] lies along the last axis of [E, in, n]; `down_proj_scale` [E, n, 1] too,
    in spite of its own shape.
    """
    weight = tensor.shape
    if (
        tensor.name.endswith(_WEIGHT)
        or scale.name.endswith("_inv")
        or (len(weight), len(scale.shape)) != (3, 3)
    ):
        return None
    experts, one, count = scale.shape
    turned = count == 1
    if turned:
        one, count = count, one
    if experts != weight[0] or one != 1 or count == 1 or count != weight[2]:
        return None
    if turned and count == weight[1]:
        raise CheckpointError(f"scale {scale} of {tensor} is ambiguous: two axes have that length")
    return 1, weight[1], 1
