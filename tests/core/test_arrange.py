"""Rows chosen and axes swapped, whatever ranges the items come in."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.arrange import Choice, Swap


@settings(max_examples=300, deadline=None)
@given(
    experts=st.integers(1, 3),
    rows=st.integers(1, 4),
    width=st.integers(1, 7),
    step=st.integers(1, 4),
    cuts=st.lists(st.integers(0, 400), max_size=8),
    data=st.data(),
)
def test_any_cut_gives_the_chosen_rows(experts, rows, width, step, cuts, data):
    """Every `step`-th row from `first` on, as numpy's slice has them."""
    first = data.draw(st.integers(0, step - 1))
    items = np.arange(experts * rows * step * width, dtype=np.int32)
    edges = sorted({0, items.size, *(min(cut, items.size) for cut in cuts)})
    choice = Choice(first, step, width)
    found = [choice.among(items[a:b], a) for a, b in pairwise(edges)]
    wanted = items.reshape(experts, rows * step, width)[:, first::step]
    assert np.concatenate(found).tobytes() == wanted.tobytes()
    assert all(part.flags.c_contiguous for part in found)


@settings(max_examples=200, deadline=None)
@given(
    matrices=st.integers(0, 3),
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    cuts=st.lists(st.integers(0, 120), max_size=8),
    width=st.sampled_from(["V2", "<f4", "u1"]),
)
def test_any_cut_gives_the_turned_matrices(matrices, rows, columns, cuts, width):
    """Each matrix as soon as it is whole, axes swapped; one after another from the same memory."""
    count = matrices * rows * columns
    raw = np.random.default_rng(0).integers(0, 256, count * np.dtype(width).itemsize, np.uint8)
    items = raw.view(width)
    edges = sorted({0, count, *(min(cut, count) for cut in cuts)})
    swap = Swap(rows, columns)
    found = [turned.tobytes() for a, b in pairwise(edges) for turned in swap.through(items[a:b])]
    wanted = items.reshape(matrices, rows, columns).swapaxes(1, 2)
    assert found == [matrix.tobytes() for matrix in wanted]


def test_nothing_to_choose_from():
    """Empty items, and rows without any."""
    assert Choice(1, 2, 3).among(np.empty(0, np.uint8), 0).size == 0
    assert Choice(1, 2, 0).among(np.empty(0, np.uint8), 0).size == 0
    assert [*Swap(2, 0).through(np.empty(0, np.uint8))] == []
