"""A memory cap becomes threads and buffers, or is refused."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tensorport_hub.core.demand import Demand
from tensorport_hub.engine.budget import BASE, Allotment, MiB, allot
from tensorport_hub.errors import LimitError

TILE = 8 * MiB


def used(given_: Allotment, writer_nbytes: int, demand: Demand) -> int:
    """Bytes that a run may hold, added up from the module's own description."""
    parts = given_.workers * (writer_nbytes + TILE + demand.beside + given_.block)
    lanes = given_.lanes * (given_.buffers * given_.block + given_.keep)
    return BASE + demand.noted + parts + lanes + given_.room


@settings(max_examples=400, deadline=None)
@given(
    max_memory=st.integers(0, 20_000 * MiB),
    workers=st.integers(1, 64),
    files=st.integers(0, 300),
    writer_nbytes=st.sampled_from([0, 2 * MiB, 150 * MiB]),
    beside=st.integers(0, 500 * MiB),
    most=st.sampled_from([0, 1000, 50 * MiB, 3000 * MiB, 30_000 * MiB]),
    share=st.floats(0, 1),
    noted=st.sampled_from([0, 1000, 600 * MiB]),
)
def test_what_is_allotted_fits(
    max_memory: int,
    workers: int,
    files: int,
    writer_nbytes: int,
    beside: int,
    most: int,
    share: float,
    noted: int,
) -> None:
    """Everything that a run may hold stays below the cap, and no more is used in parallel than asked for."""
    wants = Demand(beside, most, max(min(most, 1), int(most * share)), "w", noted)
    try:
        found = allot(max_memory, workers=workers, files=files, writer_nbytes=writer_nbytes, demand=wants)
    except LimitError:
        assert max_memory < BASE + noted + writer_nbytes + TILE + beside + wants.least + 2 * MiB
        return
    assert used(found, writer_nbytes, wants) <= max_memory
    assert 1 <= found.workers <= workers
    assert 1 <= found.lanes <= min(found.workers, max(files, 1))
    assert 256 * 1024 <= found.block <= 8 * MiB
    assert found.block % (256 * 1024) == 0
    assert found.buffers > found.depth >= 1
    assert found.keep >= 0
    assert wants.least <= found.room <= found.workers * most
    if found.room < most:  # then nothing else could have made way for it
        assert found.workers == 1
        assert used(found, writer_nbytes, wants) - found.room + most > max_memory - 8 * found.block


@settings(max_examples=100, deadline=None)
@given(
    max_memory=st.integers(130 * MiB, 4000 * MiB),
    more=st.integers(0, 4000 * MiB),
    workers=st.integers(1, 32),
    files=st.integers(1, 20),
)
def test_more_memory_is_never_less_parallel(max_memory: int, more: int, workers: int, files: int) -> None:
    """A higher cap gives at least as many workers."""
    assume(max_memory + more < 8000 * MiB)
    low = allot(max_memory, workers=workers, files=files, writer_nbytes=2 * MiB, demand=Demand())
    high = allot(max_memory + more, workers=workers, files=files, writer_nbytes=2 * MiB, demand=Demand())
    assert high.workers >= low.workers


@pytest.mark.parametrize("beside", [0, 10_000_000])
@pytest.mark.parametrize("least", [0, 77_000_000])
@pytest.mark.parametrize("writer_nbytes", [0, 150 * MiB])
def test_too_small_a_cap(writer_nbytes: int, beside: int, least: int) -> None:
    """A cap below one part at a time is exit code 7; the least that it names is enough, 1 MB less not."""

    def try_with(max_memory: int) -> Allotment:
        wants = Demand(beside, 10 * least, least, "layers.0.proj.weight")
        return allot(max_memory, workers=8, files=3, writer_nbytes=writer_nbytes, demand=wants)

    with pytest.raises(LimitError, match="the memory cap is too small: expected") as caught:
        try_with(1000)
    assert caught.value.exit_code == 7
    assert "--max-memory" in caught.value.hint
    enough = int(re.findall(r"at least (\d+)MB", caught.value.message)[0]) * 1_000_000
    found = try_with(enough)
    assert found.workers == 1
    assert found.room >= least
    with pytest.raises(
        LimitError, match=r"for `layers\.0\.proj\.weight`" if least else "too small: expected"
    ):
        try_with(enough - 1_000_000)


@pytest.mark.parametrize(
    ("cap", "workers", "room"),
    [(1150 * MiB, 4, 400), (600 * MiB, 4, 207), (315 * MiB, 3, 101), (245 * MiB, 1, 100), (230 * MiB, 1, 70)],
)
def test_a_held_part_comes_before_parallel_work(cap: int, workers: int, room: int) -> None:
    """Room for the largest tile first, then for one a worker; where it does not fit, what is left."""
    wants = Demand(0, 100 * MiB, 1000, "w")
    found = allot(cap, workers=4, files=1, writer_nbytes=20 * MiB, demand=wants)
    assert (found.workers, found.room // MiB) == (workers, room)


def test_defaults_of_a_small_machine() -> None:
    """1 GB, two workers, four files, Xet streams: both workers run, with blocks of 8 MiB."""
    found = allot(10**9, workers=2, files=4, writer_nbytes=150 * MiB, demand=Demand(8 * MiB))
    assert (found.workers, found.lanes, found.block) == (2, 2, 8 * MiB)


def test_what_the_reader_buffers_is_set_aside_first() -> None:
    """A reader that buffers leaves as much as a cap that is smaller by that."""
    wants = Demand(8 * MiB, 100 * MiB, 1000, "w")
    for cap in (250 * MiB, 400 * MiB, 1000 * MiB):
        plain = allot(cap, workers=4, files=4, writer_nbytes=2 * MiB, demand=wants)
        more = cap + 100 * MiB
        beside = allot(more, workers=4, files=4, writer_nbytes=2 * MiB, demand=wants, beside_nbytes=100 * MiB)
        assert beside == plain


def test_one_file_has_one_lane() -> None:
    """Lanes are no more than files, workers may be."""
    found = allot(10**9, workers=8, files=1, writer_nbytes=0, demand=Demand())
    assert (found.workers, found.lanes) == (8, 1)
