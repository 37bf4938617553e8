"""The loading benchmark runs, and every way finds the same values; how fast, is for people to read."""

from __future__ import annotations

import json

import pytest

from tests.bench import loading


def test_every_way_loads_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """A small run: whole processes, the same checksum by each; what gives another dtype is told."""
    loading.main(["--json", "--size", "2e6", "--runs", "1", "--dtypes", "BF16"])
    rows = json.loads(capsys.readouterr().out)["dtypes"]["BF16"]
    assert list(rows) == list(loading.WAYS)
    assert not [way for way, row in rows.items() if "failed" in row]
    assert len({row["arrays"] for row in rows.values()}) == 1
    whole = [row for way, row in rows.items() if "devices" not in way]  # slices begin at other pages
    assert len({row["checksum"] for row in whole}) == 1
    assert {way for way, row in rows.items() if not row["right"]} == {
        "np.load, every file",
        "np.load, mapped",
    }
    assert all(row["process"] > row["load"] > 0 and row["peak"] >= row["own"] > 0 for row in rows.values())
    loading.show("BF16", rows)
    assert len(capsys.readouterr().out.splitlines()) == len(rows) + 2
