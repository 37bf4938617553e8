"""gpt-oss MXFP4: `X_blocks` and `X_scales`, both U8, make `X`."""

from __future__ import annotations

from tensorport_hub.core.decode.mxfp4 import Mxfp4
from tensorport_hub.core.detect.checkpoint import Checkpoint, Claim
from tensorport_hub.core.tensor import TensorSpec

SUFFIXES = ("_blocks", "_scales")
FACTS: tuple[str, ...] = ()


def claim(tensor: TensorSpec, checkpoint: Checkpoint) -> Claim | None:
    """The module whose primary `tensor` is."""
    if tensor.dtype.name != "U8":
        return None
    stem, _, suffix = tensor.name.rpartition("_")
    if suffix == "blocks":
        scales = checkpoint.need(f"{stem}_scales", of=tensor, scheme="gpt-oss MXFP4")
        return Claim(stem, Mxfp4(tensor, scales))
    if suffix == "scales":
        checkpoint.need(f"{stem}_blocks", of=tensor, scheme="gpt-oss MXFP4")
    return None
