"""When a call is made again, how long it waits, and what it says meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from tensorport_hub.edge.retry import ATTEMPTS, pause, retried
from tensorport_hub.errors import CheckpointError, DestinationError, SourceError, TensorportError
from tensorport_hub.ports import Event, Waiting


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of every sleep, none of which is slept."""
    seconds: list[float] = []
    monkeypatch.setattr("tensorport_hub.edge.retry.time.sleep", seconds.append)
    return seconds


def failing(times: int, error: BaseException) -> Callable[[], str]:
    """A call that fails `times` times, then answers; `calls` counts."""
    left = [times]

    def call() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return "answer"

    return call


def transient(retry_after: float | None = None) -> SourceError:
    return SourceError("the line is busy", transient=True, retry_after=retry_after)


@pytest.mark.parametrize("failures", range(ATTEMPTS))
def test_passing_faults_are_tried_again(slept: list[float], failures: int) -> None:
    """Up to five failures in passing end in the answer, with one wait each, each reported as it is slept."""
    events: list[Event] = []
    assert retried(failing(failures, transient()), events.append) == "answer"
    assert len(slept) == failures
    assert events == [Waiting(seconds, "the line is busy") for seconds in slept]


def test_attempts_are_bounded(slept: list[float]) -> None:
    """The sixth failure is raised, after five waits."""
    error = transient()
    with pytest.raises(SourceError) as caught:
        retried(failing(ATTEMPTS, error), lambda event: None)
    assert caught.value is error
    assert len(slept) == ATTEMPTS - 1 == 5


def test_a_wait_ends_with_the_run() -> None:
    """What waits in a thread is woken when its run is over, and raises what it waited for."""
    closed = threading.Event()
    error = transient(retry_after=600.0)
    threading.Timer(0.05, closed.set).start()
    begun = time.monotonic()
    with pytest.raises(SourceError) as caught:
        retried(failing(3, error), lambda event: None, closed)
    assert caught.value is error
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize(
    "error", [SourceError("gone"), CheckpointError("bad"), ValueError("ours"), KeyboardInterrupt()]
)
def test_lasting_faults_are_raised_at_once(slept: list[float], error: BaseException) -> None:
    """What is not passing, or no error of ours, is raised at once."""
    with pytest.raises(type(error)) as caught:
        retried(failing(1, error), lambda event: None)
    assert caught.value is error
    assert slept == []


def test_a_lasting_fault_after_a_passing_one_is_raised(slept: list[float]) -> None:
    """The first lasting failure ends it, and is the one that is raised."""
    errors: list[TensorportError] = [transient(), DestinationError("refused")]

    def call() -> None:
        raise errors.pop(0)

    with pytest.raises(DestinationError, match="refused"):
        retried(call, lambda event: None)
    assert len(slept) == 1


def test_waits_double_with_jitter(slept: list[float]) -> None:
    """Wait n lies within a quarter of 0.3 s * 2^(n-1), and never above 37.5 s."""
    for failures in range(1, 12):
        for _ in range(20):
            pause(transient(), failures, lambda event: None)
        expected = min(0.3 * 2 ** (failures - 1), 30.0)
        assert all(0.75 * expected <= seconds <= 1.25 * expected for seconds in slept)
        assert len(set(slept)) > 1
        slept.clear()


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [(0.0, 0.2, 0.4), (-60.0, 0.2, 0.4), (7.0, 7.0, 7.0), (900.0, 900.0, 900.0), (1e9, 900.0, 900.0)],
)
def test_the_other_side_is_heeded(slept: list[float], asked: float, least: float, most: float) -> None:
    """A wait that the other side asked for counts where it is longer, up to 15 minutes."""
    pause(transient(asked), 1, lambda event: None)
    assert least <= slept[0] <= most
