"""The mirroring benchmark runs, and every way sends all of it; how fast, is for people to read."""

from __future__ import annotations

import json

import pytest

from tests.bench import mirroring


@pytest.mark.parametrize("model", ["bf16", "fp8"])
def test_every_way_works(capsys: pytest.CaptureFixture[str], model: str) -> None:
    """A small run, whole processes: the usual way holds source and output on the disk, a mirror does not."""
    mirroring.main(["--json", "--size", "8e6", "--runs", "1", "--models", model])
    rows = json.loads(capsys.readouterr().out)["models"][model]
    assert {"usual, lfs", "mirror, lfs", "usual, xet", "mirror, xet", "ingest 4, xet"} <= set(rows)
    assert all(row["wall"] > 0 and row["cpu"] > 0 and row["peak"] > 1e7 for row in rows.values())
    assert rows["mirror, xet"]["disk"] < 1e6 < 8e6 < rows["usual, xet"]["disk"]
    mirroring.show(model, rows)
    assert len(capsys.readouterr().out.splitlines()) == len(rows) + 2
