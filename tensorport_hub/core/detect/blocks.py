"""Which block of a weight each of its scales is for, told from the scale's shape and the configuration.

A shape alone says: one scale for all; one for each leading index (an output row, an expert, an expert's
row); with powers of two as scales, one for 32 columns (OCP MX). Block and group sizes are those of the
configuration; where it states none, blocks are 128 x 128, as DeepSeek's. They are never taken from the ratio
of the two shapes: a 576-row weight with 5 block rows has blocks of 128, not of 116.

Where the configuration is of compressed-tensors, its groups say for each module which of these it may be.
Several readings that give different blocks are an error, as is none.

Sources: transformers `quantizers/quantizer_finegrained_fp8.py`; compressed-tensors
`quantization/quant_config.py`; ModelOpt `torch/export/quant_utils.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod

from tensorport_hub.core.detect.checkpoint import Checkpoint
from tensorport_hub.core.detect.config_groups import Group, resolve
from tensorport_hub.core.tensor import TensorSpec
from tensorport_hub.errors import CheckpointError

Blocks = tuple[int, int, int]
"""Matrices in the stack, and rows and columns of a block, as a decoder's `Grid` takes them."""
Shape = tuple[int, ...]

_DEFAULT_BLOCK = (128, 128)
_MX_GROUP = 32
_POWERS = ("U8", "F8_E8M0")
_ONE_A_BYTE = ("int-quantized", "naive-quantized")
"""Formats of compressed-tensors that give an integer of fewer bits a whole byte (W4A8)."""
_OF_ACTIVATIONS = re.compile(r"input|output|activation|kv_cache")


def read_blocks(weight: TensorSpec, scale: TensorSpec, checkpoint: Checkpoint, *, module: str) -> Blocks:
    """The only blocks of `weight` that `scale` can be for.

    Args:
        module: the weight's name without what stands for the weight: what a configuration calls it.

    Raises:
        CheckpointError: the shape of `scale` means nothing here, or two things.
    """
    if is_compressed_tensors(checkpoint):
        kind = "float" if weight.dtype.kind == "float" else "int"

        def read(group: Group) -> Blocks | None:
            fewer = kind == "int" and group.bits < 8 and group.format in _ONE_A_BYTE
            if (group.bits not in (0, 8) and not fewer) or group.kind not in ("", kind):
                return None
            return _only(set(_by_strategy(group, weight.shape, scale.shape)), weight, scale)

        try:
            found = resolve(module, checkpoint, read, of=scale)
        except CheckpointError as error:
            raise CheckpointError(f"{weight} and its scale {error.message}") from None
        if found is not None:
            return found
    sizes = list(_sizes(checkpoint.quantization))
    blocks = _only(set(_by_shape(weight, scale, sizes)), weight, scale)
    if blocks is None:
        known = " or ".join(sorted({f"{rows} × {cols}" for rows, cols in sizes or [_DEFAULT_BLOCK]}))
        raise CheckpointError(
            f"scale {scale} does not fit {weight}: expected one for all, one a row, or one a block of {known}"
        )
    return blocks


def _only(found: set[Blocks], weight: TensorSpec, scale: TensorSpec) -> Blocks | None:
    if len(found) > 1:
        readings = " or ".join(f"{rows} × {cols}" for _, rows, cols in sorted(found))
        raise CheckpointError(f"scale {scale} of {weight} is ambiguous: one for every {readings}")
    return found.pop() if found else None


def _by_shape(weight: TensorSpec, scale: TensorSpec, sizes: Sequence[tuple[int, int]]) -> Iterator[Blocks]:
    """All that the shape can mean, with the block sizes that are configured."""
    if scale.dtype.name in _POWERS:
        yield from _groups(weight.shape, scale.shape, _MX_GROUP)
    else:
        one_block = len(scale.shape) > 1 and prod(scale.shape) == 1 and any(rows > 1 for rows, _ in sizes)
        if not one_block:
            yield from _tensor(weight.shape, scale.shape)
            yield from _leading(weight.shape, scale.shape)
    for rows, cols in sizes or [_DEFAULT_BLOCK]:
        yield from _tiles(weight.shape, scale.shape, rows, cols)


def _by_strategy(group: Group, weight: Shape, scale: Shape) -> Iterator[Blocks]:
    """What a configured strategy makes of the shape; a group that states none is told by its size."""
    strategy = group.strategy or ("group" if group.group_size else "")
    if strategy in ("tensor", ""):
        yield from _tensor(weight, scale)
        yield from _leading(weight, scale, upto=len(weight) - 2)
    if strategy in ("channel", "token", ""):
        yield from _leading(weight, scale, least=max(len(weight) - 1, 1))
        yield from _leading(weight, scale, upto=1)
    if strategy in ("group", "tensor_group"):
        yield from _groups(weight, scale, group.group_size)
    if strategy == "block" and len(group.block) == 2:
        yield from _tiles(weight, scale, *group.block)


def _tensor(weight: Shape, scale: Shape) -> Iterator[Blocks]:
    if prod(scale) == 1:
        yield _settled(weight, 1, max(prod(weight[:-1]), 1), _width(weight))


def _leading(weight: Shape, scale: Shape, *, least: int = 1, upto: int | None = None) -> Iterator[Blocks]:
    """One scale for each index of the first axes: the rest of the scale's axes have length 1."""
    top = len(weight) - 1 if upto is None else upto
    for axes in range(least, top + 1):
        padded = scale[axes:] == (1,) * len(scale[axes:])
        if scale[:axes] == weight[:axes] and len(scale) <= len(weight) and padded:
            yield _settled(weight, 1, max(prod(weight[axes:-1]), 1), _width(weight))


def _groups(weight: Shape, scale: Shape, size: int) -> Iterator[Blocks]:
    """One scale for `size` columns of each row."""
    if size and weight and weight[-1] % size == 0 and scale == (*weight[:-1], weight[-1] // size):
        yield _settled(weight, 1, 1, size)


def _tiles(weight: Shape, scale: Shape, rows: int, cols: int) -> Iterator[Blocks]:
    """One scale for each block, cropped at the edges; ModelOpt writes [block rows, 1, block columns, 1]."""
    if len(weight) < 2 or not rows or not cols:
        return
    lead, down, across = weight[:-2], -(-weight[-2] // rows), -(-weight[-1] // cols)
    if scale in ((*lead, down, across), (*lead, down, 1, across, 1)):
        yield _settled(weight, prod(lead), rows, cols)


def _settled(weight: Shape, stack: int, rows: int, cols: int) -> Blocks:
    """The same for all spellings of the same blocks."""
    total, width = prod(weight[:-1]), _width(weight)
    if stack and total and rows >= total // stack:
        stack, rows = (1, total) if stack == 1 else (1, total // stack)
    elif total % rows == 0 and stack and (total // stack) % rows == 0:
        stack = 1
    return stack, rows, min(cols, max(width, 1))


def _width(weight: Shape) -> int:
    return max(weight[-1], 1) if weight else 1


def _sizes(config: object, *, key: str = "") -> Iterator[tuple[int, int]]:
    """Rows and columns of all weight blocks and groups that a configuration states, at any depth."""
    pair = _pair(config) if key in ("weight_block_size", "block_size", "block_structure") else None
    if pair:
        yield pair
    if key in ("group_size", "weight_group_size") and _positive(config):
        yield 1, _positive(config)
    if isinstance(config, Mapping):
        for inner, value in config.items():
            if not _OF_ACTIVATIONS.search(str(inner)):
                yield from _sizes(value, key=str(inner))
    elif isinstance(config, list) and not pair:
        for value in config:
            yield from _sizes(value)


def _pair(value: object) -> tuple[int, int] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    rows, cols = _positive(value[0]), _positive(value[1])
    return (rows, cols) if rows and cols else None


def _positive(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def is_compressed_tensors(checkpoint: Checkpoint) -> bool:
    """Whether the configuration is of compressed-tensors."""
    config = checkpoint.quantization
    stated = checkpoint.method in ("compressed-tensors", "compressed_tensors", "sparseml")
    return stated or (not checkpoint.method and "config_groups" in config and "format" in config)
