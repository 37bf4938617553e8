"""Layouts whose rows lie all over their tensor: the same bytes at any cap, no more read than planned."""

from __future__ import annotations

import sys
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.demand import demand
from tensorport_hub.core.progress import Entry, gathered
from tensorport_hub.core.schedule import Schedule
from tensorport_hub.core.strips import Strip
from tensorport_hub.engine import blocks
from tensorport_hub.engine.reader import Reader
from tests.engine.layouts import LAYOUTS, Checkpoint, checkpoint, least_shard
from tests.engine.models import allotment, arrays, run_plan
from tests.engine.test_resume import Fuse, FusedJournal, FusedSink, FusedSource, Killed
from tests.fakes import FlakySink, FlakySource, MemorySink, MemorySource, everything

pytestmark = pytest.mark.timeout(120)

WEIGHTS = {name: make() for name, make in LAYOUTS.items()}


def inputs_of(*names: str) -> list[tuple[str, int]]:
    """All inputs of these weights, one after another."""
    return [(name, i) for name in names for i in range(len(WEIGHTS[name].stored))]


def check_bytes(sink: MemorySink, made: Checkpoint) -> None:
    """Every output tensor is what its formula says."""
    found = {name: data for name, (_, _, data) in arrays(sink.held).items()}
    assert found.keys() == {name.replace(" ", "%20").replace(",", "%2C") for name in made.expected}
    for name, want in made.expected.items():
        assert found[name.replace(" ", "%20").replace(",", "%2C")] == want, name


def planned(made: Checkpoint, given_: Any) -> Schedule:
    """What is read when all is made."""
    left = everything(made.plan)
    return Schedule(made.plan, left, block=given_.block, keep=given_.keep, room=given_.room)


def check_reading(source: MemorySource, made: Checkpoint, given_: Any) -> None:
    """The source was asked for what the plan says, and for so much of it not for the first time."""
    schedule = planned(made, given_)
    assert source.bytes_read == schedule.bytes_read()
    once = sum(int((source.counts(path) > 0).sum()) for path in made.files)
    assert source.bytes_read - once == schedule.bytes_again()


class Watched(blocks.Room):
    """Room that remembers how much of it was taken at most."""

    most = 0

    def __init__(self, nbytes: int, stop: blocks.StopFlag) -> None:
        super().__init__(nbytes, stop)
        self.nbytes = nbytes

    def take(self, nbytes: int) -> None:
        super().take(nbytes)
        Watched.most = max(Watched.most, self.nbytes - self._free)


@st.composite
def checkpoints(draw: st.DrawFn) -> Checkpoint:
    """One to three weights, whole or cut at rows, their inputs in any order in one or two files."""
    names = draw(st.lists(st.sampled_from(sorted(WEIGHTS)), min_size=1, max_size=3, unique=True))
    weights = {name: WEIGHTS[name] for name in names}
    order = draw(st.permutations([*inputs_of(*names), *draw(st.lists(st.integers(0, 700), max_size=2))]))
    rows = draw(st.sampled_from([1, 2, 3, 5, 1000]))
    verify = draw(st.sampled_from(["auto", "whole", "no"]))
    return checkpoint(
        weights, order, draw(st.integers(1, 2)), shard_size=least_shard(weights, rows), verify_source=verify
    )


@settings(max_examples=200, deadline=None)
@given(
    made=checkpoints(),
    share=st.floats(0, 1.2),
    block=st.sampled_from([1, 30, 200, 1000, 1 << 20]),
    keep=st.sampled_from([0, 100, 1000, 1 << 20]),
    workers=st.integers(1, 4),
    lanes=st.integers(1, 2),
    gap=st.sampled_from([0, 20, 1 << 16]),
)
def test_any_cap_gives_the_same_bytes(
    made: Checkpoint, share: float, block: int, keep: int, workers: int, lanes: int, gap: int
) -> None:
    """Any room from one grain up, any cuts, blocks and threads: the formula's values, read as planned."""
    wants = demand(made.plan)
    room = wants.least + int(share * (wants.most - wants.least))
    source, sink = MemorySource(made.files), MemorySink()
    chosen = allotment(block=block, keep=keep, workers=workers, lanes=lanes, room=room)
    Watched.most = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tensorport_hub.core.strips.GAP", gap)
        patch.setattr(sys.modules["tensorport_hub.engine.run"], "Room", Watched)
        outcome = run_plan(made.plan, source, sink, chosen)
        check_bytes(sink, made)
        check_reading(source, made, chosen)
    assert Watched.most <= room
    assert [receipt.path for receipt in outcome.receipts] == [file.path for file in made.plan.outputs]
    assert sink.counted("open") == sink.counted("finish") == dict.fromkeys(sink.held, 1)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_each_layout_in_the_least_room(name: str, rows: int) -> None:
    """A tile a grain, for whole tensors and for parts that begin at any row."""
    weights = {name: WEIGHTS[name]}
    made = checkpoint(weights, [*inputs_of(name), 50], shard_size=least_shard(weights, rows))
    source, sink = MemorySource(made.files), MemorySink()
    chosen = allotment(block=100, workers=1, lanes=1, room=demand(made.plan).least)
    run_plan(made.plan, source, sink, chosen)
    check_bytes(sink, made)
    check_reading(source, made, chosen)


@pytest.mark.parametrize("name", WEIGHTS)
def test_what_fits_is_read_once(name: str) -> None:
    """With room enough an uncut tensor's bytes come once, wherever in its file its companions lie."""
    made = checkpoint({name: WEIGHTS[name]}, [*inputs_of(name), 50])
    source, sink = MemorySource(made.files), MemorySink()
    run_plan(made.plan, source, sink, allotment(block=100))
    check_bytes(sink, made)
    if WEIGHTS[name].stored[0].size:
        assert set(source.counts("m-0.safetensors")) == {1}


@pytest.mark.parametrize("name", [name for name, weight in WEIGHTS.items() if weight.stored[0].size])
def test_a_tile_goes_before_the_next_one_comes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one worker holds of strips that were read is never more than the room."""
    weights = {name: WEIGHTS[name]}
    made = checkpoint(weights, inputs_of(name), shard_size=least_shard(weights, 1000))
    room = demand(made.plan).least
    strips: list[weakref.ref[Any]] = []
    held: list[int] = []
    read = Reader.strip

    def strip(self: Reader, file: str, wanted: Strip) -> Any:
        alive = [array.nbytes for array in (known() for known in strips) if array is not None]
        held.append(sum(alive) + wanted.nbytes)
        data = read(self, file, wanted)
        strips.append(weakref.ref(data))
        return data

    monkeypatch.setattr(Reader, "strip", strip)
    run_plan(made.plan, MemorySource(made.files), MemorySink(), allotment(block=100, workers=1, room=room))
    assert max(held, default=0) <= room


HELD = ["gptq act-order", "awq", "hqq 4 bits, axis 1", "bitnet", "quanto"]


@pytest.mark.parametrize("name", HELD)
def test_parts_that_fit_together_are_fed_together(name: str) -> None:
    """Parts of one tensor share its walk as far as there is room for them; the others read by themselves."""
    weights = {name: WEIGHTS[name]}
    made = checkpoint(weights, inputs_of(name), shard_size=least_shard(weights, 4))
    parts = len(made.plan.parts)
    assert parts > 2
    wants = demand(made.plan)
    again = []
    for count in range(1, parts + 1):
        source, sink = MemorySource(made.files), MemorySink()
        chosen = allotment(block=100, workers=1, room=count * wants.most)
        run_plan(made.plan, source, sink, chosen)
        check_bytes(sink, made)
        check_reading(source, made, chosen)
        walk = planned(made, chosen).walk(made.plan.files[0])
        assert len(walk.unfed) == max(0, parts - sum(map(len, walk.together)))
        again.append(source.bytes_read - len(made.files["m-0.safetensors"]))
    assert again == sorted(again, reverse=True)
    assert again[0] > 0
    assert again[-1] == 0


def test_stacked_experts_pass_one_by_one() -> None:
    """Room for one expert is enough to read a stack of them once."""
    name = "gptq experts"
    made = checkpoint({name: WEIGHTS[name]}, inputs_of(name))
    decoder = made.plan.recipes[0].decoder
    room = sum(need.nbytes for need in decoder.needs(0, decoder.panel))
    assert demand(made.plan).most == room < sum(data.size for data in WEIGHTS[name].stored) / 4
    source, sink = MemorySource(made.files), MemorySink()
    run_plan(made.plan, source, sink, allotment(block=100, workers=1, room=room))
    check_bytes(sink, made)
    assert set(source.counts("m-0.safetensors")) == {1}


def test_wide_gaps_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rows lie far apart, a tile is asked for row by row, and nothing between them is read."""
    name = "gptq"
    made = checkpoint({name: WEIGHTS[name]}, inputs_of(name))
    wants = demand(made.plan)
    asked = {}
    for gap in (0, 1 << 16):
        monkeypatch.setattr("tensorport_hub.core.strips.GAP", gap)
        source, sink = MemorySource(made.files), MemorySink()
        chosen = allotment(block=1000, room=wants.most // 4)
        run_plan(made.plan, source, sink, chosen)
        check_bytes(sink, made)
        check_reading(source, made, chosen)
        asked[gap] = source.bytes_read - len(made.files["m-0.safetensors"])
    assert asked[0] <= wants.most
    assert asked[1 << 16] > 2.5 * wants.most


@pytest.mark.parametrize("name", ["float8", "float8 in blocks"])
@pytest.mark.parametrize("far", [0, 150])
@pytest.mark.parametrize("behind", [True, False])
def test_companions_that_parts_share(name: str, far: int, behind: bool) -> None:
    """Scales of several parts, the same ones or overlapping: wherever a block cuts them, they come once."""
    order = [(name, 1), far, (name, 0)] if behind else [(name, 0), far, (name, 1)]
    made = checkpoint({name: WEIGHTS[name]}, order, shard_size=least_shard({name: WEIGHTS[name]}, 6))
    assert len(made.plan.parts) > 2
    for block in range(1, 120):
        source, sink = MemorySource(made.files), MemorySink()
        chosen = allotment(block=block)
        run_plan(made.plan, source, sink, chosen)
        check_bytes(sink, made)
        check_reading(source, made, chosen)


class TestFaults:
    """Tiles that are written again, and second readings that differ."""

    NAMES = ("gptq act-order", "hqq 4 bits, axis 1", "bitmask", "gptq experts", "bnb4 odd rows")

    @settings(max_examples=150, deadline=None)
    @given(
        name=st.sampled_from(NAMES),
        rows=st.sampled_from([3, 1000]),
        share=st.floats(0, 1),
        where=st.sampled_from(["open", "write", "finish"]),
        byte=st.integers(0, 6000),
        times=st.integers(1, 3),
        workers=st.integers(1, 3),
    )
    def test_passing_faults(
        self, name: str, rows: int, share: float, where: Any, byte: int, times: int, workers: int
    ) -> None:
        """Wherever a writer fails in passing, in whatever tile, the files that come out are right."""
        weights = {name: WEIGHTS[name]}
        made = checkpoint(weights, inputs_of(name), shard_size=least_shard(weights, rows))
        wants = demand(made.plan)
        room = wants.least + int(share * (wants.most - wants.least))
        source, sink = MemorySource(made.files), MemorySink()
        flaky = FlakySink(sink, where, byte=byte, times=times)
        run_plan(made.plan, source, flaky, allotment(block=100, workers=workers, room=room))
        check_bytes(sink, made)
        assert not sink.live

    @pytest.mark.parametrize("name", ["gptq act-order", "hqq 4 bits, axis 1"])
    def test_a_second_reading_that_differs_is_no_result(self, name: str) -> None:
        """A damaged byte of a tile that is read again is found, and read once more."""
        made = checkpoint({name: WEIGHTS[name]}, inputs_of(name))
        at = made.plan.recipes[0].decoder.inputs[0].start
        chosen = allotment(block=100, room=demand(made.plan).most // 2)
        source, sink = MemorySource(made.files), MemorySink()
        run_plan(made.plan, source, MemorySink(), chosen)
        readings = source.counts("m-0.safetensors")[at]
        damaged = FlakySource(source, "wrong", at=at, after=readings)
        run_plan(made.plan, damaged, FlakySink(sink, "finish"), chosen)
        check_bytes(sink, made)
        assert damaged.struck == 1

    @pytest.mark.parametrize("name", HELD)
    @pytest.mark.parametrize("rows", [4, 1000])
    def test_tiles_are_those_that_were_hashed(
        self, name: str, rows: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A byte that is damaged when a tile is read beside the walk is found, and the part written again."""
        weights = {name: WEIGHTS[name]}
        made = checkpoint(weights, inputs_of(name), shard_size=least_shard(weights, rows))
        tensor = made.plan.recipes[0].decoder.inputs[0]
        wants = demand(made.plan)
        chosen = allotment(block=100, workers=1, room=max(wants.least, wants.most // 2))
        monkeypatch.setattr("tensorport_hub.core.strips.GAP", 0)  # what is asked for is what is used
        source = MemorySource(made.files)
        run_plan(made.plan, source, MemorySink(), chosen)
        again = np.flatnonzero(source.counts(tensor.file)[tensor.start : tensor.stop] > 1) + tensor.start
        for at in (again[0], again[len(again) // 2], again[-1]):
            sink = MemorySink()
            damaged = FlakySource(MemorySource(made.files), "wrong", at=at, after=1)
            run_plan(made.plan, damaged, sink, chosen)
            check_bytes(sink, made)
            assert damaged.struck == 1

    def test_a_tile_is_read_again_for_each_attempt(self) -> None:
        """A part of one tile is written again from what is read for it, and proven to be the same."""
        name = "gptq act-order"
        made = checkpoint({name: WEIGHTS[name]}, inputs_of(name))
        source, sink = MemorySource(made.files), MemorySink()
        run_plan(made.plan, source, FlakySink(sink, "finish", times=3), allotment(block=100))
        check_bytes(sink, made)
        assert set(source.counts("m-0.safetensors")) == {1, 4}


@settings(max_examples=100, deadline=None)
@given(
    made=checkpoints(),
    kills=st.lists(st.integers(0, 80), min_size=1, max_size=4),
    shares=st.lists(st.floats(0, 1), min_size=5, max_size=5),
    workers=st.integers(1, 3),
)
def test_killed_again_and_again(
    made: Checkpoint, kills: list[int], shares: list[float], workers: int
) -> None:
    """Runs that die anywhere and go on in another room, with parts of a tensor made before, end the same."""
    wants = demand(made.plan)
    sink, entries = MemorySink(), list[Entry]()
    for at, share in zip([*kills, float("inf")], shares, strict=False):
        fuse, source = Fuse(at), FusedSource(made.files)
        source.fuse = fuse
        journal = FusedJournal(gathered(entries), fuse)
        room = wants.least + int(share * (wants.most - wants.least))
        chosen = allotment(block=200, workers=workers, room=room)
        try:
            run_plan(made.plan, source, FusedSink(sink, fuse), chosen, journal=journal)
        except Killed:
            assert fuse.calls > at
        entries += journal.entries
    check_bytes(sink, made)
