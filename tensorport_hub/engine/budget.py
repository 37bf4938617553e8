"""How a memory cap becomes threads and buffers.

What a run holds: the interpreter and its libraries; the plan; per walked file, blocks being fetched or
decoded and kept companions; per part in flight, a little scratch, a block that it reads itself, its
companions, and what the sink's writer buffers (an Xet stream: about 160 MB); what source and sink buffer
besides; and for all parts of held layouts, a room in which their tiles take turns. The figures are measured
peaks, rounded up.

The room comes first: what a tile lacks is paid for by reading stored bytes again, what parallel work lacks by
time alone. More than the largest tile is shared out after that.
"""

from __future__ import annotations

from dataclasses import dataclass

from tensorport_hub.core.demand import Demand
from tensorport_hub.core.tensor import shorten
from tensorport_hub.errors import LimitError

MiB = 1024 * 1024
BASE = 110 * MiB
"""Interpreter, numpy, ml_dtypes, huggingface_hub and hf_xet."""

ENDING = 32
"""Small files that are finished at a time at most, besides the workers' own."""

_SCRATCH = 8 * MiB
_LARGEST_BLOCK = 8 * MiB
_SMALLEST_BLOCK = 256 * 1024
_LARGEST_KEEP = 256 * MiB
_DEPTH = 2
"""Fetches in flight in each lane."""
_BESIDE = 2
"""Buffers that a lane has besides those that are being filled."""


@dataclass(frozen=True)
class Allotment:
    """What a run may use at once.

    Attributes:
        lanes: source files walked at the same time.
        workers: parts decoded and written at the same time.
        block: bytes fetched at a time.
        depth: fetches in flight in each lane.
        keep: bytes of companions that each lane may keep.
        buffers: blocks that each lane owns; it is reckoned with twice as many, for what it keeps and parts
            read.
        room: bytes that held parts may hold, all together.
        uploads: that the sink has under way at a time, where it holds what they send.
        ending: small files that are finished at a time, besides the workers' own.
    """

    lanes: int
    workers: int
    block: int
    depth: int
    keep: int
    buffers: int
    room: int
    uploads: int = 1
    ending: int = ENDING


def allot(
    max_memory: int,
    *,
    workers: int,
    files: int,
    writer_nbytes: int,
    demand: Demand,
    ordered: bool = False,
    beside_nbytes: int = 0,
    texts_nbytes: int = 0,
) -> Allotment:
    """The most parallel way to stay below `max_memory`.

    Args:
        max_memory: cap on the process's peak memory, in bytes.
        workers: parts in flight that the user wants at most.
        files: source files to walk.
        writer_nbytes: what one open writer of the sink buffers.
        demand: what the plan and its parts hold.
        ordered: parts are written one after another, so that only fetching is parallel.
        beside_nbytes: what source and sink buffer, however many parts are in flight.
        texts_nbytes: what publishing the small files takes, when the parts are done.

    Raises:
        LimitError: not even one part at a time fits, a held one in the smallest tiles; or the texts don't.
    """
    base = BASE + beside_nbytes + demand.noted
    each = writer_nbytes + _SCRATCH + demand.beside
    buffers = _DEPTH + _BESIDE
    least = base + each + demand.least + 2 * buffers * _SMALLEST_BLOCK
    if base + texts_nbytes > max(max_memory, least):
        raise _too_small(" for the small files that are carried over", base + texts_nbytes, max_memory)
    for wanted in range(max(workers, 1), 0, -1):
        parallel, depth = (1, _DEPTH * wanted) if ordered else (wanted, _DEPTH)
        lanes = max(1, min(parallel, files))
        buffers = depth + _BESIDE
        free = max_memory - base - parallel * each - demand.most
        block = _block(free // max(lanes * 2 * buffers, lanes * buffers + parallel))
        if block >= _SMALLEST_BLOCK and (block >= 4 * _SMALLEST_BLOCK or wanted == 1):
            free -= (lanes * buffers + parallel) * block
            more = min(free // 2, (parallel - 1) * demand.most)
            keep = min(_LARGEST_KEEP, (free - more) // lanes)
            return Allotment(lanes, parallel, block, depth, keep, buffers, demand.most + more)
    free, buffers = max_memory - base - each, _DEPTH + _BESIDE
    block = max(_block(free // (8 * buffers)), _SMALLEST_BLOCK)
    if free - 2 * buffers * block < demand.least:
        block = _SMALLEST_BLOCK
    room = free - 2 * buffers * block
    if demand.least and room >= demand.least:
        return Allotment(1, 1, block, _DEPTH, (buffers - 1) * block, buffers, room)
    least = max(least, base + texts_nbytes)
    whose = f" for `{shorten(demand.tensor)}`" if max_memory >= least - demand.least else ""
    raise _too_small(whose, least, max_memory)


def _too_small(whose: str, least: int, max_memory: int) -> LimitError:
    return LimitError(
        f"the memory cap is too small{whose}: expected at least {-(-least // 1_000_000)}MB,"
        f" got {max_memory} bytes",
        hint="raise `--max-memory`",
    )


def _block(nbytes: int) -> int:
    return min(_LARGEST_BLOCK, nbytes // _SMALLEST_BLOCK * _SMALLEST_BLOCK)
