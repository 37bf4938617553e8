"""How a memory cap becomes threads and buffers.

What a run holds: the interpreter and its libraries; per walked file, blocks being fetched or decoded and
kept companions; per part in flight, one tile of scratch, its companions, and what the sink's writer buffers
(an Xet stream: about 150 MB). The figures are measured peaks, rounded up.
"""

from __future__ import annotations

from dataclasses import dataclass

from tensorport_hub.errors import LimitError

MiB = 1024 * 1024
BASE = 110 * MiB
"""Interpreter, numpy, ml_dtypes, huggingface_hub, hf_xet and a plan of a few thousand tensors."""

_TILE_SCRATCH = 8 * MiB
_LARGEST_BLOCK = 8 * MiB
_SMALLEST_BLOCK = 256 * 1024
_DEPTH = 2


@dataclass(frozen=True)
class Allotment:
    """What a run may use at once.

    Attributes:
        lanes: source files walked at the same time.
        workers: parts decoded and written at the same time.
        block: bytes fetched at a time.
        depth: fetches in flight in each lane.
        keep: bytes of companions that each lane may keep.
        buffers: blocks that each lane owns.
    """

    lanes: int
    workers: int
    block: int
    depth: int
    keep: int
    buffers: int


def allot(max_memory: int, *, workers: int, files: int, writer_nbytes: int, held: int) -> Allotment:
    """The most parallel way to stay below `max_memory`.

    Args:
        max_memory: cap on the process's peak memory, in bytes.
        workers: parts in flight that the user wants at most.
        files: source files to walk.
        writer_nbytes: what one open writer of the sink buffers.
        held: the most stored bytes that one part needs at once.

    Raises:
        LimitError: not even one part at a time fits.
    """
    for parallel in range(max(workers, 1), 0, -1):
        lanes = max(1, min(parallel, files))
        fixed = BASE + parallel * (writer_nbytes + _TILE_SCRATCH + held)
        room = (max_memory - fixed) // lanes
        block = min(_LARGEST_BLOCK, room // (2 * _DEPTH + 4) // _SMALLEST_BLOCK * _SMALLEST_BLOCK)
        if block >= _SMALLEST_BLOCK and (block >= 4 * _SMALLEST_BLOCK or parallel == 1):
            buffers = _DEPTH + 2
            keep = max(0, min(256 * MiB, room - buffers * block))
            return Allotment(lanes, parallel, block, _DEPTH, keep, buffers)
    least = BASE + writer_nbytes + _TILE_SCRATCH + held + (2 * _DEPTH + 4) * _SMALLEST_BLOCK
    raise LimitError(
        f"the memory cap is too small: expected at least {-(-least // 1_000_000)}MB, got {max_memory} bytes",
        hint="raise `--max-memory`",
    )
