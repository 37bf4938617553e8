"""The Hub as a source: the contract, and what is its own: one resolve, pinned commits, strict answers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

import pytest

from tensorport_hub.devhub import DevHub, Fault
from tensorport_hub.edge import retry
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.edge.hub_source import HubSource
from tensorport_hub.errors import SourceError
from tensorport_hub.ports import Event, Waiting
from tests.contracts.source import SourceContract, SourceOf

CONTENT = random.Random(3).randbytes(500_000)


def open_source(hub: DevHub, repo_id: str = "org/model", report: list[Event] | None = None) -> HubSource:
    client = HubClient(endpoint=hub.endpoint, token=hub.token)
    state = client.repo_state(repo_id, None, SourceError)
    events: list[Event] = [] if report is None else report
    return HubSource(client, state, read_seconds=0.5, report=events.append)


class TestHubSource(SourceContract):
    """The duties of every source."""

    @pytest.fixture
    def source_of(self, hub: DevHub) -> Iterator[SourceOf]:
        opened: list[HubSource] = []

        def make(files: Mapping[str, bytes]) -> HubSource:
            hub.add_repo("org/model", dict(files))
            opened.append(open_source(hub))
            return opened[-1]

        yield make
        for source in opened:
            source.close()


@pytest.fixture
def seeded(hub: DevHub, monkeypatch: pytest.MonkeyPatch) -> DevHub:
    monkeypatch.setattr(retry, "_FIRST", 0.01)
    hub.add_repo("org/model", {"model.safetensors": CONTENT, "config.json": b"{}"})
    return hub


def read(source: HubSource, start: int, stop: int, path: str = "model.safetensors") -> bytes:
    buffer = bytearray(stop - start)
    source.read_into(path, start, memoryview(buffer))
    return bytes(buffer)


def test_one_resolve_serves_many_ranges(seeded: DevHub) -> None:
    """The storage link of a file is found once and used for every range; the token stays at the endpoint."""
    source = open_source(seeded)
    for start in range(0, 500_000, 50_000):
        assert read(source, start, start + 50_000) == CONTENT[start : start + 50_000]
    seen = seeded.seen
    assert [s.method for s in seen if "/resolve/" in s.path] == ["HEAD"]
    assert all(not s.authorized for s in seen if s.origin == "cdn")
    assert sum(s.origin == "cdn" for s in seen) == 10


def test_a_moved_branch_is_not_followed(seeded: DevHub) -> None:
    """What was opened is what is read, although the branch has moved."""
    source = open_source(seeded)
    seeded.add_repo("org/model", {"model.safetensors": b"\0" * 500_000}, message="moved")
    assert read(source, 0, 500_000) == CONTENT


def test_an_expired_link_is_resolved_again(seeded: DevHub) -> None:
    """A storage link that answers 403 costs one more resolve and nothing else."""
    source = open_source(seeded)
    read(source, 0, 10)
    seeded.faults.add(Fault("expire", origin="cdn"))
    assert read(source, 100, 300) == CONTENT[100:300]
    assert [s.method for s in seeded.seen if "/resolve/" in s.path] == ["HEAD", "HEAD"]


def test_reading_goes_on_where_it_broke_off(seeded: DevHub) -> None:
    """After a drop, only the bytes that are missing are asked for."""
    source = open_source(seeded)
    seeded.faults.add(Fault("drop", origin="cdn", at=200_000))
    assert read(source, 0, 500_000) == CONTENT
    ranges = [s.range for s in seeded.seen if s.origin == "cdn"]
    assert ranges[0] == "bytes=0-499999"
    start = int(str(ranges[1]).removeprefix("bytes=").partition("-")[0])
    assert 0 < start <= 200_000


@pytest.mark.parametrize("kind", ["truncate", "ignore_range", "stall", "close"])
def test_false_answers_never_become_bytes(seeded: DevHub, kind: str) -> None:
    """A short 206, a 200 to a range, silence: asked again, and an error where it stays, never other bytes."""
    source = open_source(seeded)
    read(source, 0, 1)
    seeded.faults.add(Fault(kind, origin="cdn", at=50, seconds=1, times=2))
    assert read(source, 1000, 2000) == CONTENT[1000:2000]
    seeded.faults.add(Fault(kind, origin="cdn", at=0, seconds=1, times=None))
    with pytest.raises(SourceError):
        read(source, 3000, 4000)


def test_waiting_is_reported_and_obeyed(seeded: DevHub) -> None:
    """A 429 with `RateLimit` makes the run wait as long as it says, and an event tells why."""
    events: list[Event] = []
    source = open_source(seeded, report=events)
    seeded.faults.add(Fault("status", origin="cdn", status=429, ratelimit_t=1))
    assert read(source, 0, 10) == CONTENT[:10]
    waits = [event for event in events if isinstance(event, Waiting)]
    assert len(waits) == 1
    assert waits[0].seconds >= 1
    assert "rate-limited" in waits[0].reason


def test_a_whole_regular_file_needs_no_storage(seeded: DevHub) -> None:
    """A regular file comes from the endpoint itself, with the token."""
    source = open_source(seeded)
    assert read(source, 0, 2, "config.json") == b"{}"
    assert all(s.origin == "hub" for s in seeded.seen)


def test_headers_around_the_first_range(hub: DevHub) -> None:
    """Headers of 99,990 to 100,010 bytes, where other readers broke, read whole through the Hub."""
    import json
    import struct

    from tensorport_hub.survey import read_header

    for size in range(99_990, 100_011):
        entry = {"w": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}, "__metadata__": {"pad": ""}}
        pad = size - len(json.dumps(entry))
        entry["__metadata__"] = {"pad": "x" * pad}
        text = json.dumps(entry).encode()
        assert len(text) == size
        hub.add_repo("org/model", {"model.safetensors": struct.pack("<Q", size) + text + b"abc"})
        source = open_source(hub)
        (file,) = [f for f in source.files if f.path == "model.safetensors"]
        header = read_header(source, file)
        assert [(t.name, t.start, t.stop) for t in header.tensors] == [("w", 8 + size, 11 + size)]
        source.close()
