"""What every test stands on."""

from __future__ import annotations

import signal

import pytest


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Some runners start their jobs with SIGINT ignored, which children inherit: here it interrupts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
