"""The order of reading: every walk is replayed here byte by byte, from the blocks' own words alone."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from time import process_time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tensorport_hub.core.layout import lay_out
from tensorport_hub.core.plan import Plan
from tensorport_hub.core.recipe import Recipe
from tensorport_hub.core.schedule import Schedule
from tensorport_hub.core.walk import Companion, Piece, Walk
from tests.core.samples import Stored, plan_of
from tests.fakes import everything

FILES = ["a.safetensors", "b.safetensors", "c.safetensors"]


@st.composite
def plans(draw) -> Plan:
    """Plain and MXFP4 tensors in one to three files, pairs apart or together, some tensors left out."""
    names = FILES[: draw(st.integers(1, 3))]
    files: dict[str, list[Stored]] = {name: [] for name in names}
    for i in range(draw(st.integers(0, 7))):
        if draw(st.booleans()):
            dtype = draw(st.sampled_from(["U8", "BF16", "F32", "F64"]))
            shape = tuple(draw(st.lists(st.integers(0, 12), max_size=2)))
            files[draw(st.sampled_from(names))].append((f"t{i}", dtype, shape))
        else:
            shape = (draw(st.integers(0, 6)), draw(st.integers(1, 2)), draw(st.integers(1, 4)))
            files[draw(st.sampled_from(names))].append((f"t{i}_blocks", "U8", (*shape, 16)))
            files[draw(st.sampled_from(names))].append((f"t{i}_scales", "U8", shape))
    for name in names:
        files[name] = draw(st.permutations(files[name]))
    plan = plan_of(
        files,
        verify_source=draw(st.sampled_from(["auto", "whole", "no"])),
        shard_size=draw(st.sampled_from([700, 10**6])),
    )
    kept = [recipe for recipe in plan.recipes if draw(st.integers(0, 9))]
    return without(plan, kept)


def without(plan: Plan, kept: list[Recipe], shard_size: int | None = None) -> Plan:
    """The plan of `kept` recipes only; files that lose tensors are partial."""
    lost = [t.file for r in plan.recipes if r not in kept for t in r.decoder.inputs if t.nbytes]
    outputs = lay_out(kept, shard_size=shard_size or plan.options.shard_size)
    return replace(plan, recipes=tuple(kept), outputs=outputs, partial=tuple(sorted(set(lost))))


def items(plan: Plan, piece: Piece) -> tuple[int, int]:
    """The items that a piece's bytes hold: both grow together."""
    part = piece.part
    start, stop = plan.recipes[part.recipe].decoder.spans(*part.items)[0]
    each = Fraction(part.items[1] - part.items[0], stop - start)
    first, last = part.items[0] + piece.start * each, part.items[0] + piece.stop * each
    assert first.denominator == last.denominator == 1
    return int(first), int(last)


def check_blocks(plan: Plan, walk: Walk, block: int) -> None:
    """Blocks ascend without overlap, stay short, and tile a whole file exactly."""
    edges = [(b.start, b.stop) for b in walk.blocks]
    assert all(start < stop for start, stop in edges)
    assert all(before[1] <= after[0] for before, after in pairwise(edges))
    if walk.whole and walk.file.size:
        assert (edges[0][0], edges[-1][1]) == (0, walk.file.size)
        assert all(before[1] == after[0] for before, after in pairwise(edges))
    for b in walk.blocks:
        grains = []
        for piece in b.pieces:
            decoder = plan.recipes[piece.part.recipe].decoder
            first, last = decoder.spans(0, decoder.grain)[0]
            grains.append(last - first)
        assert b.stop - b.start <= max([block, *grains])
        assert [p.offset for p in b.pieces] == sorted(p.offset for p in b.pieces)


def check_pieces(plan: Plan, walk: Walk) -> None:
    """Every part of the file gets each of its items once, in order, at multiples of the grain."""
    at: dict[int, int] = {}
    for b in walk.blocks:
        for piece in b.pieces:
            part = piece.part
            decoder = plan.recipes[part.recipe].decoder
            start, stop = items(plan, piece)
            assert start == at.get(part.index, part.items[0])
            assert start < stop <= part.items[1]
            assert start % decoder.grain == 0
            assert stop % decoder.grain == 0 or stop == decoder.items
            first, last = decoder.spans(start, stop)[0]
            tensor = decoder.inputs[0]
            assert tensor.file == walk.file.path
            assert (b.start + piece.offset, piece.stop - piece.start) == (tensor.start + first, last - first)
            assert b.start <= tensor.start + first
            assert tensor.start + last <= b.stop
            at[part.index] = stop
    mine = [p for p in plan.parts if plan.recipes[p.recipe].decoder.inputs[0].file == walk.file.path]
    filled = [p for p in mine if p.items[0] < p.items[1]]
    assert at == {part.index: part.items[1] for part in filled}
    assert [p.index for p in walk.unfed] == [p.index for p in mine if p.items[0] == p.items[1]]


def needed(plan: Plan, part) -> list[tuple[str, int, int]]:
    decoder = plan.recipes[part.recipe].decoder
    spans = decoder.spans(*part.items)
    return [(t.file, t.start + a, t.start + b) for t, (a, b) in zip(decoder.inputs, spans, strict=True)][1:]


def replay(plan: Plan, walk: Walk, whole: set[str]) -> tuple[int, int, int]:
    """Walk the blocks as the engine does; return bytes kept at most, read again, and read at all."""
    held: set[int] = set()  # bytes of companions that are kept, by position
    early: set[int] = set()
    most = again = read = 0
    passed: set[int] = set()
    for b in walk.blocks:
        here = set(range(b.start, b.stop))
        firsts = [p.part for p in b.pieces if p.start == 0]
        wanted = [(part.index, need) for part in firsts for need in needed(plan, part)]
        assert [(c.part.index, (c.file, c.start, c.stop)) for c in b.companions] == wanted
        for c in b.companions:
            if c.how == "ahead" and c.start not in early:
                early |= set(range(c.start, c.stop))
                read += c.stop - c.start
        most = max(most, len(held | early))
        read += len(here - early)
        for start, stop in b.retain:
            assert max(b.start, start) < min(b.stop, stop)
            held |= set(range(max(b.start, start), min(b.stop, stop)))
        most = max(most, len(held | early))
        for c in b.companions:
            again += check_companion(c, walk, b, passed, held, whole)
            read += (c.stop - c.start) * (c.how == "apart")
            if c.how == "behind" and c.last:
                held -= set(range(c.start, c.stop))
        passed |= here
        early -= here
    assert not held
    assert not early
    return most, again, read


def check_companion(c: Companion, walk: Walk, block, passed, held, whole) -> int:
    """A companion comes as its place says; the bytes that it makes somebody read again."""
    bytes_ = set(range(c.start, c.stop))
    if c.how == "apart":
        return len(bytes_) if c.file in whole else 0
    assert c.file == walk.file.path
    if c.how == "inside":
        assert block.start <= c.start
        assert c.stop <= block.stop
    elif c.how == "behind":
        assert bytes_ <= held
        assert bytes_ <= passed | set(range(block.start, block.stop))
    else:
        assert c.how == "ahead"
        assert c.start >= block.stop
        assert walk.whole
    return 0


@settings(max_examples=400, deadline=None)
@given(plans(), st.integers(1, 300), st.sampled_from([0, 1, 7, 30, 200, 10**6]))
@example(plan_of({FILES[0]: [("a", "U8", (100,))]}), 300, 0)
@example(plan_of({FILES[0]: [("a", "F64", (100,)), ("e", "F32", (0, 3))]}), 1, 0)
def test_walks_cover_their_files(plan, block, keep):
    """Blocks tile, items come once in order, companions are where they are said to be, within the budget."""
    schedule = Schedule(plan, everything(plan), block=block, keep=keep, room=0)
    walks = [schedule.walk(file) for file in plan.files]
    once: set[tuple[str, int]] = set()
    whole = {walk.file.path for walk in walks if walk.whole}
    verify = plan.options.verify_source
    for walk in walks:
        complete = walk.file.path not in plan.partial
        assert walk.whole == (verify == "whole" or (verify == "auto" and complete))
        check_blocks(plan, walk, block)
        check_pieces(plan, walk)
        most, _, read = replay(plan, walk, whole)
        assert most <= walk.kept <= keep
        assert read == walk.bytes_read
        once |= {(walk.file.path, at) for b in walk.blocks for at in range(b.start, b.stop)}
        apart = [c for b in walk.blocks for c in b.companions if c.how == "apart"]
        once |= {(c.file, at) for c in apart for at in range(c.start, c.stop)}
    assert schedule.bytes_read() == sum(walk.bytes_read for walk in walks)
    assert schedule.bytes_again() == schedule.bytes_read() - len(once)
    if len(whole) == len(plan.files):
        total = sum(walk.bytes_read for walk in walks)
        assert total == sum(file.size for file in plan.files) + schedule.bytes_again()


# --- each way by example ---

BLOCKS, SCALES = ("x_blocks", "U8", (4, 1, 2, 16)), ("x_scales", "U8", (4, 1, 2))
PAD = ("pad", "U8", (200,))
NBYTES = 128


def ways(files: dict[str, list[Stored]], block: int, keep: int, **options):
    plan = plan_of(files, **options)
    schedule = Schedule(plan, everything(plan), block=block, keep=keep, room=0)
    walks = [schedule.walk(file) for file in plan.files]
    hows = [c.how for walk in walks for b in walk.blocks for c in b.companions]
    return hows, walks, schedule.bytes_again()


@pytest.mark.parametrize(
    ("order", "block", "keep", "how", "again", "kept"),
    [
        ([BLOCKS, PAD, SCALES], 100, 1000, ["ahead"], 0, 8),
        ([BLOCKS, PAD, SCALES], 100, 16, ["ahead"], 0, 8),
        ([BLOCKS, PAD, SCALES], 100, 14, ["apart"], 8, 0),
        ([BLOCKS, PAD, SCALES], 100, 0, ["apart"], 8, 0),
        ([BLOCKS, SCALES], 1000, 0, ["inside"], 0, 0),
        ([SCALES, BLOCKS], 1000, 1000, ["inside"], 0, 0),
        ([SCALES, BLOCKS], 1000, 0, ["inside"], 0, 0),
        ([SCALES, PAD, BLOCKS], 100, 1000, ["behind"], 0, 8),
        ([SCALES, PAD, BLOCKS], 100, 16, ["behind"], 0, 8),
        ([SCALES, PAD, BLOCKS], 100, 14, ["apart"], 8, 0),
        ([SCALES, PAD, BLOCKS], 84, 1000, ["behind"], 0, 8),
    ],
)
def test_companions_in_one_file(order, block, keep, how, again, kept):
    """Ahead, inside, behind, or read again where half of the budget does not hold them."""
    hows, (walk,), twice = ways({FILES[0]: order}, block, keep)
    assert (hows, twice, walk.kept) == (how, again, kept)


def test_room_is_free_again_once_a_companion_was_passed():
    """What was read ahead is let go where the walk reaches it, so that the next one fits."""
    pads = [(f"pad{i}", *PAD[1:]) for i in range(2)]
    again = [("y_blocks", *BLOCKS[1:]), pads[1], ("y_scales", *SCALES[1:])]
    hows, (walk,), twice = ways({FILES[0]: [BLOCKS, PAD, SCALES, pads[0], *again]}, 100, 16)
    assert (hows, twice, walk.kept) == (["ahead", "ahead"], 0, 8)


def test_companions_in_another_file_are_read_again():
    """Scales of another file come by range, and pass once more when that file is hashed."""
    hows, walks, again = ways({FILES[0]: [BLOCKS], FILES[1]: [SCALES]}, 64, 1000)
    assert (hows, again) == (["apart"], 8)
    assert [walk.whole for walk in walks] == [True, True]
    assert [walk.bytes_read for walk in walks] == [walks[0].file.size + 8, walks[1].file.size]


def test_what_is_not_hashed_is_not_read_again():
    """With `verify_source="no"` no file is read whole, and scales are read once, by range."""
    hows, walks, again = ways({FILES[0]: [PAD, BLOCKS], FILES[1]: [SCALES]}, 64, 1000, verify_source="no")
    assert (hows, again) == (["apart"], 0)
    assert [walk.whole for walk in walks] == [False, False]
    assert [walk.bytes_read for walk in walks] == [200 + NBYTES + 8, 0]


def test_a_straddling_companion_is_not_lost():
    """Scales that a block's edge cuts, before or after their blocks, still come whole."""
    for order in ([SCALES, PAD, BLOCKS], [BLOCKS, SCALES], [SCALES, BLOCKS]):
        for block in range(1, 230):
            plan = plan_of({FILES[0]: order})
            schedule = Schedule(plan, everything(plan), block=block, keep=1000, room=0)
            walk = schedule.walk(plan.files[0])
            check_blocks(plan, walk, block)
            check_pieces(plan, walk)
            assert replay(plan, walk, {FILES[0]})[1] == schedule.bytes_again()


def test_a_file_of_nothing_wanted_is_not_read():
    """Excluded tensors cost nothing under `auto`; `whole` reads and hashes their file all the same."""
    for verify, expected in (("auto", 0), ("no", 0), ("whole", 280)):
        plan = plan_of({FILES[0]: [PAD], FILES[1]: [("y", "U8", (5,))]}, verify_source=verify)
        kept = [recipe for recipe in plan.recipes if recipe.name == "y"]
        plan = without(plan, kept, 1000)
        walk = Schedule(plan, everything(plan), block=64, keep=0, room=0).walk(plan.files[0])
        assert walk.bytes_read == expected
        assert not any(b.pieces for b in walk.blocks)


def test_small_gaps_between_wanted_tensors_are_read_over():
    """A file that is not read whole is read across gaps of at most 64 KiB, and not across wider ones."""
    stored = [(f"t{i}", "U8", (10,)) for i in range(5)]
    stored[1] = ("gap", "U8", (65_536,))
    stored[3] = ("wide", "U8", (65_537,))
    plan = plan_of({FILES[0]: stored})
    kept = [recipe for recipe in plan.recipes if recipe.name.startswith("t")]
    plan = without(plan, kept, 10**6)
    walk = Schedule(plan, everything(plan), block=10**6, keep=0, room=0).walk(plan.files[0])
    assert [(b.start, b.stop) for b in walk.blocks] == [(80, 80 + 65_556), (80 + 131_093, 80 + 131_103)]


def test_a_part_larger_than_a_block_spans_blocks():
    """Cuts inside a tensor fall on its grain; a grain larger than the block is not cut."""
    plan = plan_of({FILES[0]: [("w", "F64", (9,))]}, data_start=3)
    walk = Schedule(plan, everything(plan), block=20, keep=0, room=0).walk(plan.files[0])
    assert [(b.start, b.stop) for b in walk.blocks] == [(0, 19), (19, 35), (35, 51), (51, 67), (67, 75)]
    walk = Schedule(plan, everything(plan), block=2, keep=0, room=0).walk(plan.files[0])
    assert [b.stop - b.start for b in walk.blocks] == [2, 1, *[8] * 9]


MANY = 25_000
PAIRS = [
    [(f"t{i}_blocks", "U8", (1, 64, 32, 16)) for i in range(MANY)],
    [(f"t{i}_scales", "U8", (1, 64, 32)) for i in range(MANY)],
]


@pytest.mark.parametrize(
    ("stored", "keep"),
    [
        ([(f"t{i}", "BF16", (1024, 256)) for i in range(2 * MANY)], 0),
        (PAIRS[0] + PAIRS[1], 1 << 40),
        (PAIRS[1] + PAIRS[0], 1 << 40),
        (PAIRS[0] + PAIRS[1], 1 << 20),
        (PAIRS[1] + PAIRS[0], 1 << 20),
    ],
    ids=["plain", "ahead", "behind", "ahead in little room", "behind in little room"],
)
def test_fifty_thousand_tensors_are_scheduled_in_seconds(stored, keep):
    """The time grows with the number of tensors and blocks, not with their product."""
    begun = process_time()
    plan = plan_of({FILES[0]: stored})
    walk = Schedule(plan, everything(plan), block=256 * 1024, keep=keep, room=0).walk(plan.files[0])
    assert process_time() - begun < 8
    assert sum(len(b.pieces) for b in walk.blocks) >= len(plan.parts)
    assert walk.blocks[-1].stop == plan.files[0].size
