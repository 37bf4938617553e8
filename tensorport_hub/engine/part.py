"""One part from its first byte to its receipt: the blocks come, bytes are decoded and handed to a writer.

The lane that walks the source file feeds pieces in order through `feed`; a worker thread runs `write`. When
a writer fails for a passing reason, the rest of the feed is let go and the part is written again by reading
its own ranges. The walk's sha256 covers what was fed; its CRC-32 proves that the second reading is the same.

Parts are opened one by one, in the order in which they were given. A sink may let a writer wait for another
one's place, and a part that waits holds blocks that its lane needs for the parts behind it: were one of those
opened first, each would wait for the other.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np

from tensorport_hub.core import npy
from tensorport_hub.core.decode.cast import Losses
from tensorport_hub.core.decode.decoder import Bytes
from tensorport_hub.core.plan import Options, Part
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.recipe import Recipe
from tensorport_hub.core.render import render
from tensorport_hub.core.safetensors import shorten
from tensorport_hub.engine.blocks import SharedBlock, StopFlag, Stopped
from tensorport_hub.errors import LossError, SourceError, TensorportError, VerificationError
from tensorport_hub.ports import (
    BytesRead,
    BytesWritten,
    PartDone,
    PartRetried,
    Receipt,
    Report,
    Sink,
    Source,
    Writer,
)

ATTEMPTS = 4
_PAUSE = 0.5
_LONGEST_ASKED = 900.0

Fed = tuple[int, int, SharedBlock, int]
"""Bytes `start:stop` of what the part needs of its primary, and where in the block they begin."""

Items = tuple[int, int, Bytes]
"""Items `start:stop`, and the bytes of the primary that hold them."""


@dataclass
class PartRun:
    """A part in flight."""

    part: Part
    recipe: Recipe
    expected: Receipt | None = None
    """The sink holds it already: it is made once more, from bytes that are proven, and only compared."""
    companions: list[Bytes] = field(default_factory=list)
    losses: Losses = field(default_factory=Losses)
    pulls: bool = False
    """It reads all its ranges itself; nothing is fed."""
    at: int = 0
    """Bytes of the primary that were taken so far."""
    crc: int = 0
    """CRC-32 of those bytes."""
    _queue: SimpleQueue[Fed | None] = field(default_factory=SimpleQueue)

    @property
    def nbytes(self) -> int:
        """Bytes of the primary that the part needs."""
        start, stop = self.recipe.decoder.spans(*self.part.items)[0]
        return stop - start

    def feed(self, start: int, stop: int, block: SharedBlock, offset: int) -> None:
        """Hand over the next bytes; `block` is held until they are written."""
        self._queue.put((start, stop, block.hold(), offset))

    def end(self) -> None:
        """No more will come: the lane stopped."""
        self._queue.put(None)

    def spans(self) -> list[Range]:
        """Absolute byte range of each input, in its file."""
        spans = self.recipe.decoder.spans(*self.part.items)
        return [
            (t.start + a, t.start + b) for t, (a, b) in zip(self.recipe.decoder.inputs, spans, strict=True)
        ]

    def fed(self) -> Generator[Items, None, None]:
        """Items and their primary bytes, as the lane delivers them; blocks are released one by one.

        Raises:
            Stopped: the lane ended before the last byte came.
        """
        with closing(self._taken()) as taken:
            if self.recipe.decoder.held:
                held = np.empty(self.nbytes, np.uint8)
                for start, stop, data in taken:
                    held[start:stop] = data
                yield *self.part.items, held
                return
            first, last = self.part.items
            for start, stop, data in taken:
                yield (
                    first + start * (last - first) // self.nbytes,
                    first + stop * (last - first) // self.nbytes,
                    data,
                )

    def _taken(self) -> Generator[Items, None, None]:
        """Bytes of the primary in order, from the queue."""
        while self.at < self.nbytes:
            entry = self._queue.get()
            if entry is None:
                self.end()  # for `drain`, which looks again
                raise Stopped
            try:
                yield entry[0], entry[1], self._count(entry)
            finally:
                entry[2].release()

    def _count(self, entry: Fed) -> Bytes:
        """The bytes of an entry, entered as taken."""
        start, stop, block, offset = entry
        data = block.data[offset : offset + stop - start]
        self.at, self.crc = stop, zlib.crc32(data.data, self.crc)
        return data

    def drain(self) -> None:
        """Let go of what is still fed."""
        while self.at < self.nbytes and not self.pulls:
            entry = self._queue.get()
            if entry is None:
                return
            self._count(entry)
            entry[2].release()


class PartWriter:
    """Runs parts against one source and one sink; shared by all worker threads."""

    def __init__(
        self, source: Source, sink: Sink, options: Options, block: int, stop: StopFlag, report: Report
    ) -> None:
        self._source, self._sink, self._options = source, sink, options
        self._block, self._stop, self._report = block, stop, report
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
            with closing(self._pulled(run) if run.pulls else run.fed()) as pieces:
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
                return self._attempt(run, opened, self._pulled(run))
            except TensorportError as error:
                failure = error
        raise failure

    def _attempt(self, run: PartRun, writer: Writer, pieces: Iterator[Items]) -> Receipt:
        run.losses = Losses()
        try:
            self._pass_on(run, writer, memoryview(npy.header(run.recipe.dtype, run.part.shape)))
            for start, stop, primary in pieces:
                for view in render(
                    run.recipe,
                    start,
                    stop,
                    self._inputs(run, start, primary),
                    saturate=self._options.on_overflow == "saturate",
                    losses=run.losses,
                ):
                    self._pass_on(run, writer, view)
                if self._stop:
                    raise Stopped
            _check_losses(run, self._options)
            receipt = writer.finish()
        except BaseException:
            writer.abort()
            raise
        if run.expected is None:
            self._report(PartDone(receipt))
        return receipt

    def _pass_on(self, run: PartRun, writer: Writer, view: memoryview) -> None:
        writer.write(view)
        if run.expected is None:
            self._report(BytesWritten(run.part.path, view.nbytes))

    def _inputs(self, run: PartRun, start: int, primary: Bytes) -> Sequence[tuple[Bytes, int]]:
        offsets = run.recipe.decoder.spans(*run.part.items)
        first = run.recipe.decoder.spans(start, start)[0][0]
        held = [(data, offset) for data, (offset, _) in zip(run.companions, offsets[1:], strict=True)]
        return [(primary, first), *held]

    def _read_companions(self, run: PartRun) -> list[Bytes]:
        inputs = run.recipe.decoder.inputs
        return [
            self._read(tensor.file, start, stop)
            for tensor, (start, stop) in zip(inputs[1:], run.spans()[1:], strict=True)
        ]

    def _pulled(self, run: PartRun) -> Generator[Items, None, None]:
        """All items of a part, by reading its own ranges; companions that it was fed are still there.

        Raises:
            SourceError: these bytes are not those that were fed; transient.
        """
        if run.pulls:
            run.companions = self._read_companions(run)
        decoder = run.recipe.decoder
        tensor = decoder.inputs[0]
        grain = decoder.spans(0, decoder.grain)[0][1]
        items = max(1, self._block // grain) * decoder.grain
        if decoder.held:
            items = max(1, run.part.items[1] - run.part.items[0])
        crc = 0
        for start in range(*run.part.items, items):
            stop = min(start + items, run.part.items[1])
            first, last = decoder.spans(start, stop)[0]
            data = self._read(tensor.file, tensor.start + first, tensor.start + last)
            crc = zlib.crc32(data.data, crc)
            yield start, stop, data
        if not run.pulls and crc != run.crc:
            raise SourceError(f"two readings of {tensor} differ", transient=True)

    def _read(self, file: str, start: int, stop: int) -> Bytes:
        data = read_range(self._source, file, start, stop)
        self._report(BytesRead(file, stop - start))
        return data


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


def read_range(source: Source, file: str, start: int, stop: int) -> Bytes:
    """A range in a buffer of its own."""
    buffer = np.empty(stop - start, np.uint8)
    source.read_into(file, start, buffer.data)
    return buffer


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
