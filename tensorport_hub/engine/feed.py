"""Parts on their way: what the lane feeds them, what they read themselves, and in what order it is decoded.

The lane that walks the primary's file calls `feed`, in order; a worker takes `pieces`, and `drain`s what it
does not want any more. What must be made again is *pulled*: read by who decodes. The walk's sha256 covers
what was fed; the CRC-32 of it, which the witness keeps, proves that the second reading is the same.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np

from tensorport_hub.core.decode.decoder import Bytes, Decoder
from tensorport_hub.core.layout import Part
from tensorport_hub.core.strips import Strip, contiguous
from tensorport_hub.core.walk import Piece
from tensorport_hub.engine.blocks import SharedBlock, Stopped
from tensorport_hub.engine.reader import Reader
from tensorport_hub.engine.witness import Witness


@dataclass(frozen=True)
class Items:
    """Items `start:stop` of a part, which are the same of `decoder` from `first` on, to be decoded.

    `inputs` are, of each input, bytes that hold what they need, and which these are.
    """

    decoder: Decoder
    first: int
    start: int
    stop: int
    inputs: Sequence[tuple[Bytes, Strip]]


Bring = Callable[[], Mapping[int, Bytes]]
"""Gives the companions of a piece by their number."""

Chunk = tuple[int, Bytes]
"""Bytes of the primary, and their place in its tensor."""


class PartRun(ABC):
    """A part in flight: items of a decoder."""

    holds = 0
    """Bytes of the room for held parts that it takes."""

    def __init__(self, part: Part, decoder: Decoder) -> None:
        self.part, self.decoder = part, decoder

    @abstractmethod
    def feed(self, piece: Piece, bring: Bring, block: SharedBlock) -> bool:
        """Hand over the next bytes, and with a first piece its companions.

        Returns:
            Whether they are the first ones that a worker can begin with.
        """

    @property
    @abstractmethod
    def is_fed(self) -> bool:
        """The walk has no more for it."""

    @abstractmethod
    def end(self) -> None:
        """No more will come: the lane stopped."""

    @abstractmethod
    def pieces(self, reader: Reader) -> Generator[Items, None, None]:
        """All items, in order, as they come or by reading them.

        Raises:
            SourceError: bytes are not those that were there before; transient.
            Stopped: the run ended before the last byte came.
        """

    @abstractmethod
    def drain(self) -> None:
        """Take what is still fed, for nothing."""

    @abstractmethod
    def let_go(self) -> None:
        """It is over: its bytes are not needed any more."""


class Streamed(PartRun):
    """A part that is decoded as its bytes come; blocks are released one by one.

    Attributes:
        pulls: it reads all that it needs itself.
        at: bytes of the primary that were taken so far.
        crc: CRC-32 of those bytes.
    """

    def __init__(self, part: Part, decoder: Decoder, witness: Witness, *, pulls: bool = False) -> None:
        super().__init__(part, decoder)
        self.pulls, self._witness = pulls, witness
        self.at = self.crc = 0
        self._needs = decoder.needs(*part.items)
        self._nbytes = self._needs[0].nbytes
        self._fed = 0
        self._companions: list[Bytes] = []
        self._queue: SimpleQueue[tuple[Piece, SharedBlock] | None] = SimpleQueue()

    def feed(self, piece: Piece, bring: Bring, block: SharedBlock) -> bool:
        """`block` is held until its bytes are decoded."""
        companions = bring()
        self._companions += [companions[number] for number in sorted(companions)]
        self._fed = piece.stop
        self._queue.put((piece, block.hold()))
        return piece.start == 0

    @property
    def is_fed(self) -> bool:
        return self._fed == self._nbytes

    def end(self) -> None:
        self._queue.put(None)

    def pieces(self, reader: Reader) -> Generator[Items, None, None]:
        if self.part.items[0] == self.part.items[1]:
            return
        if self.pulls:
            pairs = [*zip(self.decoder.inputs, self._needs, strict=True)]
            self._companions = [reader.strip(t.file, need.moved(t.start)) for t, need in pairs[1:]]
        self.decoder = self.decoder.settled(self._companions, *self.part.items)
        with closing(self._read(reader) if self.pulls else self._taken()) as chunks:
            yield from self._items(chunks)

    def _items(self, chunks: Iterator[Chunk]) -> Generator[Items, None, None]:
        """The items that are whole with each chunk; a row that isn't waits for the next one."""
        decoder = self.decoder
        companions = [*zip(self._companions, self._needs[1:], strict=True)]
        start, stop = self.part.items
        left = np.empty(0, np.uint8)
        for at, data in chunks:
            if left.size:
                at, data = at - left.size, np.concatenate([left, data])
            used, reached = at, min(decoder.reached(at + data.size), stop)
            if start < reached:
                inputs = [(data, contiguous(at, at + data.size)), *companions]
                yield Items(decoder, start, start, reached, inputs)
                used, start = decoder.spans(start, reached)[0][1], reached
            left = data[used - at :].copy()

    def _taken(self) -> Generator[Chunk, None, None]:
        """The primary's bytes from the queue."""
        while self.at < self._nbytes:
            entry = self._queue.get()
            if entry is None:
                self.end()  # for `drain`, which looks again
                raise Stopped
            try:
                yield self._needs[0].start + entry[0].start, self._count(*entry)
            finally:
                entry[1].release()

    def _count(self, piece: Piece, block: SharedBlock) -> Bytes:
        """The bytes of an entry, entered as taken."""
        data = block.data[piece.offset : piece.offset + piece.stop - piece.start]
        if piece.start == 0:
            beside = zip(self.decoder.inputs[1:], self._needs[1:], self._companions, strict=True)
            for tensor, need, companion in beside:
                self._witness.read(tensor.file, need.moved(tensor.start), companion)
        self.at, self.crc = piece.stop, zlib.crc32(data.data, self.crc)
        if self.at == self._nbytes:
            tensor = self.decoder.inputs[0]
            self._witness.read_as(tensor.file, self._needs[0].moved(tensor.start), self.crc)
        return data

    def _read(self, reader: Reader) -> Generator[Chunk, None, None]:
        """The primary's bytes from the source; one empty chunk where there are none."""
        decoder = self.decoder
        tensor, (start, stop) = decoder.inputs[0], decoder.spans(*self.part.items)[0]
        step = max(1, reader.block // decoder.unit) * decoder.unit
        crc = 0
        for at in range(start, max(stop, start + 1), step):
            data = reader.range(tensor.file, tensor.start + at, tensor.start + min(at + step, stop))
            crc = zlib.crc32(data.data, crc)
            yield at, data
        self._witness.read_as(tensor.file, contiguous(tensor.start + start, tensor.start + stop), crc)

    def drain(self) -> None:
        while self.at < self._nbytes and not self.pulls:
            entry = self._queue.get()
            if entry is None:
                self.end()  # for whoever drains once more
                return
            self._count(*entry)
            entry[1].release()

    def let_go(self) -> None:
        self._companions = []
