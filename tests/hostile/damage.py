"""Damage to JSON and to bytes, drawn by hypothesis so that what fails is found again and made small."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 20),
    st.sampled_from([1 << 31, 1 << 40, 1 << 62, 1 << 64, -(1 << 63), 1e308, -0.5, 128.0]),
    st.sampled_from(["", "F32", "U8", "int", "float", "../x", "a\0b", "x" * 300, "e4m3", "re:.*", "re:("]),
    st.lists(st.one_of(st.none(), st.integers(-1, 300), st.text(max_size=5)), max_size=4),
    st.dictionaries(st.text(max_size=6), st.integers(-1, 9), max_size=3),
)
"""What a damaged value may become."""


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything inside a JSON value."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from nodes(inner, (*path, key))


@st.composite
def damaged(draw: st.DrawFn, value: Any, most: int = 3) -> Any:
    """`value` with up to `most` of its parts replaced, removed, doubled or swapped."""
    made = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, most))):
        paths = list(nodes(made))
        if not paths:
            return draw(VALUES)
        *way, key = draw(st.sampled_from(paths))
        at = made
        for step in way:
            at = at[step]
        match draw(st.sampled_from(["replace", "remove", "nudge", "swap"])):
            case "replace":
                at[key] = draw(VALUES)
            case "remove":
                del at[key]
            case "nudge" if isinstance(at[key], int):
                at[key] = at[key] + draw(st.sampled_from([-1, 1, 2, -128]))
            case "nudge" if isinstance(at[key], str):
                at[key] = at[key][:-1]
            case _:
                other = draw(st.sampled_from(sorted(at, key=str) if isinstance(at, dict) else range(len(at))))
                at[key], at[other] = at[other], at[key]
    return made
