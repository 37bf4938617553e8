"""One part from its first byte to its receipt: its bytes come, are decoded and handed to a writer.

A worker thread runs `write`. When a writer fails for a passing reason, the rest of what the lane feeds is let
go and the part is written again from what it reads itself.

Parts are opened one by one, in the order in which they were given. A sink may let a writer wait for another
one's place, and a part that waits holds blocks that its lane needs for the parts behind it: were one of those
opened first, each would wait for the other.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing

from tensorport_hub.core import npy
from tensorport_hub.core.decode.cast import Losses
from tensorport_hub.core.decode.decoder import Bytes
from tensorport_hub.core.plan import Options
from tensorport_hub.core.recipe import Recipe
from tensorport_hub.core.render import render
from tensorport_hub.core.safetensors import shorten
from tensorport_hub.core.strips import Strip
from tensorport_hub.engine.blocks import StopFlag, Stopped
from tensorport_hub.engine.feed import Items, PartRun
from tensorport_hub.engine.reader import Reader
from tensorport_hub.errors import LossError, TensorportError, VerificationError
from tensorport_hub.ports import BytesWritten, PartDone, PartRetried, Receipt, Report, Sink, Writer

ATTEMPTS = 4
_PAUSE = 0.5
_LONGEST_ASKED = 900.0


class PartWriter:
    """Runs parts against one source and one sink; shared by all worker threads."""

    def __init__(self, reader: Reader, sink: Sink, options: Options, stop: StopFlag, report: Report) -> None:
        self._reader, self._sink, self._options = reader, sink, options
        self._stop, self._report = stop, report
        self._given: deque[PartRun] = deque()
        self._turn = threading.Lock()

    def give(self, run: PartRun) -> None:
        """Queue a part for `take`."""
        self._given.append(run)

    def take(self) -> tuple[PartRun, Writer | BaseException]:
        """The part that was given first, and its writer or why there is none."""
        with self._turn:
            run = self._given.popleft()
            try:
                if self._stop:
                    raise Stopped
                return run, self._open(run)
            except BaseException as error:
                return run, error

    def _open(self, run: PartRun) -> Writer:
        if run.expected is not None:
            return Comparison(run.expected)
        return self._sink.open(run.part.path, run.part.size)

    def write(self, run: PartRun, opened: Writer | BaseException) -> Receipt:
        """Write the part as it is fed; again from the source if the sink fails in passing.

        Raises:
            TensorportError: what the sink, the source or the values are at fault for.
            Stopped: the run stopped.
        """
        try:
            if isinstance(opened, BaseException):
                raise opened
            with closing(run.pieces(self._reader)) as pieces:
                return self._attempt(run, opened, pieces)  # a failure's traceback would keep its block
        except TensorportError as error:
            failure = error
        except BaseException as error:
            self._stop.fail(error)
            run.drain()
            raise
        if not failure.transient:
            self._stop.fail(failure)  # before the rest is let go, or the lane would read it first
        run.drain()
        for attempt in range(2, ATTEMPTS + 1):
            if not failure.transient:
                break
            self._report(PartRetried(run.part.path, attempt, failure.message))
            if self._stop.wait(_seconds(failure, attempt)):
                raise Stopped
            try:
                opened = self._open(run)
                return self._attempt(run, opened, run.pieces(self._reader))
            except TensorportError as error:
                failure = error
        raise failure

    def _attempt(self, run: PartRun, writer: Writer, pieces: Iterator[Items]) -> Receipt:
        run.losses = Losses()
        inputs: Sequence[tuple[Bytes, Strip]] = ()
        try:
            self._pass_on(run, writer, memoryview(npy.header(run.recipe.dtype, run.part.shape)))
            saturate = self._options.on_overflow == "saturate"
            for start, stop, inputs in pieces:
                for view in render(run.recipe, start, stop, inputs, saturate=saturate, losses=run.losses):
                    self._pass_on(run, writer, view)
                inputs = ()  # room for the next ones
                if self._stop:
                    raise Stopped
            _check_losses(run, self._options)
            receipt = writer.finish()
        except BaseException:
            del inputs  # a failure's traceback would keep them
            writer.abort()
            raise
        if run.expected is None:
            self._report(PartDone(receipt))
        return receipt

    def _pass_on(self, run: PartRun, writer: Writer, view: memoryview) -> None:
        writer.write(view)
        if run.expected is None:
            self._report(BytesWritten(run.part.path, view.nbytes))


class Comparison:
    """A writer that only compares what it is given with what the sink holds."""

    def __init__(self, expected: Receipt) -> None:
        self._expected, self._sha256 = expected, hashlib.sha256()

    def write(self, block: memoryview) -> None:
        self._sha256.update(block)

    def finish(self) -> Receipt:
        got = self._sha256.hexdigest()
        if got != self._expected.sha256:
            raise VerificationError(
                f"`{self._expected.path}`, left by an earlier run, is not what the source gives now: expected"
                f" sha256 {got}, got {self._expected.sha256}",
                hint="`--restart` makes it again",
            )
        return self._expected

    def abort(self) -> None:
        """Nothing is held."""


def _seconds(failure: TensorportError, attempt: int) -> float:
    """How long to wait before `attempt`: what the other side asked for, where that is longer."""
    return max(_PAUSE * (1 << attempt), min(failure.retry_after or 0.0, _LONGEST_ASKED))


def _check_losses(run: PartRun, options: Options) -> None:
    """Refuse losses that the options call errors, before the part is finished."""
    recipe, losses = run.recipe, run.losses
    rows = "" if run.part.rows == (0, _rows(recipe)) else f", rows {run.part.rows[0]}:{run.part.rows[1]}"
    where = f"`{shorten(recipe.name)}`{rows}"
    if losses.overflow and options.on_overflow == "error":
        raise LossError(
            f"{losses.overflow} finite values of {where} are too large for {recipe.dtype}",
            hint="`--on-overflow inf` or `saturate` accepts them; bfloat16 and float32 hold more",
        )
    if losses.underflow and options.on_underflow == "error":
        raise LossError(
            f"{losses.underflow} non-zero values of {where} become 0 in {recipe.dtype}",
            hint="`--on-underflow report` accepts and counts them",
        )


def _rows(recipe: Recipe) -> int:
    shape = recipe.stored_shape
    return shape[0] if shape else 1
