"""The cluster benchmark runs; how fast it is on a busy machine, is for people to read."""

from __future__ import annotations

import json

import pytest

from tests.bench import cluster


def test_two_are_faster_than_one(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the source is what is waited for, twice the workers need clearly less time."""
    for name in ("HF_ENDPOINT", "HF_TOKEN", "HF_HOME", "HF_XET_CACHE"):
        monkeypatch.setenv(name, "")
    cluster.main(["--json", "--workers", "1", "2", "--files", "6", "--size", "2.4e6", "--rate", "4e5"])
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert list(rows) == ["alone", "1", "2"]
    assert len({row["bytes"] for row in rows.values()}) == 1
    assert rows["2"]["wall"] < 0.8 * rows["1"]["wall"]
    cluster.show(rows)
    assert len(capsys.readouterr().out.splitlines()) == 4
