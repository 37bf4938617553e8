"""compressed-tensors' sparse formats: `X.compressed` (or `X.weight.compressed`) and its bit mask.

`sparse-24-bitmask` names them `X.compressed`, `X.bitmask`, `X.shape`; `sparse-bitmask` `X.weight.compressed`
and so on, with `row_offsets`. Both make `X.weight`; 8-bit values take `X.weight_scale`.
"""

from __future__ import annotations

import numpy as np

from tensorport_hub.core.decode.sparse import Sparse24, SparseBitmask
from tensorport_hub.core.detect.checkpoint import Checkpoint, Claim
from tensorport_hub.core.tensor import TensorSpec, shorten
from tensorport_hub.errors import CheckpointError

_PARTS = ("compressed", "bitmask", "row_offsets", "shape")
SUFFIXES = (
    *((f".weight.{part}", ".weight") for part in _PARTS),
    *((f".{part}", ".weight") for part in _PARTS),
)
FACTS = (".shape",)

_SCHEME = "compressed-tensors sparse"


def claim(tensor: TensorSpec, checkpoint: Checkpoint) -> Claim | None:
    """The module whose values `tensor` is."""
    stem, _, last = tensor.name.rpartition(".")
    if last != "compressed" or not stem:
        return None
    mask = checkpoint.need(f"{stem}.bitmask", of=tensor, scheme=_SCHEME)
    name = stem if stem.endswith(".weight") else f"{stem}.weight"
    columns = _columns(tensor, mask, stem, checkpoint)
    scale = checkpoint.find(f"{name}_scale")
    if scale is None and tensor.dtype.nbits == 8:
        checkpoint.need(f"{name}_scale", of=tensor, scheme=_SCHEME)
    if checkpoint.present(f"{name}_zero_point"):
        raise CheckpointError(
            f"{tensor}: sparse values with zero points (`{name}_zero_point`) have no decoder"
        )
    offsets = checkpoint.find(f"{stem}.row_offsets")
    tensors = [t for t in (tensor, mask, scale) if t is not None]
    scaled = "no" if scale is None else "yes"
    spent = checkpoint.present(f"{stem}.shape", f"{stem}.row_offsets")
    size = _group_size(tensor, scale, columns)
    if len(tensor.shape) == 2 and columns % 4 == 0:
        return Claim(name, Sparse24(*tensors, columns=columns, group_size=size, scaled=scaled), spent)
    kind = "no" if offsets is None else "stored"
    tensors += [] if offsets is None else [offsets]
    return Claim(
        name, SparseBitmask(*tensors, columns=columns, group_size=size, scaled=scaled, offsets=kind), spent
    )


def _columns(values: TensorSpec, mask: TensorSpec, stem: str, checkpoint: Checkpoint) -> int:
    """The matrix's columns, as its shape tensor says.

    Raises:
        CheckpointError: it contradicts the bit mask.
    """
    shape = checkpoint.need(f"{stem}.shape", of=values, scheme=_SCHEME)
    data = checkpoint.fact(shape.name, of=values, scheme=_SCHEME)
    if shape.dtype.name not in ("I64", "I32"):
        raise CheckpointError(f"{shape}: expected the shape of `{stem}` as I64 or I32")
    stated = np.frombuffer(data, "<i8" if shape.dtype.name == "I64" else "<i4").tolist()
    if len(stated) != 2 or stated[1] < 1 or mask.shape[:1] != (stated[0],):
        raise CheckpointError(f"{shape}: expected rows and columns to match {mask}, got {shorten(stated)}")
    return int(stated[1])


def _group_size(values: TensorSpec, scale: TensorSpec | None, columns: int) -> int:
    if scale is None or len(scale.shape) < 2:
        return columns
    groups = scale.shape[-1]
    if not groups or columns % groups:
        raise CheckpointError(
            f"scales {scale} of `{values.name}`: expected groups that divide {columns} columns"
        )
    return columns // groups
