"""The memory benchmark runs; its smallest row stays below its cap."""

from __future__ import annotations

import pytest

from tests.bench import memory


@pytest.mark.parametrize("transfer", ["lfs", "xet"])
@pytest.mark.parametrize(("model", "nbytes_out"), [("plain 0.1", 67_108_864), ("mxfp4 0.1", 398_131_200)])
def test_a_small_model_under_the_small_cap(model: str, nbytes_out: int, transfer: str) -> None:
    """A tenth of a gigabyte takes less than 300 MB, whatever carries it, and how much larger it becomes."""
    ((name, row),) = memory.rows([(model, "300MB")], [transfer])
    assert row["peak"] < row["cap"] == 300_000_000
    assert row["bytes_out"] >= nbytes_out
    memory.show(name, row)
