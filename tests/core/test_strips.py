"""Strips against a plain list of their byte positions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core import strips
from tensorport_hub.core.strips import GAP, Strip, contiguous, cut, gather, strip


def positions(wanted: Strip) -> list[int]:
    """Every byte of a strip, one by one."""
    first = [wanted.origin + row * wanted.pitch for row in range(wanted.rows)]
    return [begin + i for begin in first for i in range(wanted.first, wanted.last)]


@st.composite
def any_strip(draw: st.DrawFn) -> Strip:
    """Strips of few rows, byte ranges, empty ones."""
    pitch = draw(st.integers(1, 12))
    first = draw(st.integers(0, pitch))
    last = draw(st.integers(first, pitch))
    return strip(draw(st.integers(0, 20)), pitch, draw(st.integers(1, 6)), first, last)


DATA = np.random.default_rng(0).integers(0, 256, 120, np.uint8)


@given(any_strip())
def test_what_a_strip_says_of_itself(wanted):
    """Size, first and last byte, the rows that it is cut from."""
    found = positions(wanted)
    assert wanted.nbytes == len(found)
    if found:
        assert (wanted.start, wanted.stop) == (found[0], found[-1] + 1)
        assert wanted.region[0] <= wanted.start
        assert wanted.stop <= wanted.region[1]
    assert positions(wanted.moved(7)) == [at + 7 for at in found]


def test_one_spelling_each():
    """Whole rows and single rows are byte ranges."""
    assert strip(5, 4, 3, 0, 4) == contiguous(5, 17)
    assert strip(5, 4, 1, 1, 3) == contiguous(6, 8)
    assert strip(5, 4, 3, 2, 2).nbytes == 0
    assert strip(5, 4, 3, 1, 3) == Strip(5, 4, 3, 1, 3)


@settings(max_examples=300)
@given(any_strip(), st.sets(st.integers(0, 120), max_size=8))
def test_gathered_from_any_pieces(wanted, edges):
    """Whatever blocks the bytes come in, each lands in its place."""
    into = np.zeros(wanted.nbytes, np.uint8)
    for start, stop in pairwise(sorted({0, 120, *edges})):
        gather(wanted, into, DATA[start:stop], start)
    assert into.tolist() == DATA[positions(wanted)].tolist()


@settings(max_examples=300)
@given(any_strip(), st.data())
def test_cut_from_what_covers_it(held, data):
    """A narrower strip, or a range, out of a held one; and out of the rows that it comes from."""
    draw = data.draw
    have = DATA[positions(held)]
    if held.rows > 1:
        first = draw(st.integers(held.first, held.last - 1))
        wanted = strip(held.origin, held.pitch, held.rows, first, draw(st.integers(first + 1, held.last)))
    else:
        first = draw(st.integers(held.start, held.stop))
        wanted = contiguous(first, draw(st.integers(first, held.stop)))
    got = cut(held, have, wanted)
    assert got.reshape(-1).tolist() == DATA[positions(wanted)].tolist()
    assert got.ndim == (2 if wanted.rows > 1 else 1)
    start, stop = held.region
    again = cut(contiguous(start, stop), DATA[start:stop], held)
    assert again.reshape(-1).tolist() == have.tolist()


@settings(max_examples=200)
@given(any_strip(), st.integers(1, 9), st.sampled_from([0, 1, 3, 100]))
def test_what_is_asked_for(wanted, longest, gap):
    """Reads ascend, stay short, cover the strip and ask for `asked` bytes; wide gaps are left out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strips, "GAP", gap)
        reads = [*wanted.reads(longest)]
        asked = wanted.asked
        through = wanted.rows == 1 or wanted.pitch - wanted.width <= gap
    assert all(0 < stop - start <= longest for start, stop in reads)
    assert all(before[1] <= after[0] for before, after in pairwise(reads))
    found = [at for start, stop in reads for at in range(start, stop)]
    assert len(found) == asked
    assert set(found) >= set(positions(wanted))
    if not through:
        assert found == positions(wanted)


def test_the_gap_is_that_of_a_request():
    """Rows 64 KiB apart are read over, rows one byte further apart are asked for one by one."""
    near, far = (strip(0, GAP + 10 + more, 3, 0, 10) for more in (0, 1))
    assert (near.asked, len([*near.reads(1 << 30)])) == (2 * near.pitch + 10, 1)
    assert (far.asked, len([*far.reads(1 << 30)])) == (30, 3)
