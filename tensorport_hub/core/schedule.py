"""In what order a source file's bytes are read.

Each file is walked once from its first byte to its last, so that its sha256 can be taken as the bytes pass;
a *block* is what is fetched at a time. Blocks are cut where a decoder can stop: at a multiple of its grain.
A part's *companions* (scales) are needed with its first block, wherever they lie:

- `ahead` in the same file: read early and kept until the walk reaches them;
- `inside` that very block: nothing to read;
- `behind`: kept when the walk passed them;
- `apart`: in another file, or more than may be kept: read by range, and again by that file's walk.

All of it is decided before the first byte, so a plan can say how many bytes will be read twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush
from typing import Literal

from tensorport_hub.core.journal import Remaining
from tensorport_hub.core.plan import Part, Plan, WeightFile
from tensorport_hub.core.ranges import Range, coalesce

_GAP = 64 * 1024
"""Bytes that are rather read than asked around, where a file is not read whole."""


@dataclass(frozen=True)
class Piece:
    """A block's bytes from `offset` on are bytes `start:stop` of what a part needs of its primary."""

    part: Part
    start: int
    stop: int
    offset: int


@dataclass(frozen=True)
class Companion:
    """The bytes `start:stop` of `file` that a part needs beside its primary, and how they come."""

    part: Part
    file: str
    start: int
    stop: int
    how: Literal["ahead", "inside", "behind", "apart"]


@dataclass(frozen=True)
class Block:
    """Bytes `start:stop` of the file.

    Attributes:
        pieces: what they are for, in file order; a part's first piece starts at its first item.
        companions: what must be there before the pieces are decoded.
        retain: ranges of this block that later blocks' companions need.
    """

    start: int
    stop: int
    pieces: tuple[Piece, ...]
    companions: tuple[Companion, ...]
    retain: tuple[Range, ...]


@dataclass(frozen=True)
class Walk:
    """One source file: whether it is read whole, and its blocks in order.

    Attributes:
        empty: parts without any bytes to read.
        apart: parts that read all their ranges themselves: held ones whose bytes another part is fed.
        bytes_again: bytes that are read a second time, here or in another file.
        kept: bytes of companions that may be held at once.
        bytes_apart: what the parts of `apart` read.
    """

    file: WeightFile
    whole: bool
    blocks: tuple[Block, ...]
    empty: tuple[Part, ...]
    apart: tuple[Part, ...]
    bytes_again: int
    kept: int
    bytes_apart: int

    @property
    def bytes_read(self) -> int:
        """All bytes that the walk asks the source for."""
        apart = sum(c.stop - c.start for b in self.blocks for c in b.companions if c.how == "apart")
        return sum(b.stop - b.start for b in self.blocks) + apart + self.bytes_apart


@dataclass(frozen=True)
class _Use:
    """A part's primary range in the file, and the ranges of its companions."""

    part: Part
    start: int
    stop: int
    grain: int
    companions: tuple[tuple[str, int, int], ...]
    apart: bool

    @property
    def nbytes(self) -> int:
        return self.stop - self.start + sum(stop - start for _, start, stop in self.companions)


class Schedule:
    """The walks of a plan's files, each computed when asked for.

    Args:
        plan: what is to be made.
        left: the files to walk and the parts to make of them.
        block: bytes to fetch at a time, but never less than one grain.
        keep: bytes of companions that each walk may keep.
    """

    def __init__(self, plan: Plan, left: Remaining, *, block: int, keep: int) -> None:
        self._plan, self._left, self._block, self._keep = plan, left, block, keep

    @cached_property
    def _uses(self) -> dict[str, list[_Use]]:
        uses: dict[str, list[_Use]] = {file.path: [] for file in self._plan.files}
        wanted = self._left.make | self._left.prove
        for part in self._plan.parts:
            if part.index in wanted:
                uses[self._plan.recipes[part.recipe].decoder.inputs[0].file].append(_use(self._plan, part))
        return uses

    def walk(self, file: WeightFile) -> Walk:
        """How `file` is read. Under `auto` it is read whole where every tensor of it is wanted."""
        uses = sorted(self._uses[file.path], key=lambda use: (use.start, use.part.index))
        empty = tuple(use.part for use in uses if use.start == use.stop)
        filled = [use for use in uses if use.start < use.stop]
        fed = [use for use in filled if not use.apart]
        walker = _Walker(file.path, fed, self._plan.read_whole, self._keep)
        return walker.walk(file, empty, [use for use in filled if use.apart], self._block)

    def bytes_again(self) -> int:
        """Bytes that order forces to be read twice."""
        return sum(self.walk(file).bytes_again for file in self._left.files)

    def bytes_read(self) -> int:
        """Bytes that all walks ask the source for."""
        return sum(self.walk(file).bytes_read for file in self._left.files)


def _use(plan: Plan, part: Part) -> _Use:
    decoder = plan.recipes[part.recipe].decoder
    ranges = [
        (tensor.file, tensor.start + start, tensor.start + stop)
        for tensor, (start, stop) in zip(decoder.inputs, decoder.spans(*part.items), strict=True)
    ]
    first, last = decoder.spans(0, decoder.grain)[0]
    grain = 1 if decoder.held else last - first
    apart = decoder.held and part.rows[0] > 0
    return _Use(part, ranges[0][1], ranges[0][2], grain, tuple(ranges[1:]), apart)


class _Walker:
    """Cuts one file into blocks and decides for each companion how it comes."""

    def __init__(self, path: str, uses: Sequence[_Use], whole: frozenset[str], keep: int) -> None:
        self.path, self.uses, self.whole, self.keep = path, uses, whole, keep
        self.again = 0
        self.ahead: list[tuple[int, int]] = []  # (stop, start) of what is read early: a heap
        self.ahead_nbytes = self.most_ahead = 0
        self.retained = self._choose_retained() if path in whole else set()

    def _choose_retained(self) -> set[Range]:
        """Companions that lie before their part, as many as half of what may be kept."""
        chosen: set[Range] = set()
        room = self.keep // 2
        for use in self.uses:
            for file, start, stop in use.companions:
                if file == self.path and stop <= use.start and stop - start <= room:
                    chosen.add((start, stop))
                    room -= stop - start
        return chosen

    def walk(self, file: WeightFile, empty: tuple[Part, ...], apart: Sequence[_Use], size: int) -> Walk:
        whole = self.path in self.whole
        spans = [(use.start, use.stop) for use in self.uses]
        ranges = [(0, file.size)] if whole else coalesce(spans, gap=_GAP)
        retained = sorted(self.retained)
        blocks = []
        at = behind = 0
        for start, stop in _cuts(ranges, self.uses, size):
            while at < len(self.uses) and self.uses[at].stop <= start:
                at += 1
            while behind < len(retained) and retained[behind][1] <= start:
                behind += 1
            pieces: list[Piece] = []
            companions: list[Companion] = []
            for use in _overlapping(self.uses, at, start, stop):
                first, last = max(start, use.start), min(stop, use.stop)
                pieces.append(_piece(use, first, last, start))
                if first == use.start:
                    companions += self._companions(use, start, stop)
            retain = tuple(self._retain(retained, behind, start, stop))
            blocks.append(Block(start, stop, tuple(pieces), tuple(companions), retain))
            while self.ahead and self.ahead[0][0] <= stop:
                last, first = heappop(self.ahead)
                self.ahead_nbytes -= last - first
        kept = self.most_ahead + sum(b - a for a, b in self.retained)
        pulled = sum(use.nbytes for use in apart)
        return Walk(
            file,
            whole,
            tuple(blocks),
            empty,
            tuple(use.part for use in apart),
            self.again + pulled,
            kept,
            pulled,
        )

    def _companions(self, use: _Use, start: int, stop: int) -> Iterator[Companion]:
        for file, first, last in use.companions:
            how: Literal["ahead", "inside", "behind", "apart"] = "apart"
            if file == self.path and start <= first and last <= stop:
                how = "inside"
                self.retained.discard((first, last))
            elif file == self.path and (first, last) in self.retained:
                how = "behind"
            elif file == self.path and file in self.whole and first >= stop and self._fits(last - first):
                how = "ahead"
                heappush(self.ahead, (last, first))
                self.ahead_nbytes += last - first
                self.most_ahead = max(self.most_ahead, self.ahead_nbytes)
            elif file in self.whole:
                self.again += last - first
            yield Companion(use.part, file, first, last, how)

    def _fits(self, nbytes: int) -> bool:
        return self.ahead_nbytes + nbytes <= self.keep - self.keep // 2

    def _retain(self, retained: Sequence[Range], behind: int, start: int, stop: int) -> Iterator[Range]:
        """Of the block `start:stop`, what later blocks need; `retained` is sorted, no two overlap."""
        for i in range(behind, len(retained)):
            first, last = retained[i]
            if first >= stop:
                return
            if (first, last) in self.retained:
                yield max(first, start), min(last, stop)


def _overlapping(uses: Sequence[_Use], at: int, start: int, stop: int) -> Iterator[_Use]:
    for i in range(at, len(uses)):
        if uses[i].start >= stop:
            return
        if uses[i].stop > start:
            yield uses[i]


def _piece(use: _Use, first: int, last: int, block_start: int) -> Piece:
    return Piece(use.part, first - use.start, last - use.start, first - block_start)


def _cuts(ranges: Sequence[Range], uses: Sequence[_Use], block: int) -> Iterator[Range]:
    """Cut `ranges` into blocks; a cut inside a primary falls on a multiple of its grain."""
    at = 0
    for first, last in ranges:
        start = first
        while start < last:
            stop = min(start + block, last)
            while at < len(uses) and uses[at].stop <= stop:
                at += 1
            if at < len(uses) and uses[at].start < stop:
                use = uses[at]
                begin = max(start, use.start)
                whole_grains = (stop - use.start) // use.grain * use.grain + use.start
                stop = whole_grains if whole_grains > begin else begin if begin > start else start + use.grain
                stop = min(stop, last)
            yield start, stop
            start = stop
