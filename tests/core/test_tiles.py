"""Tiles of held parts: they cover the part, fit the room, and take no more of it than they need."""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.decode.decoder import Decoder
from tensorport_hub.core.decode.hqq import Hqq
from tensorport_hub.core.demand import _NOTED, demand
from tensorport_hub.core.layout import Part, Target
from tensorport_hub.core.tiles import Tile, cut_tiles, fresh, group
from tests.core.samples import Stored, plan_of, specs


def gptq(rows: int = 40, lead: tuple[int, ...] = ()) -> list[Stored]:
    """4 bits, 64 columns in groups of 16."""
    return [
        ("w.qweight", "I32", (*lead, 8, rows)),
        ("w.qzeros", "I32", (*lead, 4, rows // 8)),
        ("w.scales", "F16", (*lead, 4, rows)),
        ("w.g_idx", "I32", (64,)),
    ]


def decoder_of(stored: list[Stored]) -> Decoder:
    (recipe,) = plan_of({"m.safetensors": stored}).recipes
    return recipe.decoder


def hqq() -> Decoder:
    """4 bits of 32 x 24 in groups of 8: both halves of the rows from the same words."""
    stored = specs([("q", "U8", (48, 8)), ("s", "BF16", (96, 1)), ("z", "BF16", (96, 1))])
    return Hqq(*stored, dims="32,24", nbits=4, group_size=8, axis=1, compute="BF16")


DECODERS = {
    "gptq": decoder_of(gptq()),
    "experts": decoder_of(gptq(16, (3,))),
    "hqq": hqq(),
}
"""Each with rows of an even number of bytes."""


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(sorted(DECODERS)), rows=st.data(), share=st.floats(0, 1.1))
def test_tiles_cover_a_part_and_fit(name, rows, share):
    """They follow one another at grains, inside panels, within the room, and could not end later."""
    decoder = DECODERS[name]
    width = decoder.shape[-1]
    edges = rows.draw(st.lists(st.integers(0, decoder.items // width), min_size=2, max_size=2, unique=True))
    start, stop = (row * width for row in sorted(edges))
    least = max(
        sum(n.nbytes for n in decoder.needs(at, at + decoder.grain))
        for at in range(0, decoder.items, decoder.grain)
    )
    room = least + int(share * sum(tensor.nbytes for tensor in decoder.inputs))
    tiles = cut_tiles(decoder, (start, stop), room)
    assert (tiles[0].start, tiles[-1].stop) == (start, stop)
    assert all(before.stop == after.start for before, after in pairwise(tiles))
    for tile in tiles:
        assert tile.start < tile.stop
        assert tile.start // decoder.panel == (tile.stop - 1) // decoder.panel
        assert tile.needs == decoder.needs(tile.start, tile.stop)
        assert tile.nbytes <= room
        end = min((tile.start // decoder.panel + 1) * decoder.panel, stop)
        if tile.stop < end:
            more = decoder.needs(tile.start, min(tile.stop + decoder.grain, end))
            assert sum(need.nbytes for need in more) > room
    assert len(cut_tiles(decoder, (start, stop))) == len({at // decoder.panel for at in range(start, stop)})


def test_an_input_that_stays_is_not_fresh():
    """The order of columns is needed by all tiles, the rest by its own."""
    tiles = cut_tiles(DECODERS["gptq"], (0, 40 * 64), 700)
    assert len(tiles) > 2
    assert [inputs for _, inputs in fresh(tiles)] == [[0, 1, 2, 3], *[[0, 1, 2]] * (len(tiles) - 1)]


def parts_of(decoder: Decoder, cuts: list[int]) -> list[Part]:
    width = decoder.shape[-1]
    return [
        Part(i, 0, (a, b), (a * width, b * width), (Target(i, 0),)) for i, (a, b) in enumerate(pairwise(cuts))
    ]


@pytest.mark.parametrize(
    ("name", "cuts", "room", "groups", "fed"),
    [
        ("gptq", [0, 40], 10_000, [[0]], [[True]]),
        ("gptq", [0, 40], 1_300, [[0]], [[True, False]]),
        ("gptq", [0, 16, 40], 10_000, [[0, 1]], [[True], [True]]),
        ("gptq", [0, 16, 40], 1_400, [[0]], [[True], [False]]),
        ("experts", [0, 32, 48], 1_200, [[0], [1]], [[True, True], [True]]),
        ("hqq", [0, 32], 10_000, [[0]], [[True]]),
        ("hqq", [0, 32], 600, [[0]], [[True, False]]),
        ("hqq", [0, 8, 16, 24, 32], 10_000, [[0, 2], [1, 3]], [[True]] * 4),
        ("hqq", [0, 8, 16, 24, 32], 300, [[0], [1]], [[True], [True], [False], [False]]),
    ],
)
def test_what_a_walk_feeds(name, cuts, room, groups, fed):
    """Parts that need the same rows together as far as they fit; tiles whose rows come after those before."""
    decoder = DECODERS[name]
    parts = parts_of(decoder, cuts)
    tiles: dict[int, tuple[Tile, ...]] = {p.index: cut_tiles(decoder, p.items, room) for p in parts}
    found = group(parts, tiles, room)
    assert [[part.index for part in together] for together in found] == groups
    assert [[tile.fed for tile in tiles[part.index]] for part in parts] == fed


def test_what_a_plan_demands():
    """The largest tile, the largest grain and its tensor; companions of what is decoded as it comes."""
    pair = [("x_blocks", "U8", (4, 1, 2, 16)), ("x_scales", "U8", (4, 1, 2))]
    plan = plan_of({"m.safetensors": [*gptq(), *pair]})
    found = demand(plan)
    held = 8 * 40 * 4 + 4 * 5 * 4 + 4 * 40 * 2 + 64 * 4
    assert (found.beside, found.most, found.tensor) == (8, held, "w.weight")
    assert found.least == 8 * 4 + 4 * 4 + 4 * 2 + 64 * 4
    nothing = demand(replace(plan, outputs=()))
    assert (nothing.beside, nothing.most, nothing.least, nothing.tensor) == (0, 0, 0, "")


def test_what_a_plan_itself_takes():
    """As many bytes as its objects have is what is reckoned with, and not much more."""
    gc.collect()
    tracemalloc.start()
    plan = plan_of({"m.safetensors": [(f"model.layers.{i}.weight", "BF16", (8, 8)) for i in range(3000)]})
    assert len(plan.parts) == 3000
    gc.collect()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    reckoned = demand(plan).noted - _NOTED * len(plan.outputs)
    assert 0.5 * reckoned < taken < reckoned
