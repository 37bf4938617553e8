"""A list of mirrors: what it may say, and what is told of one that is wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorport_hub.core.orders import FLAG, SIZE, TEXT, TEXTS, Key, Order, read

KEYS = {
    "precision": Key("precision", TEXT),
    "shard-size": Key("shard_size", SIZE),
    "pr": Key("create_pr", FLAG),
    "include": Key("include", TEXTS),
}


def test_orders_in_their_order() -> None:
    """Each table is an order; its keys become the arguments of `mirror`."""
    orders, problems = read(
        """
        [[mirror]]
        source = "org/a"

        [[mirror]]
        source = "org/b@v1"
        destination = "me/b"
        precision = "float16"
        shard-size = 1000
        pr = true
        include = ["a.*", "b.*"]
        """,
        KEYS,
    )
    assert problems == []
    options = {"precision": "float16", "shard_size": "1000", "create_pr": True, "include": ["a.*", "b.*"]}
    assert list(orders.values()) == [Order("org/a"), Order("org/b@v1", "me/b", options)]
    assert list(orders) == ["mirror 1 (`org/a`)", "mirror 2 (`org/b@v1`)"]


@pytest.mark.parametrize(
    ("order", "followed"),
    [
        (Order("org/a"), "org/a"),
        (Order("org/a@main"), "org/a"),
        (Order("hf://org/a/sub"), "org/a"),
        (Order("org/a@v1"), None),
        (Order("org/a", options={"revision": "v1"}), None),
        (Order("./folder"), None),
    ],
)
def test_what_it_follows(order: Order, followed: str | None) -> None:
    """The repository whose pushes to `main` concern it."""
    assert order.follows == followed


def test_all_problems_at_once() -> None:
    """Unknown keys, other types and missing sources, each with the table it is in; sound tables stand."""
    orders, problems = read(
        """
        title = "x"
        [[mirror]]
        source = "org/a"
        presicion = "float16"
        zzz = 1

        [[mirror]]
        destination = 3
        pr = "yes"
        include = ["a", 1]

        [[mirror]]
        source = ""
        shard-size = true
        precision = 7

        [[mirror]]
        source = "org/b"
        """,
        KEYS,
    )
    assert problems == [
        "unknown table `title`: expected `[[mirror]]`",
        "mirror 1 (`org/a`): unknown key `presicion`: did you mean `precision`?",
        "mirror 1 (`org/a`): unknown key `zzz`",
        "mirror 2: `source` is missing",
        "mirror 2: `destination` must be a string, got 3",
        "mirror 2: `pr` must be true or false, got 'yes'",
        "mirror 2: `include` must be a list of strings, got ['a', 1]",
        "mirror 3 (``): `source` must be a string, got ''",
        "mirror 3 (``): `shard-size` must be a size, got True",
        "mirror 3 (``): `precision` must be a string, got 7",
    ]
    assert list(orders.values()) == [Order("org/b")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no mirror"),
        ("[[mirror]", "is no TOML"),
        ('[mirror]\nsource = "org/a"', "is no list of tables"),
        ("mirror = [1]", "is no list of tables"),
    ],
)
def test_what_is_no_list(text: str, said: str) -> None:
    """One problem that says what was expected."""
    orders, problems = read(text, KEYS)
    assert orders == {}
    assert len(problems) == 1
    assert said in problems[0]


@given(st.text())
def test_any_text(text: str) -> None:
    """Whatever it holds: orders or problems, nothing else."""
    orders, problems = read(text, KEYS)
    assert orders or problems
