"""Faults: what a network and a Hub do to their clients, on demand.

A `Fault` names a kind and the requests that it befalls (origin, method, a pattern on the decoded
path); `after` lets the first n of them pass and `times` says how many suffer. What each kind does
is carried out by `traffic` and `bodies`:

| kind | before the request is handled | on the way out |
|---|---|---|
| `close` | the connection is closed without an answer | |
| `status`, `conflict` | answered with `status` (429, 503, 403 ...), 412 | |
| `expire` | this signed URL answers 403 from now on, until it is resolved again | |
| `lost_answer` | | the request is carried out, then the connection is closed |
| `drop`, `stall` | (upload) after `at` bytes of the request's body | after `at` bytes of the answer |
| `wrong_bytes` | (upload) the byte at `at` is flipped as it comes in | the byte at `at` is flipped |
| `truncate` | | a consistent answer with `at` bytes (half of them without `at`) |
| `ignore_range` | | 200 with the whole file to a Range request |
| `slow` | | the answer's body comes at `rate` bytes a second, each by itself |
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

KINDS = (
    "drop",
    "truncate",
    "ignore_range",
    "status",
    "stall",
    "expire",
    "wrong_bytes",
    "conflict",
    "close",
    "lost_answer",
    "slow",
)


@dataclass(frozen=True)
class Fault:
    """One fault. Without `method`: POST for `conflict` and `lost_answer`, else GET; `*` is any."""

    kind: str
    method: str | None = None
    origin: str | None = None
    path: str = "*"
    times: int | None = 1
    after: int = 0
    at: int | None = None
    status: int | None = None
    retry_after: int | None = None
    ratelimit_t: int | None = None
    seconds: float = 30.0
    rate: int = 1 << 20

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"fault `{self.kind}`: expected one of {', '.join(KINDS)}")
        if self.origin not in (None, "hub", "cdn"):
            raise ValueError(f"origin `{self.origin}`: expected `hub`, `cdn` or None")

    def befalls(self, origin: str, method: str, path: str) -> bool:
        own = self.method or ("POST" if self.kind in ("conflict", "lost_answer") else "GET")
        return self.origin in (None, origin) and own in ("*", method) and fnmatchcase(path, self.path)

    @property
    def answer_status(self) -> int:
        """The status of a `status` or `conflict` fault."""
        if self.status is not None:
            return self.status
        if self.kind == "conflict":
            return 412
        limited = self.retry_after is not None or self.ratelimit_t is not None
        return 429 if limited else 503

    @property
    def answer_headers(self) -> dict[str, str]:
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.ratelimit_t is not None:
            headers["RateLimit"] = f'"api";r=0;t={self.ratelimit_t}'
        return headers


@dataclass(frozen=True)
class Fired:
    """A fault that befell a request."""

    fault: Fault
    origin: str
    method: str
    path: str

    @property
    def kind(self) -> str:
        return self.fault.kind


@dataclass
class _Armed:
    fault: Fault
    matches: int = 0
    fires: int = 0


@dataclass
class Faults:
    """The faults of one devhub. Thread-safe."""

    _armed: list[_Armed] = field(default_factory=list)
    _fired: list[Fired] = field(default_factory=list)
    _suffering: dict[int, Fault] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    on_fire: Callable[[Fired], None] | None = None
    """Called before the request that a fault befalls is handled; in the server's own thread."""

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self._armed.append(_Armed(fault))
        return fault

    def clear(self) -> None:
        """Disarm every fault and forget which ones fired."""
        with self._lock:
            self._armed.clear()
            self._fired.clear()

    @property
    def fired(self) -> list[Fired]:
        with self._lock:
            return list(self._fired)

    def take(self, origin: str, method: str, path: str) -> Fault | None:
        """The first armed fault that befalls this request; every matching one counts the request."""
        chosen: _Armed | None = None
        with self._lock:
            for armed in self._armed:
                if not armed.fault.befalls(origin, method, path):
                    continue
                armed.matches += 1
                fault = armed.fault
                left = fault.times is None or armed.fires < fault.times
                if chosen is None and left and armed.matches > fault.after:
                    armed.fires += 1
                    chosen = armed
            if chosen is None:
                return None
            fired = Fired(chosen.fault, origin, method, path)
            self._fired.append(fired)
        if self.on_fire is not None:
            self.on_fire(fired)
        return chosen.fault

    def suffer(self, request: object, fault: Fault | None) -> None:
        """Note the fault of a request under way; None when it is over."""
        with self._lock:
            if fault is None:
                self._suffering.pop(id(request), None)
            else:
                self._suffering[id(request)] = fault

    def of(self, request: object) -> Fault | None:
        """The fault of a request under way, for those who read its body."""
        with self._lock:
            return self._suffering.get(id(request))
