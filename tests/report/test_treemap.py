"""The layout: areas in proportion, no overlap, nothing outside; and what is drawn of many tensors."""

from __future__ import annotations

from itertools import combinations
from math import isclose

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.report.cells import Cell, Tensor, cells, natural, tree
from tensorport_hub.report.treemap import Box, squarify

SIZES = st.lists(st.one_of(st.integers(0, 10), st.integers(0, 10**12)), max_size=40)
BOXES = st.builds(Box, st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.floats(0.5, 2000), st.floats(0.5, 2000))


def overlap(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    width = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
    height = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
    return max(width, 0.0) * max(height, 0.0)


def inside(box: Box, whole: Box) -> bool:
    """Whether nothing of a box lies outside another, but for rounding."""
    slack = 1e-6 * max(whole.width, whole.height, 1)
    return (
        box.x >= whole.x - slack
        and box.y >= whole.y - slack
        and box.x + box.width <= whole.x + whole.width + slack
        and box.y + box.height <= whole.y + whole.height + slack
    )


@given(SIZES, BOXES)
@settings(deadline=None)
def test_areas_are_in_proportion_and_nothing_overlaps(sizes: list[int], box: Box) -> None:
    """Every size gets its share of the area, within the box; two boxes share nothing; a 0 gets nothing."""
    made = squarify(sizes, box)
    assert len(made) == len(sizes)
    total = sum(sizes)
    for size, found in zip(sizes, made, strict=True):
        expected = size / total * box.area if total else 0.0
        assert isclose(found.area, expected, rel_tol=1e-6, abs_tol=1e-6 * box.area)
        assert inside(found, box) or found.area == 0
    shown = [found for found in made if found.area > 0]
    assert all(overlap(one, other) <= 1e-6 * box.area for one, other in combinations(shown, 2))


def test_the_example_of_the_paper() -> None:
    """6, 6, 4, 3, 2, 2, 1 in 6 by 4 gives the boxes of the paper's figure 4."""
    made = squarify([6, 6, 4, 3, 2, 2, 1], Box(0, 0, 6, 4))
    rounded = [tuple(round(n, 2) for n in (b.x, b.y, b.width, b.height)) for b in made]
    assert rounded[:5] == [
        (0, 0, 3, 2),
        (0, 2, 3, 2),
        (3, 0, 1.71, 2.33),
        (4.71, 0, 1.29, 2.33),
        (3, 2.33, 1.2, 1.67),
    ]


NAMES = st.lists(
    st.lists(st.sampled_from(["a", "b", "layers", "0", "1", "", "weight"]), min_size=1, max_size=15),
    max_size=60,
)


@given(NAMES, st.integers(0, 10**9), st.floats(1, 400))
@settings(deadline=None)
def test_every_byte_is_drawn_once(names: list[list[str]], size: int, smallest: float) -> None:
    """Whatever the names, nested in each other too: cells hold all tensors once, in proportion, apart."""
    unique = sorted({".".join(words) for words in names})
    tensors = [Tensor(name, f"k{i % 3}", (1,), (size * (i + 1)) % 1000, 1) for i, name in enumerate(unique)]
    held = [tensor for tensor in tensors if tensor.nbytes]
    box = Box(0, 0, 300, 200)
    drawn, frames = cells(tree(tensors), box, smallest=smallest)
    total = sum(tensor.nbytes for tensor in held)
    assert sum(cell.nbytes for cell in drawn) == total
    assert sum(cell.count for cell in drawn) == len(held)
    for cell in drawn:
        assert isclose(cell.box.area, cell.nbytes / total * box.area, rel_tol=1e-6, abs_tol=1e-3)
        assert cell.tensor is None or (cell.count, cell.nbytes) == (1, cell.tensor.nbytes)
    assert all(inside(shown.box, box) for shown in [*drawn, *frames])
    assert all(overlap(a.box, b.box) <= 1e-3 for a, b in combinations(drawn, 2))
    names_shown = [cell.tensor.name for cell in drawn if cell.tensor is not None]
    assert len(names_shown) == len(set(names_shown))


def many(count: int) -> list[Tensor]:
    """A mixture of experts with so many tensors, one of them large."""
    found = [
        Tensor(f"model.layers.{i // 768}.experts.{i % 768 // 3}.{i % 3}", "BF16", (64, 64), 8192, 4096)
        for i in range(count - 1)
    ]
    return [Tensor("embed", "F32", (10**6,), 4 * 10**6, 10**6), *found]


@pytest.mark.parametrize("count", [1, 10, 1_000, 100_000])
def test_the_number_of_cells_is_bounded(count: int) -> None:
    """100,000 tensors make no more cells than the area has room for; each says how many it stands for."""
    drawn, _ = cells(tree(many(count)), Box(0, 0, 1160, 640), smallest=130)
    assert len(drawn) <= 1160 * 640 / 130 + 200
    assert sum(cell.count for cell in drawn) == count
    assert any(isinstance(cell, Cell) and cell.name == "embed" for cell in drawn)


def test_nothing_is_drawn_of_nothing() -> None:
    """Tensors without bytes, or none at all, have no cells."""
    assert cells(tree([]), Box(0, 0, 10, 10), smallest=1) == ([], [])
    assert cells(tree([Tensor("a", "F32", (0,), 0, 0)]), Box(0, 0, 10, 10), smallest=1) == ([], [])


def test_modules_of_one_size_come_by_number() -> None:
    """Layers 0, 1, 10, 11, 2 as a checkpoint lists them are laid out 0, 1, 2, 10, 11."""
    listed = [Tensor(f"layers.{i}.weight", "BF16", (64,), 128, 64) for i in sorted(map(str, range(12)))]
    drawn, _ = cells(tree(listed), Box(0, 0, 1160, 640), smallest=130)
    assert [cell.name for cell in drawn] == [f"layers.{i}.weight" for i in range(12)]


def test_names_in_their_natural_order() -> None:
    """Numbers count by value, wherever they stand, of any length; all else as text."""
    names = ["", "0", "9", "10", "9" * 5000, "a", "a.2.b1", "a.2.b03", "a.10", "b"]
    assert sorted(sorted(names, reverse=True), key=natural) == names
