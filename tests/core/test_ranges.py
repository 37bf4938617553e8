"""Byte ranges: what is joined, cut or left out, against plain sets of bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tensorport_hub.core.ranges import coalesce, holes, pieces

RANGES = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda r: (min(r), max(r))), max_size=9
)


def covered(ranges) -> set[int]:
    return {byte for start, stop in ranges for byte in range(start, stop)}


@settings(max_examples=300, deadline=None)
@given(RANGES, st.integers(0, 5), st.none() | st.integers(1, 30))
@example([(0, 5), (0, 5)], 0, None)
@example([(0, 9), (2, 4), (3, 20)], 0, 4)
@example([(0, 5), (5, 9), (9, 9)], 0, 6)
@example([(0, 1), (4, 5)], 3, 4)
def test_no_byte_is_lost_or_named_twice(ranges, gap, longest):
    """Equal, nested, touching or apart: joined ranges cover every input byte once, in ascending order."""
    joined = coalesce(ranges, gap=gap, longest=longest)
    assert covered(ranges) <= covered(joined)
    assert all(start < stop for start, stop in joined)
    assert all(before[1] <= after[0] for before, after in pairwise(joined))
    if gap == 0:
        assert covered(joined) == covered(ranges)


@settings(max_examples=200, deadline=None)
@given(RANGES, st.integers(0, 5))
def test_only_small_gaps_are_read_across(ranges, gap):
    """Bytes that no input names lie in gaps of at most `gap`; wider ones stay open."""
    joined = coalesce(ranges, gap=gap)
    assert all(after[0] - before[1] > gap for before, after in pairwise(joined))
    for start, stop in joined:
        extra = sorted(set(range(start, stop)) - covered(ranges))
        runs = [byte for byte in extra if byte - 1 not in extra]
        assert all(set(range(byte, byte + gap + 1)) - set(extra) for byte in runs)


@settings(max_examples=200, deadline=None)
@given(RANGES, st.integers(0, 5), st.integers(1, 30))
@example([(0, 1), (1, 2), (1, 3)], 0, 2)
def test_joined_ranges_stay_short(ranges, gap, longest):
    """A joined range passes `longest` only by inputs that overlap: by their chain at most."""
    forced = max([0, *(stop - start for start, stop in coalesce(ranges, gap=0, longest=1))])
    assert all(b - a <= longest + forced for a, b in coalesce(ranges, gap=gap, longest=longest))


@pytest.mark.parametrize(
    ("ranges", "gap", "longest", "expected"),
    [
        ([], 0, None, []),
        ([(3, 3)], 0, None, []),
        ([(4, 6), (0, 2)], 0, None, [(0, 2), (4, 6)]),
        ([(4, 6), (0, 2)], 1, None, [(0, 2), (4, 6)]),
        ([(4, 6), (0, 2)], 2, None, [(0, 6)]),
        ([(0, 2), (2, 4)], 0, None, [(0, 4)]),
        ([(0, 2), (2, 4)], 0, 3, [(0, 2), (2, 4)]),
        ([(0, 9), (1, 2), (1, 12)], 0, 1, [(0, 12)]),
        ([(0, 4), (0, 4)], 0, None, [(0, 4)]),
    ],
)
def test_joining_by_example(ranges, gap, longest, expected):
    """The rules, one by one."""
    assert coalesce(ranges, gap=gap, longest=longest) == expected


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 20))
def test_pieces_tile_a_range(start, length, size):
    """Pieces follow one another from start to stop, all of full size but the last."""
    cut = list(pieces(start, start + length, size))
    assert [byte for a, b in cut for byte in range(a, b)] == list(range(start, start + length))
    assert all(b - a == size for a, b in cut[:-1])
    assert all(0 < b - a <= size for a, b in cut)


@pytest.mark.parametrize("size", [0, -1])
def test_pieces_need_a_size(size):
    """A piece size below 1 would never end."""
    with pytest.raises(ValueError, match="must be positive"):
        list(pieces(0, 4, size))


@settings(max_examples=300, deadline=None)
@given(RANGES, st.integers(0, 60), st.integers(0, 60))
def test_holes_are_what_is_not_covered(ranges, start, stop):
    """Holes are exactly the bytes of the window that no range covers."""
    found = holes(ranges, start, stop)
    assert covered(found) == set(range(start, stop)) - covered(ranges)
    assert all(before[1] < after[0] for before, after in pairwise(found))
    assert all(a < b for a, b in found)
