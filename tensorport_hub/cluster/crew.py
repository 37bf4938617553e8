"""The workers of a run, as the coordinator sees them; and those of a `concurrent.futures.Executor`.

An executor has no names for its workers and no way to speak to one of them. So the brief travels with each
share, what a share has to say comes at its end, and the token is what the workers' environment has.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from dataclasses import dataclass
from typing import Protocol

from tensorport_hub.cluster.brief import Assignment, Brief, Ended, Told, bare
from tensorport_hub.cluster.workplace import Workplace
from tensorport_hub.errors import DestinationError


@dataclass(frozen=True)
class Failed:
    """An assignment that a worker could not carry out, and why."""

    number: int
    worker: str
    error: Exception


@dataclass(frozen=True)
class Lost:
    """A worker that went away, with the assignment that it had."""

    number: int
    worker: str


News = Told | Ended | Failed | Lost


class Crew(Protocol):
    """Workers; all calls come from one thread."""

    @property
    def workers(self) -> frozenset[str]:
        """All that there are, or may be."""

    def free(self) -> Sequence[str]:
        """Those that can take a share now."""

    def give(self, worker: str, assignment: Assignment) -> None:
        """Let a free one carry it out."""

    def news(self, seconds: float) -> Sequence[News]:
        """What has happened; waits at most so long.

        Raises:
            DestinationError: the workers can't be reached any more, as a whole.
        """

    def close(self) -> None:
        """Stop everything that is under way; never raises."""


def work_alone(brief: Brief, assignment: Assignment) -> Ended:
    """A share, in a process that knows nothing of the run."""
    try:
        with Workplace(brief, None) as place:
            return place.carry_out(assignment, lambda told: None, lambda: True)
    except Exception as error:
        failure = bare(error)
    raise failure


class ExecutorCrew:
    """The workers of an executor, which stays the caller's own.

    Args:
        shares: how many there are; an executor that does not say how many workers it has is taken to have as
            many.
    """

    def __init__(self, executor: Executor, brief: Brief, *, shares: int) -> None:
        self._executor, self._brief = executor, brief
        most = getattr(executor, "_max_workers", None)  # what the library's own executors call it
        count = most if isinstance(most, int) and most > 0 else max(shares, 1)
        self.workers = frozenset(str(i + 1) for i in range(count))
        self._running: dict[str, tuple[int, Future[Ended]]] = {}

    def free(self) -> Sequence[str]:
        return sorted(self.workers - self._running.keys())

    def give(self, worker: str, assignment: Assignment) -> None:
        try:
            future = self._executor.submit(work_alone, self._brief, assignment)
        except RuntimeError as error:  # shut down, or broken
            raise DestinationError(f"the executor takes no more: {error}") from None
        self._running[worker] = assignment.number, future

    def news(self, seconds: float) -> Sequence[News]:
        deadline = time.monotonic() + seconds
        while not (done := [w for w, (_, future) in self._running.items() if future.done()]):
            if time.monotonic() >= deadline:
                return []
            time.sleep(min(seconds, 0.05))
        return [self._of(worker, *self._running.pop(worker)) for worker in done]

    def _of(self, worker: str, number: int, future: Future[Ended]) -> News:
        try:
            return future.result()
        except (BrokenExecutor, CancelledError) as error:
            raise DestinationError(
                f"the executor broke: {error or type(error).__name__}",
                hint="a worker may have been killed, for its memory; the same call continues",
            ) from None
        except Exception as error:
            return Failed(number, worker, error)

    def close(self) -> None:
        for _, future in self._running.values():
            future.cancel()
