"""Retries without their waits, and a check that no test leaves a thread behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from tensorport_hub.engine import part


@pytest.fixture(autouse=True, scope="session")
def no_pauses() -> Iterator[None]:
    """A part is written again at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part, "_PAUSE", 0.0005)
        yield


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    """Every thread that a run starts ends with it."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        left = [t for t in threading.enumerate() if t not in before and t.is_alive()]
        if not left:
            return
        time.sleep(0.001)
    raise AssertionError(f"threads are left running: {left}")
