"""What is read when: the walks of all files, and what parts read themselves.

Each file is walked once from its first byte to its last, so that its sha256 can be taken as the bytes pass
(see `walk`). What a walk feeds is a whole part, or a tile of a held one (see `tiles`). The other tiles, parts
that can't tell beforehand which of the primary's bytes are theirs, and stacked experts are *pulled*: read by
who decodes.

All of it is decided before the first byte, so a plan can say how many bytes will be read twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

from tensorport_hub.core.decode.decoder import Decoder
from tensorport_hub.core.decode.stacked import Stacked, members
from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.layout import Part
from tensorport_hub.core.plan import Plan
from tensorport_hub.core.progress import Remaining
from tensorport_hub.core.ranges import Range, coalesce
from tensorport_hub.core.strips import Strip
from tensorport_hub.core.tiles import Tile, cut_tiles, fresh, group, member_tiles
from tensorport_hub.core.walk import Use, Walk, Walker


@dataclass
class _Uses:
    """What is made from the primaries of one file."""

    fed: list[Use] = field(default_factory=list)
    unfed: list[Part] = field(default_factory=list)
    together: list[tuple[Part, ...]] = field(default_factory=list)
    pulled: list[tuple[str, Strip]] = field(default_factory=list)


class Schedule:
    """The walks of a plan's files, each computed when asked for.

    Args:
        plan: what is to be made.
        left: the files to walk and the parts to make of them.
        block: bytes to fetch at a time, but never less than one unit.
        keep: bytes of companions that each walk may keep.
        room: bytes that held parts may hold; where files hold several tensors, one that is made again needs
            half of them.

    Attributes:
        room: bytes that the parts of walks may hold.
    """

    def __init__(self, plan: Plan, left: Remaining, *, block: int, keep: int, room: int) -> None:
        self._plan, self._left = plan, left
        self._block, self._keep = block, keep
        self.room = room // 2 if plan.is_ordered else room
        self._tiles: dict[int, tuple[Tile, ...]] = {}

    @cached_property
    def _parts(self) -> Mapping[str, Sequence[Part]]:
        """What is made from primaries of each file."""
        found: dict[str, list[Part]] = defaultdict(list)
        for part in self._left.parts:
            found[self._plan.recipes[part.recipe].decoder.inputs[0].file].append(part)
        return found

    def _uses(self, path: str) -> _Uses:
        """The uses of a file. They take more room than the plan, so they are made when they are needed."""
        here = _Uses()
        walked: set[str] = set()
        for number, found in groupby(self._parts.get(path, ()), key=lambda part: part.recipe):
            decoder, parts = self._plan.recipes[number].decoder, [*found]
            here.unfed += [part for part in parts if part.items[0] == part.items[1]]
            parts = [part for part in parts if part.items[0] < part.items[1]]
            primary = decoder.inputs[0].name
            if isinstance(decoder, Stacked) or primary in walked:
                self._use_pulled(decoder, parts, here)
            elif decoder.held:
                self._use_held(parts, here)
            elif decoder.indexed and (len(parts) > 1 or not decoder.inputs[0].nbytes):
                self._use_indexed(parts, here)
            else:
                here.fed += [self._use(part) for part in parts]
            walked.add(primary)
        return here

    def _needs(self, part: Part, needs: Sequence[Strip]) -> list[tuple[int, str, Strip]]:
        """The inputs of a decoder by their numbers, with their place in their files."""
        inputs = self._plan.recipes[part.recipe].decoder.inputs
        return [(i, t.file, n.moved(t.start)) for i, (t, n) in enumerate(zip(inputs, needs, strict=True))]

    def _use(self, part: Part) -> Use:
        decoder = self._plan.recipes[part.recipe].decoder
        (_, _, primary), *companions = self._needs(part, decoder.needs(*part.items))
        return Use(part, 0, primary.start, primary.stop, decoder.unit, tuple(companions), held=False)

    def _use_held(self, parts: Sequence[Part], here: _Uses) -> None:
        tiles = {}
        for part in parts:
            decoder = self._plan.recipes[part.recipe].decoder
            tiles[part.index] = cut_tiles(decoder, part.items, self.room)
        # one at a time where they are written in order: who waits for its turn must not wait to be fed
        together = group(parts, tiles, 0 if self._plan.is_ordered else self.room)
        here.together += map(tuple, together)
        here.unfed += [part for part in parts if not any(tile.fed for tile in tiles[part.index])]
        for part in parts:
            for number, (tile, inputs) in enumerate(fresh(tiles[part.index])):
                needs = [need for need in self._needs(part, tile.needs) if need[0] in inputs]
                if tile.fed:
                    (_, _, primary), *companions = needs
                    here.fed.append(Use(part, number, *primary.region, 1, tuple(companions), held=True))
                else:
                    here.pulled += [(file, strip) for _, file, strip in needs]
        self._tiles |= tiles

    def _use_pulled(self, decoder: Decoder, parts: Sequence[Part], here: _Uses) -> None:
        """Parts that read all that they need: of experts that lie where they will, or the second half (up)
        of rows whose first half (gate) is fed, where one must be written before the other.
        """
        here.unfed += parts
        for part in parts:
            for member in members(decoder, *part.items):
                tensors = member.decoder.inputs
                for tile, new in fresh(member_tiles(member, self.room)):
                    here.pulled += [(tensors[i].file, tile.needs[i].moved(tensors[i].start)) for i in new]

    def _use_indexed(self, parts: Sequence[Part], here: _Uses) -> None:
        """Parts whose bytes of the primary follow one another, nobody knows yet where they meet."""
        here.unfed += parts
        for part in parts:
            decoder = self._plan.recipes[part.recipe].decoder
            (_, file, primary), *companions = self._needs(part, decoder.needs(*part.items))
            here.pulled += [(file, strip) for _, file, strip in companions]
            if part is parts[0]:
                here.pulled.append((file, primary))

    @cached_property
    def from_elsewhere(self) -> Mapping[str, set[Strip]]:
        """What parts whose primary lies in another file need of each file."""
        found: dict[str, set[Strip]] = defaultdict(set)
        for path in self._parts:
            uses = self._uses(path)
            companions = [(file, strip) for use in uses.fed for _, file, strip in use.companions]
            for file, strip in [*companions, *uses.pulled]:
                if file != path:
                    found[file].add(strip)
        return found

    def tiles(self, part: Part) -> tuple[Tile, ...]:
        """Those of a held part that a walk which was asked for has."""
        return self._tiles.get(part.index, ())

    def walk(self, file: SourceFile) -> Walk:
        """How `file` is read. Under `auto` it is read whole where every tensor of it is wanted."""
        uses = self._uses(file.path)
        fed = sorted(uses.fed, key=lambda use: (use.start, use.part.index, use.tile))
        walker = Walker(file.path, fed, self._plan.read_whole, self._keep)
        blocks, kept = walker.walk(file, self._block)
        pulled = (*uses.pulled, *walker.pulled)
        here = {strip for path, strip in pulled if path == file.path} | self.from_elsewhere.get(
            file.path, set()
        )
        here |= {c.strip for b in blocks for c in b.companions if c.how == "apart" and c.file == file.path}
        return Walk(
            file,
            file.path in self._plan.read_whole,
            tuple(blocks),
            tuple(sorted(uses.unfed, key=lambda part: part.index)),
            tuple(uses.together),
            kept,
            pulled,
            tuple(sorted(here, key=lambda strip: strip.start)),
        )

    def bytes_read(self) -> int:
        """Bytes that all walks and parts ask the source for."""
        return sum(self.walk(file).bytes_read for file in self._left.files)

    def bytes_again(self) -> int:
        """The part of them that was asked for before."""
        whole = {file.path for file in self._left.files} & self._plan.read_whole
        once = sum(file.size for file in self._left.files if file.path in whole)
        ranges: dict[str, list[Range]] = defaultdict(list)
        read = 0
        for walk in map(self.walk, self._left.files):
            read += walk.bytes_read
            if not walk.whole:
                ranges[walk.file.path] += [(block.start, block.stop) for block in walk.blocks]
            for file, strip in walk.beside:
                if file not in whole:
                    ranges[file] += strip.reads(max(strip.asked, 1))
        once += sum(stop - start for found in ranges.values() for start, stop in coalesce(found))
        return read - once
