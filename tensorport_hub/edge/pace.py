"""How fast one account may go: what all runs of this process know together.

The Hub counts by account, not by run: about 128 commits an hour, and so many requests in each window of five
minutes. So all clients of one endpoint and token share one `Pace`, whichever mirror, thread or bot they work
for. A window that was found exhausted is closed for everybody until it ends: nobody knocks meanwhile, and it
is waited out once (`RateLimit: "api";r=0;t=<seconds>`, as the Hub's documentation of rate limits has it).

Other machines may work for the same account: then each is dealt a share of every window, and holds back by
itself when that is used up, whatever the Hub would still let pass.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
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
        self._dealt: dict[str, _Dealt] = {}

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

    def deal(self, shares: Mapping[str, tuple[int, float]]) -> None:
        """From now on make at most so many requests of a window within any so many seconds.

        What was made before still counts; a window that is not named has no share but all of it.
        """
        with self._lock:
            before = {window: dealt.made for window, dealt in self._dealt.items()}
            self._dealt = {
                window: _Dealt(max(most, 1), seconds, before.get(window, deque()))
                for window, (most, seconds) in shares.items()
            }

    def asked(self, window: str) -> None:
        """Note a request that is made now."""
        with self._lock:
            if window in self._dealt:
                self._dealt[window].made.append(monotonic())

    def closed_seconds(self, window: str) -> float:
        """How long `api` or `resolvers` stays closed; 0 where it is open."""
        with self._lock:
            now = monotonic()
            dealt = self._dealt.get(window)
            used_up = dealt.closed_seconds(now) if dealt is not None else 0.0
            return max(self._closed.get(window, 0.0) - now, used_up, 0.0)


@dataclass
class _Dealt:
    """A share of a window, and when its requests were made."""

    most: int
    seconds: float
    made: deque[float]

    def closed_seconds(self, now: float) -> float:
        """Until half of the share is free again, so that not all who wait for it wait for one place."""
        while self.made and self.made[0] <= now - self.seconds:
            self.made.popleft()
        over = len(self.made) - self.most
        return self.made[over + self.most // 2] + self.seconds - now if over >= 0 else 0.0


_PACES: dict[tuple[str, str | None], Pace] = {}
_LOCK = threading.Lock()


def pace_of(endpoint: str, token: str | None) -> Pace:
    """The pace of an account at an endpoint."""
    with _LOCK:
        return _PACES.setdefault((endpoint, token), Pace())
