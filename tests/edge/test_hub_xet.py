"""Streams that spare memory: they wait for what they sent, and for nothing that no longer comes."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import pytest

from tensorport_hub.devhub import DevHub, Fault
from tensorport_hub.edge import hub_xet
from tensorport_hub.edge.http import Http
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.edge.hub_xet import SPARING, XetSession
from tensorport_hub.errors import DestinationError
from tensorport_hub.ports import Writer

XORBS = "*/xorbs/*"
BLOCK, COUNT = 4 << 20, 60
"""A file's blocks: more than three of the 64 MB that hf_xet sends at a time."""


@pytest.fixture
def writer(hub: DevHub) -> Iterator[Writer]:
    """A stream of a sparing session."""
    client = HubClient(endpoint=hub.endpoint, token=hub.token)
    client.create_repo("me/mirror", private=False)
    session = XetSession.offered(client, Http(read_seconds=30), "me/mirror", uploads=SPARING)
    assert session is not None
    opened = session.open("a.npy", COUNT * BLOCK)
    yield opened
    opened.abort()
    session.close()


def block(number: int) -> memoryview:
    """Unlike every other, so that none is found stored already."""
    return memoryview(random.Random(number).randbytes(BLOCK))


def arrivals(hub: DevHub) -> int:
    return sum(seen.method == "POST" and "/xorbs/" in seen.path for seen in hub.seen)


def test_it_waits_for_what_it_sent(hub: DevHub, writer: Writer) -> None:
    """Where the storage takes its time, it gets no more than 64 MB and a little before these arrived."""
    hub.faults.add(Fault("stall", "POST", "cdn", XORBS, seconds=1.5, times=None))
    ahead = []
    for number in range(COUNT):
        writer.write(block(number))
        ahead.append((number + 1) * BLOCK - arrivals(hub) * (64 << 20))
    assert writer.finish().size == COUNT * BLOCK
    assert max(ahead) < (64 << 20) + 4 * BLOCK


def test_an_upload_that_failed_is_not_waited_for(
    hub: DevHub, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the next upload tells that one was given up: after a while the stream goes on to it, and waits no
    more, a block at a time."""
    monkeypatch.setattr(hub_xet, "_PATIENCE", 4.0)
    hub.faults.add(Fault("status", "POST", "cdn", XORBS, status=500, times=None))

    def write() -> None:
        for number in range(COUNT):
            writer.write(block(number))
        writer.finish()

    begun = time.monotonic()
    with pytest.raises(DestinationError, match=r"a\.npy") as caught:
        write()
    assert caught.value.transient
    assert time.monotonic() - begun < 10 * 4.0


def test_after_a_long_pause_it_waits_again(
    hub: DevHub, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A storage that was silent for longer than it was waited for, and goes on, is waited for as before."""
    monkeypatch.setattr(hub_xet, "_PATIENCE", 2.5)
    hub.faults.add(Fault("stall", "POST", "cdn", XORBS, seconds=5))
    hub.faults.add(Fault("stall", "POST", "cdn", XORBS, seconds=1.5, times=None))
    ahead = []
    for number in range(COUNT):
        writer.write(block(number))
        ahead.append((arrivals(hub), (number + 1) * BLOCK - arrivals(hub) * (64 << 20)))
    assert writer.finish().size == COUNT * BLOCK
    assert max(more for arrived, more in ahead if not arrived) > 64 << 20
    assert max(more for arrived, more in ahead if arrived) < (64 << 20) + 2 * BLOCK


def test_who_aborts_is_not_waited_for(hub: DevHub, writer: Writer) -> None:
    """A run that ends does not wait for a storage that is silent."""
    hub.faults.add(Fault("stall", "POST", "cdn", XORBS, seconds=60, times=None))
    ended: list[Exception] = []

    def write() -> None:
        try:
            for number in range(COUNT):
                writer.write(block(number))
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    time.sleep(3)
    assert thread.is_alive()
    writer.abort()
    thread.join(10)
    assert not thread.is_alive()
    assert ended
    hub.faults.clear()
