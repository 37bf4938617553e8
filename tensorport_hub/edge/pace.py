"""How fast one account may go: what all runs of this process know together.

The Hub counts by account, not by run: about 128 commits an hour, and so many requests in each window of five
minutes. So all clients of one endpoint and token share one `Pace`, whichever mirror, thread or bot they work
for. It is the only state of the whole process, because what it stands for is the account's alone. A window
that was found exhausted is closed for everybody until it ends: nobody knocks meanwhile, and it is waited out
once (`RateLimit: "api";r=0;t=<seconds>`, as the Hub's documentation of rate limits has it).
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Mapping
from time import monotonic

CHECKPOINTS_AN_HOUR = 90
"""Past so many commits within the hour, a checkpoint waits and gathers more."""

COMMITS_AN_HOUR = 120
"""Past so many, whatever still wants to commit waits."""

_HOUR = 3600.0
_LONGEST_CLOSED = 900.0
"""The Hub's windows have 300 seconds; what claims much more is not believed."""

_EXHAUSTED = re.compile(r'"([^"]+)"\s*;\s*r=0\b[^,]*?;\s*t=(\d+)')


class Pace:
    """What an account did within the last hour, and which of its windows are closed. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._commits: deque[float] = deque()
        self._closed: dict[str, float] = {}

    def committed(self) -> None:
        """Note a commit."""
        with self._lock:
            self._commits.append(monotonic())

    def commits(self) -> int:
        """Commits within the last hour."""
        with self._lock:
            while self._commits and self._commits[0] <= monotonic() - _HOUR:
                self._commits.popleft()
            return len(self._commits)

    def commit_seconds(self) -> float:
        """How long the next commit must wait; 0 where it need not."""
        over = self.commits() - COMMITS_AN_HOUR
        with self._lock:
            return self._commits[over] + _HOUR - monotonic() if 0 <= over < len(self._commits) else 0.0

    def hear(self, status: int, headers: Mapping[str, str]) -> None:
        """Close the window that a refusal (429) says is exhausted."""
        said = _EXHAUSTED.search(headers.get("RateLimit", "")) if status == 429 else None
        if said is not None:
            with self._lock:
                self._closed[said.group(1)] = monotonic() + min(float(said.group(2)), _LONGEST_CLOSED)

    def closed_seconds(self, window: str) -> float:
        """How long `api` or `resolvers` stays closed; 0 where it is open."""
        with self._lock:
            return max(self._closed.get(window, 0.0) - monotonic(), 0.0)


_PACES: dict[tuple[str, str | None], Pace] = {}
_LOCK = threading.Lock()


def pace_of(endpoint: str, token: str | None) -> Pace:
    """The pace of an account at an endpoint."""
    with _LOCK:
        return _PACES.setdefault((endpoint, token), Pace())
