"""What a run did so far: counts of its events, and the memory of this process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

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


class Meter:
    """Counts what a run reports, and passes it on; what the callback raises is logged, and ends there."""

    def __init__(self, on_event: Callable[[Event], object] | None) -> None:
        self._on_event = on_event
        self._lock = threading.Lock()
        self.bytes_read = self.bytes_written = self.retries = self.verified = self.kept = self.resumed = 0
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
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:
            logger.exception("the report callback raised on %r", event)


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
