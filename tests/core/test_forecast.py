"""Arithmetic of forecasts: limits, windows, and time from a rate."""

from __future__ import annotations

import pytest

from tensorport_hub.core.forecast import FREE, Rate, Window, limits, seconds, waits
from tensorport_hub.edge.hub_windows import stated
from tensorport_hub.errors import UseError
from tensorport_hub.outlook import parse_rate


def test_limits_count_entries_and_bytes() -> None:
    """Folders at the top are entries, too; the fullest folder counts; hard limits are told from advice."""
    paths = ["README.md", "manifest.json", *(f"shard_000/{i}.npy" for i in range(10_001)), "shard_001/a.npy"]
    found = {limit.what: limit for limit in limits(paths, 300_000_000_000)}
    assert (found["entries of a folder"].value, found["entries of a folder"].crossed) == (10_001, True)
    assert limits(["a/b", "c/d", "e"], 1)[0].value == 3
    assert (found["files of a repository"].value, found["files of a repository"].crossed) == (10_004, False)
    assert [(limit.hard, limit.crossed) for what, limit in found.items() if what.startswith("bytes")] == [
        (True, False),
        (False, True),
    ]


def test_windows_make_a_run_wait() -> None:
    """What is left now costs nothing; what goes beyond costs a window for each window's worth."""
    requests = {"api": 2_600, "resolvers": 10}
    assert waits(requests, FREE) == 600
    assert waits(requests, (Window("api", 1_000, 100, 300, True),)) == 900
    assert waits({"api": 1_000, "resolvers": 5_000}, FREE) == 0
    assert waits(requests, ()) == 0


def test_time_is_a_range() -> None:
    """From reading alone at the best rate to both in turn at the worst; never below the windows."""
    rate = Rate(50.0, 100.0, "measured")
    assert seconds(rate, bytes_in=1_000, bytes_out=2_000, waits=0) == (10.0, 60.0)
    assert seconds(rate, bytes_in=1_000, bytes_out=2_000, waits=300) == (300, 360.0)


def test_a_hub_states_its_windows() -> None:
    """The two headers are read; nonsense and nothing are no window."""
    headers = {"RateLimit": '"api";r=489;t=189', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}
    assert stated(headers) == Window("api", 500, 489, 300, True)
    for wrong in ({}, {"RateLimit": headers["RateLimit"]}, {**headers, "RateLimit-Policy": "q=0;w=300"}):
        assert stated(wrong) is None


def test_a_rate_is_a_size() -> None:
    """With `/s` or without; none is none; 0 and words are refused."""
    assert parse_rate("50MB/s") == parse_rate("50MB") == parse_rate(50_000_000) == 50_000_000
    assert parse_rate(None) is None
    for wrong in ("0", "fast", "MB/s"):
        with pytest.raises(UseError):
            parse_rate(wrong)
