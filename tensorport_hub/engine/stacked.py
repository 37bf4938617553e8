"""Experts that are stacked, on their way: one after another is read and decoded, wherever it lies."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace

from tensorport_hub.core.decode.stacked import Member, Stacked
from tensorport_hub.core.layout import Part
from tensorport_hub.core.walk import Piece
from tensorport_hub.engine.blocks import SharedBlock
from tensorport_hub.engine.feed import Bring, Items, PartRun
from tensorport_hub.engine.reader import Reader


class StackedRun(PartRun):
    """A part of stacked experts; nothing feeds it.

    Args:
        pull: makes a part of one expert that reads all that it needs.
        holds: bytes that the largest of them holds.
    """

    def __init__(
        self, part: Part, decoder: Stacked, pull: Callable[[Part, Member], PartRun], holds: int
    ) -> None:
        super().__init__(part, decoder)
        self._members, self._pull, self.holds = decoder.members, pull, holds

    def feed(self, piece: Piece, bring: Bring, block: SharedBlock) -> bool:
        raise AssertionError("experts are read by who decodes them")

    @property
    def is_fed(self) -> bool:
        return True

    def end(self) -> None:
        """Nothing was to come."""

    def pieces(self, reader: Reader) -> Generator[Items, None, None]:
        for member in self._members(*self.part.items):
            run = self._pull(self.part, member)
            with closing(run.pieces(reader)) as pieces:
                for items in pieces:
                    start, stop = items.start + member.first, items.stop + member.first
                    yield replace(items, start=start, stop=stop)
            run.let_go()

    def drain(self) -> None:
        """Nothing was fed."""

    def let_go(self) -> None:
        """Each expert's bytes went with it."""
