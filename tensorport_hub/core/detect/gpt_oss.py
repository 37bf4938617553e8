"""gpt-oss MXFP4: U8 `X_blocks` and `X_scales` (in its `original/` files `X.blocks`, `X.scales`) make `X`."""

from __future__ import annotations

from tensorport_hub.core.decode.mxfp4 import Mxfp4
from tensorport_hub.core.detect.checkpoint import Checkpoint, Claim
from tensorport_hub.core.tensor import TensorSpec
from tensorport_hub.errors import CheckpointError

SUFFIXES = ("_blocks", "_scales", ".blocks")
FACTS: tuple[str, ...] = ()


def claim(tensor: TensorSpec, checkpoint: Checkpoint) -> Claim | None:
    """The module whose primary `tensor` is."""
    if tensor.dtype.name != "U8":
        return None
    name = tensor.name
    for separator in "_.":
        if name.endswith(f"{separator}blocks"):
            stem = name.removesuffix("blocks")
            scales = checkpoint.need(f"{stem}scales", of=tensor, scheme="gpt-oss MXFP4")
            if len(scales.shape) == len(tensor.shape):
                raise CheckpointError(
                    f"MXFP4 scales {scales}: expected U8 {list(tensor.shape[:-1])} to match `{tensor.name}`"
                )
            return Claim(stem[:-1], Mxfp4(tensor, scales))
    if name.endswith("_scales"):
        checkpoint.need(f"{name.removesuffix('scales')}blocks", of=tensor, scheme="gpt-oss MXFP4")
    return None
