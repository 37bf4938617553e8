"""A memory cap becomes threads and buffers, or is refused."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tensorport_hub.engine.budget import BASE, Allotment, MiB, allot
from tensorport_hub.errors import LimitError

TILE = 8 * MiB


def used(given_: Allotment, writer_nbytes: int, held: int) -> int:
    """Bytes that a run may hold, added up from the module's own description."""
    parts = given_.workers * (writer_nbytes + TILE + held)
    lanes = given_.lanes * (given_.buffers * given_.block + given_.keep)
    return BASE + parts + lanes


@settings(max_examples=300, deadline=None)
@given(
    max_memory=st.integers(0, 20_000 * MiB),
    workers=st.integers(1, 64),
    files=st.integers(0, 300),
    writer_nbytes=st.sampled_from([0, 2 * MiB, 150 * MiB]),
    held=st.integers(0, 500 * MiB),
)
def test_what_is_allotted_fits(
    max_memory: int, workers: int, files: int, writer_nbytes: int, held: int
) -> None:
    """Everything that a run may hold stays below the cap, and no more is used in parallel than asked for."""
    try:
        found = allot(max_memory, workers=workers, files=files, writer_nbytes=writer_nbytes, held=held)
    except LimitError:
        assert max_memory < BASE + writer_nbytes + TILE + held + 2 * MiB
        return
    assert used(found, writer_nbytes, held) <= max_memory
    assert 1 <= found.workers <= workers
    assert 1 <= found.lanes <= min(found.workers, max(files, 1))
    assert 256 * 1024 <= found.block <= 8 * MiB
    assert found.block % (256 * 1024) == 0
    assert found.buffers > found.depth >= 1
    assert found.keep >= 0


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
    low = allot(max_memory, workers=workers, files=files, writer_nbytes=2 * MiB, held=0)
    high = allot(max_memory + more, workers=workers, files=files, writer_nbytes=2 * MiB, held=0)
    assert high.workers >= low.workers


@pytest.mark.parametrize("held", [0, 10_000_000])
@pytest.mark.parametrize("writer_nbytes", [0, 150 * MiB])
def test_too_small_a_cap(writer_nbytes: int, held: int) -> None:
    """A cap below one part at a time is exit code 7; the least that it names is enough, 1 MB less not."""

    def try_with(max_memory: int) -> Allotment:
        return allot(max_memory, workers=8, files=3, writer_nbytes=writer_nbytes, held=held)

    with pytest.raises(LimitError, match="the memory cap is too small") as caught:
        try_with(1000)
    assert caught.value.exit_code == 7
    assert "--max-memory" in caught.value.hint
    least = int(re.findall(r"at least (\d+)MB", caught.value.message)[0]) * 1_000_000
    assert try_with(least).workers == 1
    with pytest.raises(LimitError):
        try_with(least - 1_000_000)


def test_defaults_of_a_small_machine() -> None:
    """1 GB, two workers, four files, Xet streams: both workers run, with blocks of 8 MiB."""
    found = allot(10**9, workers=2, files=4, writer_nbytes=150 * MiB, held=8 * MiB)
    assert (found.workers, found.lanes, found.block) == (2, 2, 8 * MiB)


def test_one_file_has_one_lane() -> None:
    """Lanes are no more than files, workers may be."""
    found = allot(10**9, workers=8, files=1, writer_nbytes=0, held=0)
    assert (found.workers, found.lanes) == (8, 1)
