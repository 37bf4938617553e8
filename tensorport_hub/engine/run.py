"""Run a plan: walk the source files in lanes, write the parts in workers, collect receipts.

Order and progress: lanes take files in plan order; a lane gives a part to the workers when its first bytes
are there. Workers take and open parts in the order in which they were given. A lane's blocks are only held by
parts whose bytes came before those that it reads next, so lanes and workers can't wait for each other in a
circle. Held parts hold no blocks but room of their own, which a lane takes for all that it feeds together
before it feeds one of them: who has room needs no more of it, nor a lane that waits for some. The first error
stops everything, and is what `run` raises.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from tensorport_hub.core.decode.cast import Losses
from tensorport_hub.core.plan import Part, Plan
from tensorport_hub.core.schedule import Schedule
from tensorport_hub.engine.blocks import Room, StopFlag, Stopped
from tensorport_hub.engine.budget import Allotment
from tensorport_hub.engine.feed import PartRun, Streamed
from tensorport_hub.engine.lane import FileDigest, Lane
from tensorport_hub.engine.part import PartWriter
from tensorport_hub.engine.reader import Reader
from tensorport_hub.engine.tiled import Tiled
from tensorport_hub.ports import Event, Receipt, Report, Sink, Source

logger = logging.getLogger("tensorport_hub")

_GRACE = 3.0
"""Seconds that an interrupted run waits for its threads to let go."""


@dataclass(frozen=True)
class Outcome:
    """What a run made and learned.

    Attributes:
        receipts: one a part, in plan order.
        digests: source file -> sha256 where it was read whole, else None.
        losses: recipe number -> what rounding cost, where it cost anything.
    """

    receipts: tuple[Receipt, ...]
    digests: Mapping[str, str | None]
    losses: Mapping[int, Losses]


def run(plan: Plan, source: Source, sink: Sink, *, allotment: Allotment, report: Report) -> Outcome:
    """Read, decode and write every part of `plan`; commit nothing.

    Raises:
        TensorportError: the first fault, by whose it is; every writer was finished or aborted.
    """
    return _Run(plan, source, sink, allotment, _safe(report)).run()


def _safe(report: Report) -> Report:
    def call(event: Event) -> None:
        try:
            report(event)
        except Exception:
            logger.exception("the report callback raised on %r", event)

    return call


class _Run:
    def __init__(self, plan: Plan, source: Source, sink: Sink, allotment: Allotment, report: Report) -> None:
        self._plan, self._source, self._allotment, self._report = plan, source, allotment, report
        self._stop = StopFlag()
        self._schedule = Schedule(plan, block=allotment.block, keep=allotment.keep, room=allotment.room)
        self._room = Room(allotment.room, self._stop)
        self._reader = Reader(source, allotment.block, self._stop, report)
        self._writer = PartWriter(self._reader, sink, plan.options, self._stop, report)
        self._workers = ThreadPoolExecutor(allotment.workers, thread_name_prefix="part")
        self._writing: set[Future[None]] = set()
        self._receipts: dict[int, Receipt] = {}
        self._losses: dict[int, Losses] = {}
        self._lock = threading.Lock()

    def run(self) -> Outcome:
        lanes = ThreadPoolExecutor(self._allotment.lanes, thread_name_prefix="lane")
        walks: list[Future[FileDigest | None]] = []
        try:
            walks.extend(lanes.submit(self._walk, number) for number in range(len(self._plan.files)))
            digests = [walk.result() for walk in walks]
            self._workers.shutdown(wait=True)
        except BaseException as error:
            self._stop.fail(error)
            self._workers.shutdown(wait=False, cancel_futures=True)
            under_way: set[Future[Any]] = {*walks, *self._writing.copy()}
            wait(under_way, timeout=_GRACE)
            raise
        finally:
            lanes.shutdown(wait=False, cancel_futures=True)
            self._workers.shutdown(wait=False, cancel_futures=bool(self._stop))
        if self._stop.error is not None:
            raise self._stop.error
        receipts = tuple(self._receipts[part.index] for part in self._plan.parts)
        known = {digest.path: digest.sha256 for digest in digests if digest is not None}
        return Outcome(receipts, known, self._losses)

    def _walk(self, number: int) -> FileDigest | None:
        """Walk one file; a failure stops the run and is kept, so that the first one is raised."""
        if self._stop:
            return None
        walk = self._schedule.walk(self._plan.files[number])
        lane = Lane(
            walk,
            self._source,
            self._reader,
            self._make,
            self._give,
            self._allotment,
            self._stop,
            self._report,
        )
        try:
            return lane.run()
        except BaseException as error:
            self._stop.fail(error)
            return None

    def _make(self, parts: Sequence[Part], pulls: bool) -> list[PartRun]:
        """Parts that are fed together, or (`pulls`) by nobody, once there is room for all of them."""
        runs: list[PartRun] = []
        for part in parts:
            recipe = self._plan.recipes[part.recipe]
            if recipe.decoder.held:
                runs.append(Tiled(part, recipe, self._schedule.tiles(part), self._stop))
            else:
                runs.append(Streamed(part, recipe, pulls=pulls))
        self._room.take(sum(run.holds for run in runs))
        return runs

    def _give(self, run: PartRun) -> None:
        self._writer.give(run)
        future = self._workers.submit(self._write)
        self._writing.add(future)
        future.add_done_callback(self._writing.discard)

    def _write(self) -> None:
        run, opened = self._writer.take()
        try:
            receipt = self._writer.write(run, opened)
        except Stopped:
            return
        except BaseException as error:
            self._stop.fail(error)
            return
        finally:
            run.let_go()
            self._room.give(run.holds)
        with self._lock:
            self._receipts[run.part.index] = receipt
            if run.losses.overflow or run.losses.underflow:
                self._losses.setdefault(run.part.recipe, Losses()).add(run.losses)
