"""Rate limits: the Hub's fixed windows, per account or address and kind of request.

Two windows run for everybody who asks: `api` and `resolvers` (`/resolve/`). Every answer says how
many requests are left and when the window ends (`RateLimit: "api";r=<left>;t=<seconds>` and
`RateLimit-Policy`); past the end of a window's count the answer is 429.

Source: the Hub's documentation of rate limits; the headers follow the IETF draft
`draft-ietf-httpapi-ratelimit-headers`, which huggingface_hub parses.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping

PLENTY = 1_000_000


class Limits:
    """The windows of one devhub. Thread-safe."""

    def __init__(self, counts: Mapping[str, int], seconds: float) -> None:
        unknown = set(counts) - {"api", "resolvers"}
        if unknown:
            raise ValueError(f"rate limit `{min(unknown)}`: expected `api` or `resolvers`")
        self._counts = {"api": PLENTY, "resolvers": PLENTY, **counts}
        self._seconds = seconds
        self._windows: dict[tuple[str, str], tuple[float, int]] = {}
        self._lock = threading.Lock()

    @staticmethod
    def kind(path: str) -> str | None:
        """Which window a request of the Hub's origin counts in."""
        if "/resolve/" in path:
            return "resolvers"
        return "api" if path.startswith("/api/") or ".git/" in path else None

    def count(self, kind: str, who: str) -> tuple[bool, dict[str, str]]:
        """Count one request: whether it may pass, and the headers of its answer."""
        limit = self._counts[kind]
        moment = time.monotonic()
        with self._lock:
            ends, used = self._windows.get((kind, who), (0.0, 0))
            if moment >= ends:
                ends, used = moment + self._seconds, 0
            used += 1
            self._windows[kind, who] = (ends, used)
        left = max(limit - used, 0)
        headers = {
            "RateLimit": f'"{kind}";r={left};t={max(1, math.ceil(ends - moment))}',
            "RateLimit-Policy": f'"fixed window";"{kind}";q={limit};w={math.ceil(self._seconds)}',
        }
        return used <= limit, headers
