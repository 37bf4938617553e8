"""The reading benchmark runs, and every way reads all of it; how fast, is for people to read."""

from __future__ import annotations

import json

import pytest

from tests.bench import reading
from tests.bench.readers import PEERS, absent


def test_every_way_reads_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """A small run, whole processes: all ways add up the same bytes, and each stays under its cap."""
    reading.main(["--json", "--size", "8e6", "--runs", "1"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {"http, 300MB", "xet, 300MB", "http, 1GB", "xet, 1GB", "http, 1GB, unpacked"} <= set(rows)
    assert set(rows) >= {peer for peer in PEERS if absent(peer) is None}
    assert all(row["peak"] < 300e6 for name, row in rows.items() if name.endswith("300MB"))
    assert rows["xet, 1GB"]["sent"] < rows["http, 1GB"]["sent"]
    assert rows["http, 1GB"]["bytes"] >= 8e6
    reading.show(rows)
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows) + sum(
        absent(peer) is not None for peer in PEERS
    )


@pytest.mark.slow
def test_what_false_answers_become(capsys: pytest.CaptureFixture[str]) -> None:
    """A server that ignores ranges or sends less is an error of ours; others take what comes."""
    reading.main(["--json", "--faults", "--size", "8e6"])
    found = json.loads(capsys.readouterr().out)
    for way in ("http", "xet"):
        assert found[way] == {"ignore_range": "error", "truncate": "error"}
    assert found["HfFileSystem"]["ignore_range"] == "wrong bytes"
