"""When a call is made again: only for errors that say they are passing, after the time they ask for.

Waits grow by two from `_FIRST`, with jitter so that many clients don't come back at once; a server's own
`Retry-After` or `RateLimit` counts instead where it is longer. What waits in a thread of its own is given an
event that ends the wait: nobody waits for a thread that sleeps through the end of its run.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from tensorport_hub.errors import TensorportError
from tensorport_hub.ports import Report, Waiting

ATTEMPTS = 6
_FIRST = 0.3
_LONGEST = 30.0
_LONGEST_ASKED = 900.0

T = TypeVar("T")


def pause(
    error: TensorportError, failures: int, report: Report, closed: threading.Event | None = None
) -> None:
    """Sleep before try `failures + 1`, and say so.

    Raises:
        TensorportError: `error`, since `closed` was set meanwhile.
    """
    seconds = min(_FIRST * 2 ** (failures - 1), _LONGEST) * (0.75 + random.random() / 2)
    if error.retry_after is not None:
        seconds = max(seconds, min(error.retry_after, _LONGEST_ASKED))
    report(Waiting(seconds, error.message))
    if closed is None:
        time.sleep(seconds)
    elif closed.wait(seconds):
        raise error


def retried(call: Callable[[], T], report: Report, closed: threading.Event | None = None) -> T:
    """`call()`, again while it fails in passing, a few times.

    Raises:
        TensorportError: the last failure.
    """
    for failures in range(1, ATTEMPTS + 1):
        try:
            return call()
        except TensorportError as error:
            if not error.transient or failures == ATTEMPTS:
                raise
            pause(error, failures, report, closed)
    raise AssertionError("unreachable")
