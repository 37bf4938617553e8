"""One part from its first byte to the files that take it: decoded once, and handed to all of them.

A worker thread runs `write`. A file whose writer fails for a passing reason is made again as a whole, from
what is read for it, once the last of its parts has passed; till then its parts are let go.

Parts are opened one by one, in the order in which they were given. A sink may let a writer wait for another
one's place, and a part that waits holds blocks that its lane needs for the parts behind it: were one of those
opened first, each would wait for the other.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

from tensorport_hub.core.arrange import Choice
from tensorport_hub.core.decode.cast import Losses
from tensorport_hub.core.decode.decoder import Dense
from tensorport_hub.core.layout import OutFile, Part
from tensorport_hub.core.plan import Options, Plan
from tensorport_hub.core.recipe import Recipe
from tensorport_hub.core.render import render
from tensorport_hub.core.tensor import shorten
from tensorport_hub.engine.blocks import StopFlag, Stopped
from tensorport_hub.engine.feed import Items, PartRun
from tensorport_hub.engine.outputs import Output, Outputs
from tensorport_hub.engine.reader import Reader
from tensorport_hub.errors import LossError, TensorportError
from tensorport_hub.ports import PartDone, PartRetried, Receipt, Report

ATTEMPTS = 4
_MOST_GIVEN = 64
_PAUSE = 0.5
_LONGEST_ASKED = 900.0


Lost = tuple[tuple[int, int], ...]
Done = Callable[[OutFile, Receipt, Lost], None]
"""Is told of every file that was written."""


class PartWriter:
    """Runs parts against one source and one sink; shared by all worker threads.

    Args:
        pull: makes a part that reads all that it needs.
        end: is given every file that is complete, and the part that completed it; has it `finish`ed.
        done: is told of every file that was written.
    """

    def __init__(
        self,
        plan: Plan,
        reader: Reader,
        outputs: Outputs,
        pull: Callable[[Part], PartRun],
        end: Callable[[Output, PartRun], None],
        done: Done,
        stop: StopFlag,
        report: Report,
    ) -> None:
        self._plan, self._reader, self._outputs = plan, reader, outputs
        self._pull, self._end, self._done = pull, end, done
        self._stop, self._report = stop, report
        self._given: deque[PartRun] = deque()
        self._taken = threading.Condition()
        self._turn = threading.Lock()

    def wait_for_takers(self) -> None:
        """Wait until few parts wait: a block may hold thousands of them.

        Raises:
            Stopped: the run stopped meanwhile.
        """
        with self._taken:
            while len(self._given) >= _MOST_GIVEN:
                if self._stop:
                    raise Stopped
                self._taken.wait(0.2)

    def give(self, run: PartRun) -> None:
        """Queue a part for `take`."""
        self._given.append(run)

    def take(self) -> tuple[PartRun, BaseException | None]:
        """The part that was given first, its files open; or why they are not."""
        with self._turn:
            with self._taken:
                run = self._given.popleft()
                self._taken.notify_all()
            try:
                if self._stop:
                    raise Stopped
                self._outputs.open_for(run.part)
            except BaseException as error:
                return run, error
            return run, None

    def write(self, run: PartRun, refused: BaseException | None) -> None:
        """Write the part as it is fed, and have those files finished that end with it.

        Raises:
            TensorportError: what the sink, the source or the values are at fault for.
            Stopped: the run stopped.
        """
        open_now: list[tuple[Output, int]] = []
        try:
            if refused is not None:
                raise refused
            open_now = self._outputs.of(run.part)
            self._hand_on(run, [(output, recipe) for output, recipe in open_now if output.failure is None])
            run.drain()
            run.let_go()
            for output in self._outputs.passed(run.part):
                self._end(output, run)
        except BaseException as error:
            self._stop.fail(error)  # before the rest is let go, or the lane would read it first
            for output, _ in open_now:
                output.abort()
            run.drain()
            raise

    def _hand_on(self, run: PartRun, live: Sequence[tuple[Output, int]]) -> None:
        if not live:
            return
        try:
            with closing(run.pieces(self._reader)) as pieces:
                self._fill(run.part, pieces, live)
        except TensorportError as error:
            if not error.transient:
                raise
            for output, _ in live:
                output.fail(error)

    def _fill(self, part: Part, pieces: Iterator[Items], live: Sequence[tuple[Output, int]]) -> None:
        """Decode a part, and hand it to those files that don't fail."""
        recipes = [*dict.fromkeys(recipe for _, recipe in live)]
        losses = {recipe: Losses() for recipe in recipes}
        takes = [(Choice.of(self._plan.recipes[recipe]), losses[recipe]) for recipe in recipes]
        dtype = self._plan.recipes[part.recipe].dtype
        saturate = self._plan.options.on_overflow == "saturate"
        for one in pieces:
            end = one.first + one.stop - one.start
            for made in render(one.decoder, dtype, one.first, end, one.inputs, takes, saturate=saturate):
                for output, recipe in live:
                    _append(output, recipe, made[recipes.index(recipe)])
            if self._stop:
                raise Stopped
            if all(output.failure is not None for output, _ in live):
                return
        for recipe in recipes:
            _check_losses(self._plan.recipes[recipe], part, losses[recipe], self._plan.options)
        for output, recipe in live:
            output.cost(recipe, losses[recipe])

    def finish(self, output: Output) -> None:
        """Finish a file; make it again where it failed in passing.

        Raises:
            TensorportError: what the sink, the source or the values are at fault for.
            Stopped: the run stopped.
        """
        failure = output.failure
        if failure is None:
            try:
                self._close(output)
                return
            except TensorportError as error:
                failure = error
        file = output.file
        for attempt in range(2, ATTEMPTS + 1):
            if not failure.transient:
                break
            self._report(PartRetried(file.path, attempt, failure.message))
            if self._stop.wait(_seconds(failure, attempt)):
                raise Stopped
            try:
                self._make_again(file)
                return
            except TensorportError as error:
                failure = error
        raise failure

    def _make_again(self, file: OutFile) -> None:
        output = self._outputs.open(file.index)
        try:
            for part, recipe in self._outputs.parts_of(file.index):
                run = self._pull(part)
                with closing(run.pieces(self._reader)) as pieces:
                    self._fill(part, pieces, [(output, recipe)])
                run.let_go()
                if output.failure is not None:
                    raise output.failure
        except BaseException:
            output.abort()
            raise
        self._close(output)

    def _close(self, output: Output) -> None:
        try:
            receipt, lost = output.finish()
        except BaseException:
            output.abort()
            raise
        if self._outputs.is_new(output.file.index):
            self._report(PartDone(receipt))
            self._done(output.file, receipt, lost)


def _append(output: Output, recipe: int, items: Dense) -> None:
    """Hand items to a file; one that fails in passing takes no more."""
    if output.failure is not None:
        return
    try:
        output.take(recipe, items)
    except TensorportError as error:
        if not error.transient:
            raise
        output.fail(error)


def _seconds(failure: TensorportError, attempt: int) -> float:
    """How long to wait before `attempt`: what the other side asked for, where that is longer."""
    return max(_PAUSE * (1 << attempt), min(failure.retry_after or 0.0, _LONGEST_ASKED))


def _check_losses(recipe: Recipe, part: Part, losses: Losses, options: Options) -> None:
    """Refuse losses that the options call errors, before the file is finished."""
    rows = "" if part.rows == (0, _rows(recipe)) else f", rows {part.rows[0]}:{part.rows[1]}"
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
