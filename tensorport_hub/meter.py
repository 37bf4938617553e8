"""What a run did so far: counts of its events, and the memory of this process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from time import monotonic

from tensorport_hub.ports import (
    BytesRead,
    BytesWritten,
    Event,
    FileVerified,
    Kept,
    PartRetried,
    Resumed,
    Warned,
)

logger = logging.getLogger("tensorport_hub")

_MOMENTS = 512


class Pace:
    """Bytes read and written over time: at most so many moments, as far apart as that demands."""

    def __init__(self) -> None:
        self._begun = monotonic()
        self._apart = 0.1
        self._kept: list[tuple[float, int, int]] = []
        self._last = (0.0, 0, 0)

    def add(self, read: int, written: int) -> None:
        """The counts stand so now."""
        self._last = (monotonic() - self._begun, read, written)
        if not self._kept or self._last[0] - self._kept[-1][0] >= self._apart:
            self._kept.append(self._last)
        if len(self._kept) > _MOMENTS:
            self._kept, self._apart = self._kept[1::2], 2 * self._apart

    def moments(self) -> list[tuple[float, int, int]]:
        """Seconds, bytes read and bytes written, up to the last that was added."""
        return self._kept if self._kept[-1:] == [self._last] else [*self._kept, self._last]


class Meter:
    """Counts what a run reports, and passes it on; what the callback raises is logged, and ends there.

    Attributes:
        worker_memory: peak resident bytes of the largest worker process, of a run that is shared out.
    """

    def __init__(self, on_event: Callable[[Event], object] | None) -> None:
        self._on_event = on_event
        self._lock = threading.Lock()
        self._pace = Pace()
        self.bytes_read = self.bytes_written = self.retries = self.verified = self.kept = self.resumed = 0
        self.worker_memory: int | None = None
        self.warnings: list[str] = []

    def __call__(self, event: Event) -> None:
        with self._lock:
            match event:
                case BytesRead(nbytes=nbytes):
                    self.bytes_read += nbytes
                case BytesWritten(nbytes=nbytes):
                    self.bytes_written += nbytes
                case Kept(parts=parts):
                    self.kept += parts
                case Resumed(parts=parts):
                    self.resumed += parts
                case PartRetried():
                    self.retries += 1
                case FileVerified():
                    self.verified += 1
                case Warned(message=message):
                    self.warnings.append(message)
            if isinstance(event, BytesRead | BytesWritten):
                self._pace.add(self.bytes_read, self.bytes_written)
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:
            logger.exception("the report callback raised on %r", event)

    def moments(self) -> list[tuple[float, int, int]]:
        """Seconds, bytes read and bytes written over the run; empty where there were none."""
        with self._lock:
            return self._pace.moments() if self.bytes_read or self.bytes_written else []


def peak_memory() -> int | None:
    """Peak resident bytes of this very process, where the system tells."""
    return _status("VmHWM:")


def memory_now() -> int | None:
    """Resident bytes of this process, where the system tells."""
    return _status("VmRSS:")


def _status(key: str) -> int | None:
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            found = [line for line in status if line.startswith(key)]
    except OSError:
        return None
    return int(found[0].split()[1]) * 1024 if found else None
