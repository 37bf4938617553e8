"""Held parts on their way: one tile after another is gathered and decoded.

The lane gathers the tiles that the walk passes: it copies a tile's strip out of each block and lets the block
go, so several parts can be fed the same rows. It begins a tile when the one before is decoded, and a worker
begins with the part when the first one is complete. What the lane does not bring, the worker reads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence

import numpy as np

from tensorport_hub.core.decode.decoder import Bytes, Decoder
from tensorport_hub.core.layout import Part
from tensorport_hub.core.strips import gather
from tensorport_hub.core.tiles import Tile
from tensorport_hub.core.walk import Piece
from tensorport_hub.engine.blocks import SharedBlock, StopFlag, Stopped
from tensorport_hub.engine.feed import Bring, Items, PartRun
from tensorport_hub.engine.reader import Reader
from tensorport_hub.engine.witness import Witness


class Tiled(PartRun):
    """A part of a held layout: at most one tile's bytes are there at a time."""

    def __init__(
        self,
        part: Part,
        decoder: Decoder,
        tiles: Sequence[Tile],
        witness: Witness,
        stop: StopFlag,
        *,
        pulls: bool = False,
    ) -> None:
        super().__init__(part, decoder)
        self.holds = max((tile.nbytes for tile in tiles), default=0)
        self._tiles, self._witness, self._stop = tiles, witness, stop
        self._to_feed = deque(
            number for number, tile in enumerate(tiles) if tile.fed and not pulls
        )  # the lane's
        self._to_come = self._to_feed.copy()  # the worker's
        self._at = 0
        """The tile that the bytes belong to."""
        self._inputs: list[Bytes | None] = [None] * len(decoder.inputs)
        self._complete = self._ended = False
        self._changed = threading.Condition()

    def feed(self, piece: Piece, bring: Bring, block: SharedBlock) -> bool:
        need = self._tiles[piece.tile].needs[0]
        if piece.start == 0:
            self._wait(lambda: self._at == piece.tile)
            self._inputs[0] = np.empty(need.nbytes, np.uint8)
            for number, data in bring().items():
                self._inputs[number] = data
        into = self._inputs[0]
        assert into is not None
        data = block.data[piece.offset : piece.offset + piece.stop - piece.start]
        gather(need, into, data, need.region[0] + piece.start)
        if need.region[0] + piece.stop < need.region[1]:
            return False
        with self._changed:
            self._complete = True
            self._changed.notify_all()
        self._to_feed.popleft()
        return piece.tile == 0

    @property
    def is_fed(self) -> bool:
        return not self._to_feed

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _wait(self, ready: Callable[[], bool]) -> None:
        with self._changed:
            while not ready():
                if self._ended or self._stop:
                    raise Stopped
                self._changed.wait(0.2)

    def pieces(self, reader: Reader) -> Generator[Items, None, None]:
        for number, tile in enumerate(self._tiles):
            self._move(number)
            if number in self._to_come:
                self._receive()
            inputs = [*zip(self._read(reader), tile.needs, strict=True)]
            yield Items(self.decoder, tile.start, tile.start, tile.stop, inputs)
            inputs.clear()  # whoever took the items may still hold them: the next tile needs the room

    def drain(self) -> None:
        try:
            while self._to_come:
                self._move(self._to_come[0])
                self._receive()
        except Stopped:
            return

    def let_go(self) -> None:
        self._inputs.clear()

    def _move(self, number: int) -> None:
        """Go to a tile; what it needs just as the last one did stays."""
        if number == self._at:
            return
        old, new = self._tiles[self._at].needs, self._tiles[number].needs
        with self._changed:
            for i, data in enumerate(self._inputs):
                self._inputs[i] = data if old[i] == new[i] else None
            self._at, self._complete = number, False
            self._changed.notify_all()

    def _receive(self) -> None:
        """Wait for the tile that the lane brings next."""
        self._wait(lambda: self._complete)
        tile = self._tiles[self._to_come.popleft()]
        for tensor, need, data in zip(self.decoder.inputs, tile.needs, self._inputs, strict=True):
            if data is not None:
                self._witness.read(tensor.file, need.moved(tensor.start), data)

    def _read(self, reader: Reader) -> list[Bytes]:
        """The bytes of this tile; those that are not there are read."""
        found = []
        pairs = zip(self.decoder.inputs, self._tiles[self._at].needs, strict=True)
        for i, (tensor, need) in enumerate(pairs):
            data = self._inputs[i]
            if data is None:
                data = self._inputs[i] = reader.strip(tensor.file, need.moved(tensor.start))
            found.append(data)
        return found
