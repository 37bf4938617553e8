"""The output files of a run: parts append to them, one after another, and each ends in a receipt.

A file is opened when its first part is taken, and finished when its last one has passed. One whose writer
fails for a passing reason takes no more of the parts that are fed: it is made again as a whole once all of
them have passed, from bytes that are read for it. So no other file of the same parts has to wait.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorport_hub.core.arrange import Swap
from tensorport_hub.core.decode.cast import Losses
from tensorport_hub.core.layout import OutFile, Part, frame, is_swapped
from tensorport_hub.core.plan import Plan
from tensorport_hub.core.recipe import Recipe
from tensorport_hub.errors import TensorportError, VerificationError
from tensorport_hub.ports import BytesWritten, Receipt, Report, Store, Writer


class Output:
    """One file on its way: literal bytes and tensors' items, in the order of its frame.

    Attributes:
        lost: what rounding cost, of each of its pieces.
        failure: why it takes no more.
    """

    def __init__(self, plan: Plan, file: OutFile, writer: Writer, report: Report | None) -> None:
        self.file, self._writer, self._report = file, writer, report
        self.lost = [Losses() for _ in file.pieces]
        self.failure: TensorportError | None = None
        self._number = {piece.recipe: i for i, piece in enumerate(file.pieces)}
        made = frame(plan.recipes, file)
        self._segments, self._after = iter(made.segments), made.after
        self._left = 0
        self._swaps = {
            piece.recipe: swap
            for piece in file.pieces
            if (swap := _swap(plan.recipes[piece.recipe], file.format)) is not None
        }

    def take(self, recipe: int, items: npt.NDArray[Any]) -> None:
        """Append the next stored items of a recipe's output, 1-D."""
        if recipe not in self._swaps:
            self._append(items)
            return
        for matrix in self._swaps[recipe].through(items):
            self._append(matrix)

    def cost(self, recipe: int, losses: Losses) -> None:
        """Enter what rounding a part of a recipe's output cost."""
        self.lost[self._number[recipe]].add(losses)

    def _append(self, items: npt.NDArray[Any]) -> None:
        data = np.ascontiguousarray(items).view(np.uint8).data
        while data.nbytes:
            self._begin()
            now = data[: self._left]
            self._pass_on(now)
            self._left -= now.nbytes
            data = data[now.nbytes :]

    def _begin(self) -> None:
        """Go to the segment that the next byte belongs to; empty ones are passed."""
        while not self._left:
            segment = next(self._segments, None)
            assert segment is not None, "a file gets more than its tensors"
            self._pass_on(memoryview(segment.before))
            self._left = segment.nbytes

    def finish(self) -> tuple[Receipt, tuple[tuple[int, int], ...]]:
        """The receipt, and the losses as the journal keeps them."""
        for segment in self._segments:
            self._pass_on(memoryview(segment.before))
            assert not segment.nbytes, "a file ends before its tensors"
        self._pass_on(memoryview(self._after))
        receipt = self._writer.finish()
        lost = tuple((one.overflow, one.underflow) for one in self.lost)
        return receipt, lost if any(map(any, lost)) else ()

    def _pass_on(self, view: memoryview) -> None:
        if view.nbytes:
            self._writer.write(view)
            if self._report is not None:
                self._report(BytesWritten(self.file.path, view.nbytes))

    def fail(self, error: TensorportError) -> None:
        """Take no more."""
        self.failure = error.with_traceback(None)  # which would keep blocks
        self.abort()

    def abort(self) -> None:
        self._writer.abort()


def _swap(recipe: Recipe, form: str) -> Swap | None:
    """What turns the matrices of a recipe round on their way into a file."""
    if recipe.swapped:
        *_, rows, columns = recipe.stored_shape
        return Swap(columns, rows)
    return Swap(*recipe.stored_shape[-2:]) if is_swapped(recipe, form) else None


class Outputs:
    """The files that a run makes, and those that it proves; shared by all worker threads.

    Args:
        make: numbers of the files to be written.
        expected: what the sink holds of those that are only compared.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        make: frozenset[int],
        expected: Mapping[int, Receipt],
        report: Report,
    ) -> None:
        self._plan, self._store, self._report = plan, store, report
        self._make, self._expected = make, expected
        self._open: dict[int, Output] = {}
        self._lock = threading.Lock()
        self._left = Counter(target.file for part in plan.parts for target in part.targets)
        self._parts: dict[int, list[tuple[Part, int]]] = defaultdict(list)
        for part in plan.parts:
            for target in part.targets:
                self._parts[target.file].append((part, target.recipe))

    def is_new(self, file: int) -> bool:
        """Whether a file is written, not only compared."""
        return file in self._make

    def open_for(self, part: Part) -> None:
        """Open the files that begin with a part.

        Raises:
            TensorportError: one can't be opened, and not only in passing.
        """
        for target in part.targets:
            if target.file not in self._open and self._is_wanted(target.file):
                self._open[target.file] = self._opened(target.file)

    def _opened(self, file: int) -> Output:
        try:
            return self.open(file)
        except TensorportError as error:
            if not error.transient:
                raise
            output = Output(self._plan, self._plan.outputs[file], Nothing(), None)
            output.fail(error)
            return output

    def _is_wanted(self, file: int) -> bool:
        return file in self._make or file in self._expected

    def open(self, file: int) -> Output:
        """Begin a file, or begin it anew."""
        out = self._plan.outputs[file]
        if file in self._expected:
            return Output(self._plan, out, Comparison(self._expected[file]), None)
        return Output(self._plan, out, self._store.open(out.path, out.size), self._report)

    def parts_of(self, file: int) -> list[tuple[Part, int]]:
        """What a file is made of, in order, with the recipe whose output it takes."""
        return self._parts[file]

    def of(self, part: Part) -> list[tuple[Output, int]]:
        """The open files that a part goes to, with the recipe whose output they take."""
        found = [(self._open[t.file], t.recipe) for t in part.targets if t.file in self._open]
        for output, recipe in found:
            parts = self._parts[output.file.index]
            due = parts[len(parts) - self._left[output.file.index]]
            assert due == (part, recipe), f"`{output.file.path}` gets its parts in another order"
        return found

    def passed(self, part: Part) -> list[Output]:
        """A part is over; the files whose last one it was."""
        done = []
        with self._lock:
            for target in part.targets:
                self._left[target.file] -= 1
                if not self._left[target.file] and target.file in self._open:
                    done.append(self._open.pop(target.file))
        return done

    def abort(self) -> None:
        """Nothing more will come."""
        with self._lock:
            for output in [*self._open.values()]:
                output.abort()


class Nothing:
    """A writer that holds nothing."""

    def write(self, block: memoryview) -> None:
        """It goes nowhere."""

    def finish(self) -> Receipt:
        raise AssertionError("a file that failed is made again")

    def abort(self) -> None:
        """Nothing is held."""


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
                hint="run again: it is made anew",
            )
        return self._expected

    def abort(self) -> None:
        """Nothing is held."""
