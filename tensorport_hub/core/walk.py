"""One source file's order of reading: its blocks, what each is for, and how companions come.

A *block* is what is fetched at a time. Blocks are cut where a decoder can stop: at a multiple of its unit. A
part's *companions* (scales) are needed with its first block, wherever they lie:

- `ahead` in the same file: read early and kept until the walk reaches them;
- `inside` that very block: nothing to read;
- `behind`: kept when the walk passed them;
- `apart`: in another file, or more than may be kept: read by range, and again by that file's walk.

The rows that a companion is cut from come once, for all parts that need some of them at the same time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Literal

from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.layout import Part
from tensorport_hub.core.ranges import Range, coalesce
from tensorport_hub.core.strips import GAP, Strip

How = Literal["ahead", "inside", "behind", "apart"]


@dataclass(frozen=True, slots=True)
class Companion:
    """What a part needs of `file` beside its primary, as its decoder's input `number`, and how it comes.

    By all ways but `apart`, the rows that the strip is cut from come whole: bytes `start:stop`. `last`: no
    other companion comes from them.
    """

    part: Part
    number: int
    file: str
    strip: Strip
    how: How
    last: bool = True

    @property
    def start(self) -> int:
        return self.strip.region[0]

    @property
    def stop(self) -> int:
        return self.strip.region[1]


@dataclass(frozen=True, slots=True)
class Piece:
    """A block's bytes from `offset` on are bytes `start:stop` of the rows that a part needs of its primary.

    Attributes:
        tile: of a held part, the tile that they are for.
        companions: with the first of these bytes, what must be there before they are decoded.
    """

    part: Part
    tile: int
    start: int
    stop: int
    offset: int
    companions: tuple[Companion, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """Bytes `start:stop` of the file.

    Attributes:
        pieces: what they are for, in file order; a part's first piece starts at its first item.
        retain: companions of later blocks that lie in this one, or begin or end in it.
    """

    start: int
    stop: int
    pieces: tuple[Piece, ...]
    retain: tuple[Range, ...]

    @property
    def companions(self) -> tuple[Companion, ...]:
        """Those of all pieces."""
        return tuple(companion for piece in self.pieces for companion in piece.companions)


@dataclass(frozen=True)
class Walk:
    """One source file: whether it is read whole, and its blocks in order.

    Attributes:
        unfed: parts without any items, or that read all that they need themselves, in plan order.
        together: held parts that are fed the same rows, and take their room at once.
        kept: bytes of companions that may be held at once.
        pulled: what parts read themselves, and from which file.
        read_beside: what is read of this very file besides its walk, by whatever part, in order.
    """

    file: SourceFile
    whole: bool
    blocks: tuple[Block, ...]
    unfed: tuple[Part, ...]
    together: tuple[tuple[Part, ...], ...]
    kept: int
    pulled: tuple[tuple[str, Strip], ...]
    read_beside: tuple[Strip, ...]

    @property
    def beside(self) -> Iterator[tuple[str, Strip]]:
        """What is read besides the blocks."""
        yield from ((c.file, c.strip) for b in self.blocks for c in b.companions if c.how == "apart")
        yield from self.pulled

    @property
    def bytes_read(self) -> int:
        """All bytes that the walk and its parts ask the source for."""
        return sum(b.stop - b.start for b in self.blocks) + sum(strip.asked for _, strip in self.beside)


@dataclass(frozen=True, slots=True)
class Use:
    """What a part, or one of its tiles, is fed of the file, and the companions that it comes with."""

    part: Part
    tile: int
    start: int
    stop: int
    unit: int
    companions: tuple[tuple[int, str, Strip], ...]
    held: bool


class Walker:
    """Cuts one file into blocks and decides for each companion how it comes."""

    def __init__(self, path: str, uses: Sequence[Use], whole: frozenset[str], keep: int) -> None:
        self.path, self.uses, self.whole, self.keep = path, uses, whole, keep
        self.ahead: list[tuple[int, int]] = []  # (stop, start) of what is read early: a heap
        self.early: set[Range] = set()  # the same
        self.ahead_nbytes = self.most_ahead = 0
        self.read_early: dict[tuple[int, int], list[Range]] = defaultdict(list)  # by recipe and input
        self.pulled: list[tuple[str, Strip]] = []
        self.retained = self._choose_retained() if path in whole else Counter()

    def _choose_retained(self) -> Counter[Range]:
        """Companions that lie before their part, as many as half of what may be kept, and how often each."""
        chosen: Counter[Range] = Counter()
        room = self.keep // 2
        for use in self.uses:
            for _, file, strip in use.companions:
                start, stop = strip.region
                if file != self.path or stop > use.start:
                    continue
                if (start, stop) not in chosen:
                    if stop - start > room:
                        continue
                    room -= stop - start
                chosen[start, stop] += 1
        return chosen

    def walk(self, file: SourceFile, size: int) -> tuple[list[Block], int]:
        """The blocks, and the most bytes of companions that are kept at once."""
        ranges = [(0, file.size)]
        if self.path not in self.whole:
            ranges = coalesce([(use.start, use.stop) for use in self.uses], gap=GAP)
        retained = sorted(self.retained)
        kept: set[Range] = set()
        blocks = []
        at = behind = 0
        for start, stop in _cuts(ranges, self.uses, size):
            while at < len(self.uses) and self.uses[at].stop <= start:
                at += 1
            while behind < len(retained) and retained[behind][1] <= start:
                behind += 1
            pieces = []
            for use in _overlapping(self.uses, at, start, stop):
                first, last = max(start, use.start), min(stop, use.stop)
                companions = tuple(self._companions(use, start, stop)) if first == use.start else ()
                offsets = (first - use.start, last - use.start, first - start)
                pieces.append(Piece(use.part, use.tile, *offsets, companions))
            retain = tuple(self._retain(retained, behind, start, stop))
            kept.update(retain)
            blocks.append(Block(start, stop, tuple(pieces), retain))
            while self.ahead and self.ahead[0][0] <= stop:
                last, first = heappop(self.ahead)
                self.early.discard((first, last))
                self.ahead_nbytes -= last - first
        return blocks, self.most_ahead + sum(stop - start for start, stop in kept)

    def _companions(self, use: Use, start: int, stop: int) -> Iterator[Companion]:
        for number, file, strip in use.companions:
            region = strip.region
            retained = file == self.path and region[1] <= use.start and region in self.retained
            how = self._how(use, number, file, region, start, stop)
            if how == "apart" and use.held:
                self.pulled.append((file, strip))
                continue
            if retained:
                self.retained[region] -= 1
            last = not self.retained[region]
            if how == "inside" and retained and last:
                del self.retained[region]
            yield Companion(use.part, number, file, strip, how, last)

    def _how(self, use: Use, number: int, file: str, region: Range, start: int, stop: int) -> How:
        first, last = region
        if file != self.path:
            return "apart"
        if start <= first and last <= stop:
            return "inside"
        if last <= use.start and region in self.retained:
            return "behind"
        if region in self.early:
            return "ahead"
        read = self.read_early[use.part.recipe, number]
        overlaps = any(a < last and first < b for a, b in read)  # neighbours that share a row of scales
        if file not in self.whole or first < stop or overlaps or not self._fits(last - first):
            return "apart"
        heappush(self.ahead, (last, first))
        self.early.add(region)
        read.append(region)
        self.ahead_nbytes += last - first
        self.most_ahead = max(self.most_ahead, self.ahead_nbytes)
        return "ahead"

    def _fits(self, nbytes: int) -> bool:
        return self.ahead_nbytes + nbytes <= self.keep - self.keep // 2

    def _retain(self, retained: Sequence[Range], behind: int, start: int, stop: int) -> Iterator[Range]:
        """What later blocks need of the block `start:stop`; `retained` is sorted."""
        for i in range(behind, len(retained)):
            if retained[i][0] >= stop:
                return
            if retained[i] in self.retained and retained[i][1] > start:
                yield retained[i]


def _overlapping(uses: Sequence[Use], at: int, start: int, stop: int) -> Iterator[Use]:
    for i in range(at, len(uses)):
        if uses[i].start >= stop:
            return
        if uses[i].stop > start:
            yield uses[i]


def _cuts(ranges: Sequence[Range], uses: Sequence[Use], block: int) -> Iterator[Range]:
    """Cut `ranges` into blocks; a cut inside a primary falls on a multiple of its unit."""
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
                whole_units = (stop - use.start) // use.unit * use.unit + use.start
                stop = whole_units if whole_units > begin else begin if begin > start else start + use.unit
                stop = min(stop, last)
            yield start, stop
            start = stop
