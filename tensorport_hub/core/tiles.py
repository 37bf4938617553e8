"""How parts of held layouts are cut into tiles: items that are decoded from one gathering of bytes.

A tile needs a strip of each input. A part whose need fits the room that there is has one tile for each of
its panels (experts); one that doesn't is cut into as many rows as fit, and stored bytes are read again for
each further tile. Tiles follow one another, so the output is written in order whatever they are.

A tile is *fed* where the walk of the primary's file passes its rows after those of the tiles before; other
tiles are read by who decodes them. An input that the next tile needs just as it is stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tensorport_hub.core.decode.decoder import Decoder
from tensorport_hub.core.decode.stacked import Member
from tensorport_hub.core.layout import Part
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.strips import Strip


@dataclass(frozen=True)
class Tile:
    """Items `start:stop`, and the strip of each input that they need, from that tensor's first byte."""

    start: int
    stop: int
    needs: tuple[Strip, ...]
    fed: bool = False

    @property
    def nbytes(self) -> int:
        return sum(need.nbytes for need in self.needs)


def cut_tiles(decoder: Decoder, items: Range, room: int | None = None) -> tuple[Tile, ...]:
    """The tiles of a part; None is room for anything. A tile of one grain may be larger than the room."""
    tiles = []
    start, stop = items
    while start < stop:
        end = min(stop, (start // decoder.panel + 1) * decoder.panel)
        if room is not None and _nbytes(decoder, start, end) > room:
            end = _largest(decoder, start, end, room)
        tiles.append(Tile(start, end, decoder.needs(start, end)))
        start = end
    return tuple(tiles)


def member_tiles(member: Member, room: int | None = None) -> tuple[Tile, ...]:
    """The tiles of one of several decoders; one that is decoded as its bytes come has a single one."""
    decoder, items = member.decoder, member.items
    return cut_tiles(decoder, items, room) if decoder.held else (Tile(*items, decoder.needs(*items)),)


def _largest(decoder: Decoder, start: int, stop: int, room: int) -> int:
    """The last item that still fits, by halving: what a range needs grows with it."""
    fits, least = 1, -(-(stop - start) // decoder.grain)  # in grains: `least` does not fit
    while least - fits > 1:
        middle = (fits + least) // 2
        if _nbytes(decoder, start, start + middle * decoder.grain) <= room:
            fits = middle
        else:
            least = middle
    return start + fits * decoder.grain


def _nbytes(decoder: Decoder, start: int, stop: int) -> int:
    return sum(need.nbytes for need in decoder.needs(start, stop))


def fresh(tiles: Sequence[Tile]) -> Iterator[tuple[Tile, list[int]]]:
    """Each tile, and the inputs that the one before it does not leave."""
    before: Tile | None = None
    for tile in tiles:
        yield tile, [i for i, need in enumerate(tile.needs) if before is None or before.needs[i] != need]
        before = tile


def group(parts: Sequence[Part], tiles: dict[int, tuple[Tile, ...]], room: int) -> list[list[Part]]:
    """Parts of one tensor whose first bytes a walk can feed, in its order; together where rows overlap.

    Args:
        tiles: of each part, by its index; those that are fed are marked.
        room: bytes that parts fed together may hold.
    """
    groups: list[list[Part]] = []
    end = free = 0
    for part in sorted(parts, key=lambda part: tiles[part.index][0].needs[0].region):
        marked = _marked(tiles[part.index])
        regions = [tile.needs[0].region for tile in marked if tile.fed]
        nbytes = max(tile.nbytes for tile in marked)
        if not groups or regions[0][0] >= end:
            groups.append([])
            end, free = 0, room
        elif nbytes > free:
            continue
        groups[-1].append(part)
        tiles[part.index] = marked
        end, free = max(end, regions[-1][1]), free - nbytes
    return groups


def _marked(tiles: Sequence[Tile]) -> tuple[Tile, ...]:
    marked, passed = [], -1
    for tile in tiles:
        start, stop = tile.needs[0].region
        fed = start >= passed
        passed = stop if fed else passed
        marked.append(replace(tile, fed=fed))
    return tuple(marked)
