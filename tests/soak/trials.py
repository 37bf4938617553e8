"""What is done to a run: killed at a request, killed at a moment, disturbed by faults.

Each trial ends with runs that nothing disturbs, and with the undisturbed mirror.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from tensorport_hub.devhub import Fault
from tests.soak.runs import Range

DOCUMENTED = {0, 4, 5, 6, 7}
"""Exit codes that a disturbed run may end with."""

_MOST_RUNS = 6


def killed_at_request(at: Range, number: int, *, answered: bool) -> bool:
    """SIGKILL as request `number` comes in; it is carried out (`answered`) or not. Whether it came so far."""
    target = at.target()
    kind = "lost_answer" if answered else "close"
    at.hub.faults.clear()
    at.hub.faults.add(Fault(kind, method="*", after=number))
    with at.watched(target):
        process = at.start(target)
        at.hub.faults.on_fire = lambda fired: process.kill()
        code = at.end(process)
        at.hub.faults.on_fire = None
        at.hub.faults.clear()
        assert code in (0, -9), at.said()
        at.counts.kills += code == -9
        assert at.run(target) == 0, at.said()
    at.check(target)
    return code == -9


def killed_at_moments(at: Range, draw: random.Random, seconds: float) -> None:
    """SIGKILL after random times, again and again."""
    target = at.target()
    with at.watched(target):
        for _ in range(draw.randint(1, 4)):
            process = at.start(target)
            timer = threading.Timer(draw.uniform(0, seconds), process.kill)
            timer.start()
            code = at.end(process)
            timer.cancel()
            assert code in (0, -9), at.said()
            at.counts.kills += code == -9
        assert at.run(target) == 0, at.said()
    at.check(target)


def disturbed(at: Range, draw: random.Random) -> None:
    """Random faults, perhaps kills too, until a run succeeds; the last ones are left alone."""
    target = at.target()
    with at.watched(target):
        for number in range(_MOST_RUNS):
            at.hub.faults.clear()
            if number < _MOST_RUNS - 1:
                for _ in range(draw.randint(1, 4)):
                    at.hub.faults.add(_fault(draw))
            process = at.start(target)
            stop = _accident(at, draw, process.kill) if number < _MOST_RUNS - 1 else None
            code = at.end(process)
            if stop is not None:
                stop()
            at.hub.faults.on_fire = None
            at.counts.faults += len(at.hub.faults.fired)
            at.counts.kills += code == -9
            assert code in DOCUMENTED | {-9}, at.said()
            if code == 0:
                break
        at.hub.faults.clear()
        assert at.run(target) == 0, at.said()
    at.check(target)


def _accident(at: Range, draw: random.Random, kill: Callable[[], None]) -> Callable[[], None] | None:
    """Now and then the token expires midway, or the process is killed besides."""
    kind = draw.choice(["nothing", "nothing", "token", "kill"])
    if kind == "nothing":
        return None
    old = at.token

    def strike() -> None:
        if kind == "kill":
            kill()
        else:
            at.hub.revoke(old)
            at.counts.faults += 1

    timer = threading.Timer(draw.uniform(0.1, 1.5), strike)
    timer.start()

    def stop() -> None:
        timer.cancel()
        timer.join()
        if kind == "token":
            at.token = at.hub.add_token("me")

    return stop


def _fault(draw: random.Random) -> Fault:
    """One of everything that networks and Hubs do."""
    after, times = draw.randrange(12), draw.randint(1, 4)
    anywhere = draw.choice(["hub", "cdn", None])
    return draw.choice(
        [
            Fault("status", "*", anywhere, status=429, retry_after=0, after=after, times=times * 3),
            Fault(
                "status", "*", anywhere, status=draw.choice([500, 502, 503, 504]), after=after, times=times
            ),
            Fault("status", "*", anywhere, status=403, after=after, times=1),
            Fault("close", "*", anywhere, after=after, times=times),
            Fault("lost_answer", "POST", "hub", after=after, times=times),
            Fault("drop", "GET", "cdn", at=draw.randrange(200_000), after=after, times=times),
            Fault("drop", "PUT", "cdn", at=draw.randrange(100_000), after=after, times=times),
            Fault("truncate", "GET", "cdn", after=after, times=times),
            Fault("ignore_range", "GET", "cdn", after=after, times=times),
            Fault("stall", "GET", "cdn", at=draw.randrange(50_000), seconds=4, after=after, times=1),
            Fault("expire", "GET", "cdn", after=after, times=times),
            Fault("wrong_bytes", "GET", "cdn", at=draw.randrange(400_000), after=after, times=1),
            Fault("wrong_bytes", "PUT", "cdn", at=draw.randrange(100_000), after=after, times=1),
            Fault("conflict", "POST", "hub", "*/commit/*", after=draw.randrange(4), times=1),
        ]
    )
