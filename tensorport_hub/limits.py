"""What a process may use; how it is shared out among the parts of a plan, by the way in which they go out."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from tensorport_hub.core.demand import demand
from tensorport_hub.core.plan import Plan
from tensorport_hub.core.size import parse_size
from tensorport_hub.edge.hub_xet import SPARING, buffered
from tensorport_hub.edge.hub_xet_ranges import RANGES_NBYTES
from tensorport_hub.engine.budget import ENDING, Allotment, allot
from tensorport_hub.errors import LimitError, UseError
from tensorport_hub.ports import SMALL_NBYTES

_XET_STREAMS = 4
"""Open at a time at most. One more than there are processors, since one mostly waits for its end."""
_UPLOADS = ((4, 3), (2, 1))
"""Under way at a time by Xet, where the cap leaves room for so many streams: more uploads help where answers
take long, as three streams do everywhere; a fourth stream helps less."""
_SPOOL_NBYTES = 2 << 20
_SPARING_NBYTES = 4 << 20
"""Of small files that are finished at a time, where streams spare memory."""


@dataclass(frozen=True)
class Limits:
    """What a process may use.

    Attributes:
        parts: in flight at most; None: one a processor, by Xet one more.
        max_memory: bytes that the process may hold.
        large_shards: files may be larger than a shard where no format cuts them.
    """

    parts: int | None
    max_memory: int
    large_shards: bool = False

    @classmethod
    def of(cls, workers: int | None, max_memory: str | int, *, large_shards: bool = False) -> Limits:
        if workers is not None and (type(workers) is not int or workers < 1):
            raise UseError(f"workers must be a whole number and at least 1, got {workers!r}")
        return cls(workers, parse_size(max_memory), large_shards)

    @property
    def workers(self) -> int:
        """Parts in flight at most, but for Xet."""
        return self.parts or _processors()

    def allot(self, plan: Plan, *, streams: bool, by_xet: bool, texts_nbytes: int = 0) -> Allotment:
        """How the memory cap is used for a plan, whose bytes go out as they come (`streams`) or not.

        Args:
            by_xet: the source is read from Xet storage.
            texts_nbytes: what the small files take when all is published.

        Raises:
            LimitError: it is too small.
        """
        beside = RANGES_NBYTES if by_xet else 0
        given = partial(
            allot,
            self.max_memory,
            files=len(plan.files),
            demand=demand(plan),
            ordered=plan.is_ordered,
            texts_nbytes=texts_nbytes,
        )
        if not streams:
            writer = plan.files_at_once * _SPOOL_NBYTES
            return given(workers=self.workers, writer_nbytes=writer, beside_nbytes=beside)
        workers = min(self.parts or _processors() + 1, max(_XET_STREAMS // plan.files_at_once, 1))
        for uploads, streams_at_least in _UPLOADS:
            session, writer = _buffered(plan, ENDING, uploads)
            with suppress(LimitError):
                found = given(workers=workers, writer_nbytes=writer, beside_nbytes=beside + session)
                if found.workers >= min(workers, streams_at_least):
                    return replace(found, uploads=uploads)
        ending = max(1, min(ENDING, _SPARING_NBYTES // max(_largest_small(plan), 1)))
        session, writer = _buffered(plan, ending, SPARING)
        least = given(workers=1, writer_nbytes=writer, beside_nbytes=beside + session)
        return replace(least, uploads=SPARING, ending=ending)


def _buffered(plan: Plan, ending: int, uploads: int) -> tuple[int, int]:
    """What hf_xet buffers: all together, and for each part that is written."""
    small = ending * _largest_small(plan)
    return buffered(plan.bytes_out, streams=plan.files_at_once, small=small, uploads=uploads)


def _largest_small(plan: Plan) -> int:
    """Bytes of the largest file that is finished beside the workers."""
    return max((file.size for file in plan.outputs if file.size <= SMALL_NBYTES), default=0)


def _processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
