"""Run what is left of a plan, or a share of it: walk source files in lanes, write their parts in workers.

Order and progress: lanes take files in plan order; a lane gives a part to the workers when its first bytes
are there. Workers take and open parts in the order in which they were given. A lane's blocks are only held by
parts whose bytes came before those that it reads next, so lanes and workers can't wait for each other in a
circle. Held parts hold no blocks but room of their own, which a lane takes for all that it feeds together
before it feeds one of them: who has room needs no more of it, nor a lane that waits for some. The first error
stops everything, and is what `run` raises.

Where files hold several tensors, one lane and one worker go through the parts in plan order, which is the
order in such a file; parts that nothing feeds are given at their place. Only fetching is parallel then.

Small files that are complete are finished beside the workers, many at a time: that is waiting for the sink,
which may take them together.

What is finished, and whether it is kept, is the `Ledger`'s; `carry_out` enters each file as it is finished.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cached_property
from queue import SimpleQueue
from typing import Any

from tensorport_hub.core.decode.stacked import Member, Stacked, members
from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.layout import OutFile, Part
from tensorport_hub.core.plan import Plan
from tensorport_hub.core.progress import Doubted, Entry, MadeFile, Progress, ReadFile, Remaining
from tensorport_hub.core.schedule import Schedule
from tensorport_hub.core.tiles import Tile, member_tiles
from tensorport_hub.engine.blocks import BlockPool, Room, StopFlag, Stopped
from tensorport_hub.engine.budget import Allotment
from tensorport_hub.engine.feed import PartRun, Streamed
from tensorport_hub.engine.lane import Lane
from tensorport_hub.engine.ledger import Ledger, Outcome, receipt_of
from tensorport_hub.engine.outputs import Output, Outputs
from tensorport_hub.engine.part import Lost, PartWriter
from tensorport_hub.engine.reader import Reader
from tensorport_hub.engine.stacked import StackedRun
from tensorport_hub.engine.tiled import Tiled
from tensorport_hub.engine.witness import Witness
from tensorport_hub.errors import VerificationError
from tensorport_hub.ports import SMALL_NBYTES, Journal, Receipt, Report, Sink, Source, Store

_BREATH = 0.3
"""Seconds after which a signal is answered at the latest."""

_PATIENCE = 5.0
"""Seconds after which a worker finishes a small file itself, since others still finish theirs."""

_GRACE = 3.0
"""Seconds that an interrupted run waits for its threads to let go."""

Enter = Callable[[Entry], None]
"""Is told of what is finished."""


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
    ledger = Ledger(plan, sink, journal, inherited)
    ledger.tell(report)
    work = Work(plan, ledger.left, ledger.left.files, ledger.made.copy(), allotment)
    carry_out(work, source, sink, ledger.enter, Witness(), StopFlag(), report)
    return ledger.outcome()


@dataclass(frozen=True)
class Work:
    """Source files to walk, and all that is made as they are walked.

    Attributes:
        left: what the run as a whole has to do: bytes that others read of these files are looked at, too.
        files: those of its files that are walked.
        made: what the sink holds of what is to be proven.
    """

    plan: Plan
    left: Remaining
    files: Sequence[SourceFile]
    made: Mapping[int, MadeFile]
    allotment: Allotment

    @cached_property
    def schedule(self) -> Schedule:
        """In what order everything is read."""
        given = self.allotment
        return Schedule(self.plan, self.left, block=given.block, keep=given.keep, room=given.room)


def carry_out(
    work: Work,
    source: Source,
    store: Store,
    enter: Enter,
    witness: Witness,
    stop: StopFlag,
    report: Report,
) -> None:
    """Walk the files of `work` and write what is made of them; commit nothing.

    Args:
        enter: is told of everything that is finished, from any thread; what it raises ends the run.
        witness: has seen, at the end, what was read beside the walks.
        stop: whoever sets it ends the run.

    Raises:
        TensorportError: the first fault, by whose it is; every writer was finished or aborted.
    """
    _Run(work, source, store, enter, witness, stop, report).run()


def _wait_for(future: Future[None]) -> None:
    """Wait in breaths: a signal that comes just before a thread sleeps is answered when it wakes up.

    Raises:
        Exception: what the thread raised.
    """
    while not wait((future,), timeout=_BREATH).done:
        continue
    future.result()


class _Run:
    """Lanes, and the `Workers` that write what they feed."""

    def __init__(
        self,
        work: Work,
        source: Source,
        store: Store,
        enter: Enter,
        witness: Witness,
        stop: StopFlag,
        report: Report,
    ) -> None:
        plan, left = work.plan, work.left
        self._plan, self._allotment, self._report = plan, work.allotment, report
        self._enter, self._files = enter, work.files
        self._witness, self._stop = witness, stop
        self._schedule = work.schedule
        self._room = Room(self._schedule.room, self._stop)
        self._reader = Reader(source, self._witness, self._allotment.block, self._stop, report)
        expected = {
            index: receipt_of(plan.outputs[index], work.made[index])
            for index in left.prove
            if index in work.made
        }
        self._outputs = Outputs(plan, store, left.make, expected, report)
        self._writer = PartWriter(
            plan, self._reader, self._outputs, self._pull, self._end, self._done, self._stop, report
        )
        workers, self._lanes = (1, 1) if plan.is_ordered else (work.allotment.workers, work.allotment.lanes)
        self._pools: SimpleQueue[BlockPool] = SimpleQueue()
        for _ in range(self._lanes):
            self._pools.put(BlockPool(work.allotment.buffers, work.allotment.block, self._stop))
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix="part")
        self._enders = ThreadPoolExecutor(work.allotment.ending, thread_name_prefix="end")
        self._ending = threading.Semaphore(work.allotment.ending)
        self._writing: set[Future[None]] = set()

    def run(self) -> None:
        lanes = ThreadPoolExecutor(self._lanes, thread_name_prefix="lane")
        walks: list[Future[None]] = []
        try:
            walks.extend(lanes.submit(self._walk, file) for file in self._files)
            for walk in walks:
                _wait_for(walk)
            while writing := self._writing.copy():  # who writes may have others end what he wrote
                for future in writing:
                    _wait_for(future)
            self._workers.shutdown(wait=True)
            self._enders.shutdown(wait=True)
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
            self._enders.shutdown(wait=False)
        if self._stop.error is not None:
            raise self._stop.error

    def _walk(self, file: SourceFile) -> None:
        """Walk one file; a failure stops the run and is kept, so that the first one is raised."""
        if self._stop:
            return
        walk = self._schedule.walk(file)
        pool = self._pools.get()
        lane = Lane(walk, self._reader, self, self._witness, pool, self._report, depth=self._allotment.depth)
        try:
            sha256 = lane.run()
            if sha256 is not None:
                self._enter(ReadFile(file.path, sha256))
        except BaseException as error:
            self._fail(error, self._plan.made_of[file.path])
        finally:
            self._pools.put(pool)

    def _fail(self, error: BaseException, made: Collection[int]) -> None:
        """Stop the run; where bytes turned out to be wrong, the files that were made of them don't count."""
        self._stop.fail(error)
        if isinstance(error, VerificationError):
            self._enter(Doubted(tuple(sorted(made))))

    def make(self, parts: Sequence[Part], *, pulls: bool) -> list[PartRun]:
        runs = [self._run_of(part, pulls=pulls) for part in parts]
        self._room.take(sum(run.holds for run in runs))
        return runs

    def _run_of(self, part: Part, *, pulls: bool) -> PartRun:
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

    def give(self, run: PartRun) -> None:
        self._writer.give(run)
        self._note(self._workers.submit(self._write))

    def wait_for_takers(self) -> None:
        self._writer.wait_for_takers()

    def _note(self, future: Future[None]) -> None:
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

    def _end(self, output: Output, run: PartRun) -> None:
        """Have a complete file finished: beside, but for large ones, and what is made again in held room.

        Nobody waits for a place there for ever: those that are made again may wait for this file's in the
        sink, or the run has ended.
        """
        apart = output.file.size > SMALL_NBYTES or run.holds
        if apart or not self._ending.acquire(timeout=_PATIENCE):
            self._writer.finish(output)
            return
        self._note(self._enders.submit(self._finish, output))

    def _finish(self, output: Output) -> None:
        try:
            self._writer.finish(output)
        except Stopped:
            return
        except BaseException as error:
            self._fail(error, {output.file.index})
        finally:
            self._ending.release()

    def _done(self, file: OutFile, receipt: Receipt, lost: Lost) -> None:
        self._enter(MadeFile(file.index, receipt.size, receipt.sha256, lost))
