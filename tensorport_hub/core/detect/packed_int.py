"""compressed-tensors `pack-quantized`: `X_packed` I32 and `X_scale` make `X` (mostly `Y.weight`).

`X_shape` says how many columns there are; without it they are groups times the group size. The number of
bits is what fits the packed width; where several do, the configuration decides. 3, 5, 6 and 7 bits are
dense or padded by width too; in tensors so small that both have the same width, by the version that wrote it.
Marlin's tiles (`marlin-24`: `scale_packed`, `meta`) are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tensorport_hub.core.decode.packed_int import PackedInt
from tensorport_hub.core.decode.words import PACKINGS, WORD, words
from tensorport_hub.core.detect.checkpoint import Checkpoint, Claim
from tensorport_hub.core.detect.config_groups import Group, resolve
from tensorport_hub.core.tensor import TensorSpec, shorten
from tensorport_hub.errors import CheckpointError

SUFFIXES = tuple((f".weight_{end}", ".weight") for end in ("packed", "scale", "shape", "zero_point", "g_idx"))
FACTS = ("_shape",)

_SCHEME = "compressed-tensors pack-quantized"
_DENSE_SINCE = (0, 18)


@dataclass(frozen=True)
class _Reading:
    """What the packed words mean."""

    columns: int
    bits: int
    packing: str
    group_size: int


@dataclass(frozen=True)
class _Module:
    """The stored tensors of one weight."""

    packed: TensorSpec
    scale: TensorSpec
    zero: TensorSpec | None
    order: TensorSpec | None
    columns: int | None
    version: tuple[int, int] | None

    @property
    def groups(self) -> int:
        return self.scale.shape[-1] if len(self.scale.shape) >= 2 else 1

    def read(self, bits: int, group_size: int) -> _Reading | None:
        """The one meaning under so many bits; `group_size` 0 means that nothing is known of it."""
        columns = self.columns if self.columns is not None else self.groups * group_size
        if columns < 1:
            return None
        if group_size and -(-columns // group_size) != self.groups:
            return None
        if not group_size and columns % self.groups == 0:
            group_size = columns // self.groups
        packing = self._packing(columns, bits)
        return _Reading(columns, bits, packing, group_size) if packing and group_size else None

    def _packing(self, columns: int, bits: int) -> str:
        """The packing of this width, or "".

        Raises:
            CheckpointError: both have it, and nothing tells them apart.
        """
        found = [p for p in PACKINGS if words(columns, bits, p) == self.packed.shape[-1]]
        sizes = [columns]
        if self.zero is not None and self.zero.dtype.name == "I32" and len(self.zero.shape) >= 2:
            rows = self.packed.shape[-2]
            sizes.append(rows)
            found = [p for p in found if words(rows, bits, p) == self.zero.shape[-2]] or found
        if len(found) < 2:
            return found[0] if found else ""
        if WORD % bits == 0 or all(size <= WORD // bits for size in sizes):
            return found[0]
        if self.version is None:
            raise CheckpointError(
                f"{self.packed}: {columns} columns of {bits} bits fill as many words dense and padded, and"
                " the configuration has no `version` that would tell which"
            )
        return "dense" if self.version >= _DENSE_SINCE else "padded"


def claim(tensor: TensorSpec, checkpoint: Checkpoint) -> Claim | None:
    """The module whose packed codes `tensor` are."""
    if tensor.dtype.name != "I32" or not tensor.name.endswith("_packed"):
        return None
    stem = tensor.name.removesuffix("_packed")
    _refuse_marlin(tensor, stem, checkpoint)
    if len(tensor.shape) < 2:
        raise CheckpointError(f"{tensor} looks like {_SCHEME}, but it has no rows of words")
    scale = checkpoint.need(f"{stem}_scale", of=tensor, scheme=_SCHEME)
    if scale.shape[-1:] == (0,):
        raise CheckpointError(f"{tensor}: expected scales, got zero groups in {scale}")
    shape = checkpoint.find(f"{stem}_shape")
    module = _Module(
        tensor,
        scale,
        checkpoint.find(f"{stem}_zero_point"),
        checkpoint.find(f"{stem}_g_idx"),
        None if shape is None else _columns(tensor, shape, checkpoint),
        _version(checkpoint),
    )
    reading = _resolve(module, stem, checkpoint)
    zeros = "none" if module.zero is None else "plain" if module.zero.dtype.name == "I8" else "packed"
    decoder = PackedInt(
        *(t for t in (tensor, scale, module.zero, module.order) if t is not None),
        columns=reading.columns,
        bits=reading.bits,
        packing=reading.packing,
        group_size=reading.group_size,
        zeros=zeros,
        order="plain" if module.order is None else "g_idx",
    )
    return Claim(stem, decoder, () if shape is None else (shape.name,))


def _refuse_marlin(tensor: TensorSpec, stem: str, checkpoint: Checkpoint) -> None:
    folder = stem.rpartition(".")[0]
    if checkpoint.present(f"{folder}.scale_packed", f"{folder}.meta"):
        raise CheckpointError(f"{tensor} is packed in marlin-24 tiles, which no public decoder reads")


def _columns(packed: TensorSpec, shape: TensorSpec, checkpoint: Checkpoint) -> int:
    """The weight's true number of columns: what its shape tensor ends with.

    Raises:
        CheckpointError: it contradicts the packed tensor.
    """
    data = checkpoint.fact(shape.name, of=packed, scheme=_SCHEME)
    if shape.dtype.name not in ("I64", "I32"):
        raise CheckpointError(f"{shape}: expected the shape of `{packed.name}` as I64 or I32")
    stated = np.frombuffer(data, "<i8" if shape.dtype.name == "I64" else "<i4")
    lead = packed.shape[:-1]
    per_expert = len(lead) == 2 and shape.shape == (lead[0], 2)
    rows = stated.reshape(-1, 2) if per_expert else stated.reshape(1, -1)
    dims = {tuple(int(n) for n in row) for row in rows}
    one = dims.pop() if len(dims) == 1 else ()
    if not one or one[-1] < 1 or one[:-1] not in (lead, lead[-1:]):
        raise CheckpointError(
            f"{shape}: expected {[*lead, 'columns']} to match `{packed.name}`, got {shorten(stated.tolist())}"
        )
    return one[-1]


def _version(checkpoint: Checkpoint) -> tuple[int, int] | None:
    found = re.match(r"(\d+)\.(\d+)", str(checkpoint.quantization.get("version", "")))
    return (int(found[1]), int(found[2])) if found else None


def _resolve(module: _Module, stem: str, checkpoint: Checkpoint) -> _Reading:
    """What the configuration says, or else the only reading that the shapes allow."""
    missing: list[str] = []

    def read(group: Group) -> _Reading | None:
        if group.kind == "float" or (group.strategy in ("tensor", "channel") and module.groups != 1):
            return None
        size = group.group_size if group.strategy in ("", "group") else 0
        found = _one(module, [group.bits] if group.bits else range(2, 9), size)
        if found is not None and module.zero is None and group.symmetric is False:
            missing.append(f"{stem}_zero_point")
            return None
        if found is not None and module.order is None and group.actorder == "group":
            missing.append(f"{stem}_g_idx")
            return None
        return found

    try:
        reading = resolve(stem.removesuffix(".weight"), checkpoint, read, of=module.packed)
    except CheckpointError:
        for name in missing:
            checkpoint.need(name, of=module.packed, scheme=_SCHEME)
        if module.columns is None:
            checkpoint.need(f"{stem}_shape", of=module.packed, scheme=_SCHEME)
        raise
    if reading is None:
        if module.columns is None:
            checkpoint.need(f"{stem}_shape", of=module.packed, scheme=_SCHEME)
        reading = _one(module, range(2, 9), 0)
    if reading is None:
        raise CheckpointError(
            f"{module.packed}: no number of bits from 2 to 8 fits {module.columns} columns with"
            f" scales {module.scale}"
        )
    return reading


def _one(module: _Module, every: Iterable[int], group_size: int) -> _Reading | None:
    """The only reading under any of these numbers of bits.

    Raises:
        CheckpointError: there are several.
    """
    found = [reading for bits in every if 2 <= bits <= 8 and (reading := module.read(bits, group_size))]
    if len(found) > 1:
        kinds = ", ".join(f"{reading.bits} bits {reading.packing}" for reading in found)
        raise CheckpointError(f"{module.packed} fits {kinds}, and the configuration does not say which")
    return found[0] if found else None
