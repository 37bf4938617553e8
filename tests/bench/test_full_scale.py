"""The full-scale benchmark runs, and its layouts are those of the models; how fast, is for people to read."""

from __future__ import annotations

import pytest

from tests.bench import full_scale, layouts


@pytest.mark.parametrize(
    ("name", "tensors", "nbytes", "files"),
    [
        ("gpt-oss-20b", 459, 13_761_264_768, 3),
        ("deepseek-v3", 91_991, 688_574_839_360, 163),
    ],
)
def test_layouts(name: str, tensors: int, nbytes: int, files: int) -> None:
    """As many tensors, bytes and files as the originals."""
    layout, _ = layouts.model(name)
    held = [tensor for of_file in layout.values() for tensor in of_file]
    assert (len(held), layouts.nbytes(held), len(layout)) == (tensors, nbytes, files)


def test_a_plan_of_the_full_size() -> None:
    """gpt-oss-20b from its headers: every parameter is counted, and no weight is read."""
    rows = dict(full_scale.plans(["gpt-oss-20b"], {}))
    row = rows["plan gpt-oss-20b"]
    assert (row["tensors"], row["parameters"]) == (411, 20_914_757_184)
    assert row["requests"] < 40
    full_scale.show("plan gpt-oss-20b", row)


def test_a_mirror_that_is_dropped() -> None:
    """A small share, then all: what comes in and goes out grows with it."""
    rows = list(full_scale.mirrors("1000", (1, 5), {"workers": 2, "transfer": "lfs"}))
    (_, share), (_, whole) = rows
    assert (share["tensors"], whole["tensors"]) == (200, 1000)
    assert share["bytes_out"] * 5 == whole["bytes_out"] == 1000 * (64 * 64 * 2 + 128)
