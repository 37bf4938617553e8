"""Run what is left of a plan: walk the source files in lanes, write the parts in workers, collect receipts.

Order and progress: lanes take files in plan order; a lane gives a part to the workers when its first bytes
are there. Workers take and open parts in the order in which they were given. A lane's blocks are only held by
parts whose bytes came before those that it reads next, so lanes and workers can't wait for each other in a
circle. Held parts hold no blocks but room of their own, which a lane takes for all that it feeds together
before it feeds one of them: who has room needs no more of it, nor a lane that waits for some. The first error
stops everything, and is what `run` raises.

Where files hold several tensors, one lane and one worker go through the parts in plan order, which is the
order in such a file; parts that nothing feeds are given at their place. Only fetching is parallel then.

What earlier runs of the plan finished comes from the journal, as far as the sink still holds it; what this
one finishes is entered there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

from tensorport_hub.core.decode.cast import Losses
from tensorport_hub.core.decode.stacked import Member, Stacked, members
from tensorport_hub.core.journal import Doubted, MadeFile, Progress, ReadFile, remaining
from tensorport_hub.core.layout import OutFile, Part
from tensorport_hub.core.plan import Plan, WeightFile
from tensorport_hub.core.schedule import Schedule
from tensorport_hub.core.tiles import Tile, member_tiles
from tensorport_hub.engine.blocks import BlockPool, Room, StopFlag, Stopped
from tensorport_hub.engine.budget import Allotment
from tensorport_hub.engine.feed import PartRun, Streamed
from tensorport_hub.engine.lane import Lane
from tensorport_hub.engine.outputs import Outputs
from tensorport_hub.engine.part import Lost, PartWriter
from tensorport_hub.engine.reader import Reader
from tensorport_hub.engine.stacked import StackedRun
from tensorport_hub.engine.tiled import Tiled
from tensorport_hub.engine.witness import Witness
from tensorport_hub.errors import TensorportError, VerificationError
from tensorport_hub.ports import Event, Journal, Kept, Receipt, Report, Resumed, Sink, Source

logger = logging.getLogger("tensorport_hub")

_GRACE = 3.0
"""Seconds that an interrupted run waits for its threads to let go."""


@dataclass(frozen=True)
class Outcome:
    """What a run made and learned.

    Attributes:
        receipts: one an output file, in plan order.
        digests: source file -> sha256 where it was read whole, else None.
        losses: recipe number -> what rounding cost, where it cost anything.
    """

    receipts: tuple[Receipt, ...]
    digests: Mapping[str, str | None]
    losses: Mapping[int, Losses]


def run(
    plan: Plan,
    source: Source,
    sink: Sink,
    journal: Journal,
    *,
    inherited: Progress,
    allotment: Allotment,
    report: Report,
) -> Outcome:
    """Read, decode and write every part of `plan` that the sink does not hold yet; commit nothing.

    Args:
        inherited: what the journal doesn't know, but the destination may hold of another plan's run.

    Raises:
        TensorportError: the first fault, by whose it is; every writer was finished or aborted.
    """
    return _Run(plan, source, sink, journal, inherited, allotment, _safe(report)).run()


def _safe(report: Report) -> Report:
    def call(event: Event) -> None:
        try:
            report(event)
        except Exception:
            logger.exception("the report callback raised on %r", event)

    return call


class _Run:
    def __init__(
        self,
        plan: Plan,
        source: Source,
        sink: Sink,
        journal: Journal,
        inherited: Progress,
        allotment: Allotment,
        report: Report,
    ) -> None:
        self._plan, self._source, self._allotment, self._report = plan, source, allotment, report
        self._journal = journal
        self._stop = StopFlag()
        self._held = _held(plan, sink, journal.progress)
        self._kept = _held(plan, sink, inherited, beside=self._held)
        self._digests = {**inherited.files, **journal.progress.files}
        there = {**self._held, **self._kept}
        self._left = remaining(plan, Progress(there, self._digests))
        self._schedule = Schedule(
            plan, self._left, block=allotment.block, keep=allotment.keep, room=allotment.room
        )
        self._room = Room(self._schedule.room, self._stop)
        self._witness = Witness()
        self._reader = Reader(source, self._witness, allotment.block, self._stop, report)
        expected = {index: _receipt(plan.outputs[index], there[index]) for index in self._left.prove}
        self._outputs = Outputs(plan, sink, self._left.make, expected, report)
        self._writer = PartWriter(
            plan, self._reader, self._outputs, self._pull, self._done, self._stop, report
        )
        workers, self._lanes = (1, 1) if plan.is_ordered else (allotment.workers, allotment.lanes)
        self._pools: SimpleQueue[BlockPool] = SimpleQueue()
        for _ in range(self._lanes):
            self._pools.put(BlockPool(allotment.buffers, allotment.block, self._stop))
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix="part")
        self._writing: set[Future[None]] = set()
        self._lock = threading.Lock()
        self._doubted: set[int] = set()

    def run(self) -> Outcome:
        if self._held:
            self._report(Resumed(*_count(self._held)))
        if self._kept:
            self._report(Kept(*_count(self._kept)))
            self._held |= self._kept
        lanes = ThreadPoolExecutor(self._lanes, thread_name_prefix="lane")
        walks: list[Future[None]] = []
        try:
            walks.extend(lanes.submit(self._walk, file) for file in self._left.files)
            for walk in walks:
                walk.result()
            self._workers.shutdown(wait=True)
        except BaseException as error:
            self._stop.fail(error)
            self._workers.shutdown(wait=False, cancel_futures=True)
            under_way: set[Future[Any]] = {*walks, *self._writing.copy()}
            wait(under_way, timeout=_GRACE)
            raise
        finally:
            self._outputs.abort()
            lanes.shutdown(wait=False, cancel_futures=True)
            self._workers.shutdown(wait=False, cancel_futures=bool(self._stop))
        if self._stop.error is not None:
            raise self._stop.error
        receipts = tuple(_receipt(file, self._held[file.index]) for file in self._plan.outputs)
        digests = {file.path: self._digests.get(file.path) for file in self._plan.files}
        return Outcome(receipts, digests, self._losses())

    def _losses(self) -> dict[int, Losses]:
        """Recipe number -> what rounding cost, in the order of the plan; each format has lost the same."""
        found: dict[int, Losses] = {}
        for file in self._plan.outputs:
            if file.format != self._plan.outputs[0].format:
                break
            for piece, lost in zip(file.pieces, self._held[file.index].lost, strict=False):
                if any(lost):
                    found.setdefault(piece.recipe, Losses()).add(Losses(*lost))
        return dict(sorted(found.items()))

    def _walk(self, file: WeightFile) -> None:
        """Walk one file; a failure stops the run and is kept, so that the first one is raised."""
        if self._stop:
            return
        walk = self._schedule.walk(file)
        pool = self._pools.get()
        lane = Lane(
            walk,
            self._source,
            self._reader,
            self._make,
            self._give,
            self._writer.wait_for_takers,
            self._witness,
            pool,
            self._allotment,
            self._stop,
            self._report,
        )
        try:
            sha256 = lane.run()
            if sha256 is not None:
                with self._lock:
                    self._digests[file.path] = sha256
                self._journal.add(ReadFile(file.path, sha256))
        except BaseException as error:
            made = {t.file for part in self._plan.parts if self._is_of(part, file) for t in part.targets}
            self._fail(error, made)
        finally:
            self._pools.put(pool)

    def _is_of(self, part: Part, file: WeightFile) -> bool:
        return any(tensor.file == file.path for tensor in self._plan.recipes[part.recipe].decoder.inputs)

    def _fail(self, error: BaseException, made: Collection[int]) -> None:
        """Stop the run; where bytes turned out to be wrong, the files that were made of them don't count."""
        self._stop.fail(error)
        if isinstance(error, VerificationError):
            with self._lock:
                self._doubted.update(made)
            with suppress(TensorportError):
                self._journal.add(Doubted(tuple(sorted(made))))

    def _make(self, parts: Sequence[Part], pulls: bool) -> list[PartRun]:
        """Parts that are fed together, or (`pulls`) by nobody, once there is room for all of them."""
        runs = [self._run_of(part, pulls) for part in parts]
        self._room.take(sum(run.holds for run in runs))
        return runs

    def _run_of(self, part: Part, pulls: bool) -> PartRun:
        decoder = self._plan.recipes[part.recipe].decoder
        if isinstance(decoder, Stacked):
            holds = max(
                (t.nbytes for m in members(decoder, *part.items) if m.decoder.held for t in self._tiles(m)),
                default=0,
            )
            return StackedRun(part, decoder, self._pull_member, holds)
        if decoder.held:
            tiles = self._schedule.tiles(part)
            return Tiled(part, decoder, tiles, self._witness, self._stop, pulls=pulls)
        return Streamed(part, decoder, self._witness, pulls=pulls)

    def _pull(self, part: Part) -> PartRun:
        """A part once more, which reads all that it needs; its room is there."""
        return self._run_of(part, pulls=True)

    def _tiles(self, member: Member) -> tuple[Tile, ...]:
        return member_tiles(member, self._schedule.room)

    def _pull_member(self, part: Part, member: Member) -> PartRun:
        """One expert of a stacked part."""
        alone, decoder = replace(part, items=member.items), member.decoder
        if decoder.held:
            return Tiled(alone, decoder, self._tiles(member), self._witness, self._stop, pulls=True)
        return Streamed(alone, decoder, self._witness, pulls=True)

    def _give(self, run: PartRun) -> None:
        self._writer.give(run)
        future = self._workers.submit(self._write)
        self._writing.add(future)
        future.add_done_callback(self._writing.discard)

    def _write(self) -> None:
        run, refused = self._writer.take()
        try:
            self._writer.write(run, refused)
        except Stopped:
            return
        except BaseException as error:
            self._fail(error, {target.file for target in run.part.targets})
        finally:
            run.let_go()
            self._room.give(run.holds)

    def _done(self, file: OutFile, receipt: Receipt, lost: Lost) -> None:
        made = MadeFile(file.index, receipt.size, receipt.sha256, lost)
        with self._lock:
            self._held[made.index] = made
            if made.index in self._doubted:
                return
        self._journal.add(made)


def _held(plan: Plan, sink: Sink, progress: Progress, *, beside: Collection[int] = ()) -> dict[int, MadeFile]:
    """What the sink still holds of the files that an earlier run finished, but for those in `beside`."""
    return {
        file.index: made
        for file in plan.outputs
        if file.index not in beside
        and (made := progress.made.get(file.index)) is not None
        and made.size == file.size
        and sink.has(_receipt(file, made))
    }


def _count(made: Mapping[int, MadeFile]) -> tuple[int, int]:
    return len(made), sum(one.size for one in made.values())


def _receipt(file: OutFile, made: MadeFile) -> Receipt:
    return Receipt(file.path, made.size, made.sha256)
