"""Basic indices: the block and the byte ranges that they need, against numpy on the whole array."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tensorport_hub.core.indexing import Axis, block_shape, runs, select

SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7)


def numbered(shape: tuple[int, ...], dtype: str = "<i4") -> np.ndarray[Any, Any]:
    """Every item another one."""
    return np.arange(prod(shape), dtype=dtype).reshape(shape)


@st.composite
def indexed(draw: st.DrawFn) -> tuple[tuple[int, ...], Any]:
    """A shape and a basic index of it."""
    shape = draw(SHAPES)
    return shape, draw(npst.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))


def rows_needed(index: Any, shape: tuple[int, ...]) -> int:
    """How many rows of axis 0 an index touches, by numpy; none where it selects nothing."""
    if 0 in numbered(shape)[index].shape:
        return 0
    row_of = np.arange(shape[0]).reshape(shape[0], *[1] * (len(shape) - 1)) if shape else np.zeros(())
    return len(np.unique(np.broadcast_to(row_of, shape)[index]))


@settings(max_examples=600, deadline=None)
@given(indexed())
def test_any_basic_index_is_numpys(case: tuple[tuple[int, ...], Any]) -> None:
    """The block, finished, is numpy's result: values, shape, and whether it is a scalar or an array."""
    shape, index = case
    array = numbered(shape)
    selection = select(index, shape)
    everything: tuple[Any, ...] = (*(axis.as_slice for axis in selection.axes), ...)
    block = array[everything]
    assert block.shape == block_shape(selection.axes)
    found, expected = block[selection.finish], array[index]
    assert type(found) is type(expected)
    assert found.shape == expected.shape
    assert np.array_equal(found, expected)


@settings(max_examples=600, deadline=None)
@given(
    indexed(),
    st.sampled_from([1, 2, 8]),
    st.sampled_from([0, 4, 64]),
    st.sampled_from([None, 1, 24, 200]),
)
def test_runs_hold_exactly_what_is_wanted(
    case: tuple[tuple[int, ...], Any], itemsize: int, gap: int, longest: int | None
) -> None:
    """Filled from its runs, the block is numpy's; each place once, nothing outside the array is read."""
    shape, index = case
    array = numbered(shape, f"<i{itemsize}") if itemsize > 1 else numbered(shape).astype(np.int8)
    data = array.tobytes()
    axes = select(index, shape).axes
    block = np.zeros(block_shape(axes), array.dtype)
    times = np.zeros(block_shape(axes), int)
    total = 0
    for run in runs(axes, shape, itemsize, gap=gap, longest=longest):
        assert 0 <= run.start < run.stop <= len(data)
        assert longest is None or run.stop - run.start <= max(longest, itemsize)
        items = run.items(memoryview(data[run.start : run.stop]), array.dtype)
        if run.is_dense(itemsize):
            assert items.tobytes() == data[run.start : run.stop]
        place: tuple[Any, ...] = (*run.place, ...)
        block[place] = items
        times[place] += 1
        total += run.stop - run.start
    assert np.array_equal(block, array[tuple(axis.as_slice for axis in axes)])
    assert (times == 1).all()
    row_nbytes = prod(shape[1:]) * itemsize
    if gap == 0:
        assert total == block.nbytes
    elif shape and abs(axes[0].step) == 1:
        assert total <= rows_needed(index, shape) * row_nbytes


@settings(max_examples=300, deadline=None)
@given(st.integers(-3, 3).filter(bool), st.integers(0, 12), st.integers(0, 20), st.integers(0, 20))
def test_positions_within_a_range(step: int, count: int, start: int, length: int) -> None:
    """Those positions of an axis that lie in a range, and which of its positions they are."""
    axis = Axis(30, step, count)
    positions = [30 + i * step for i in range(count)]
    found, where = axis.within(start, start + length)
    assert [start + found.start + i * found.step for i in range(found.count)] == positions[where]
    assert positions[where] == [p for p in positions if start <= p < start + length]


@pytest.mark.parametrize(
    "index",
    [3, -4, (0, 9), (slice(None), 4), (0, 0, 0), (..., ...), (..., 0, 0, 0)],
    ids=repr,
)
def test_what_numpy_refuses_is_refused(index: Any) -> None:
    """Out of bounds, too many axes, two ellipses: an IndexError, as numpy's."""
    with pytest.raises(IndexError):
        numbered((3, 4))[index]
    with pytest.raises(IndexError):
        select(index, (3, 4))


@pytest.mark.parametrize("index", [[0, 1], np.array([0]), True, np.True_, (0, [1]), "a", 1.0, (None, False)])
def test_other_indices_are_refused_in_words(index: Any) -> None:
    """Lists, arrays, masks and texts are no basic indices; the error says what takes them."""
    with pytest.raises(IndexError, match=r"numpy\.asarray"):
        select(index, (3, 4))


def test_numpys_integers_are_integers() -> None:
    """Whatever has `__index__`, 0-d arrays included."""
    for index in (np.int64(2), np.uint8(2), np.array(2)):
        assert select(index, (3, 4)) == select(2, (3, 4))


def test_a_step_of_0_is_refused() -> None:
    """A ValueError, as numpy's."""
    with pytest.raises(ValueError, match="zero"):
        select(slice(None, None, 0), (3,))


def test_close_rows_come_together() -> None:
    """Every tenth row of 8 bytes is one run; with rows far apart each is its own."""
    axes = select(slice(0, 100, 10), (100, 2)).axes
    assert [(run.start, run.stop) for run in runs(axes, (100, 2), 4, gap=72)] == [(0, 728)]
    assert [(run.start, run.stop) for run in runs(axes, (100, 2), 4, gap=71)] == [
        (row * 8, row * 8 + 8) for row in range(0, 100, 10)
    ]


def test_a_slice_of_a_middle_axis_is_a_run_for_each_row() -> None:
    """Rows of experts: what lies together in each of them, and no more."""
    axes = select((slice(None), slice(10, 20)), (4, 100, 64)).axes
    found = [(run.start, run.stop) for run in runs(axes, (4, 100, 64), 2, gap=1000)]
    assert found == [(e * 12800 + 1280, e * 12800 + 2560) for e in range(4)]


def test_long_runs_are_cut_between_rows() -> None:
    """A run stays within the longest request, and goes on where the last one ended."""
    found = list(runs((Axis(0, 1, 10), Axis(0, 1, 6)), (10, 6), 4, longest=60))
    assert [(run.start, run.stop) for run in found] == [(at, at + 48) for at in range(0, 240, 48)]
    assert all(run.is_dense(4) for run in found)
