"""The memory benchmark runs; its smallest row stays below its cap."""

from __future__ import annotations

import pytest

from tests.bench import memory


@pytest.mark.parametrize("transfer", ["lfs", "xet"])
def test_a_small_model_under_the_small_cap(transfer: str) -> None:
    """A tenth of a gigabyte takes less than 300 MB, whatever carries it."""
    ((name, row),) = memory.rows([("plain 0.1", "300MB")], [transfer])
    assert row["peak"] < row["cap"] == 300_000_000
    assert row["bytes_in"] >= row["tensors"] * (8192 * 4096 * 2)
    memory.show(name, row)
