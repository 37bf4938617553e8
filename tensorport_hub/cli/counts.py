"""What happened so far in a run, counted from its events, and how it is said.

The numbers are what happened, not what is hoped: bytes handed to the destination, of those that the plan
says.
"""

from __future__ import annotations

from time import monotonic

from tensorport_hub.core.size import format_size
from tensorport_hub.meter import memory_now
from tensorport_hub.ports import (
    Begun,
    BytesRead,
    BytesWritten,
    Event,
    FileVerified,
    Kept,
    PartDone,
    Planned,
    Resumed,
)


class Counts:
    """What happened so far."""

    def __init__(self) -> None:
        self.begun = monotonic()
        self.parts = self.parts_done = self.total = self.read = self.written = self.verified = 0
        self.there = 0
        self.only_reads = False

    def add(self, event: Event) -> None:
        match event:
            case Begun():
                self.total = self.there = 0
            case Planned(parts=parts, bytes_in=read, bytes_out=written):
                self.parts, self.total, self.begun = parts, written or read, monotonic()
                self.only_reads = not written
                self.parts_done = self.read = self.written = 0
            case Resumed(parts=parts, nbytes=nbytes) | Kept(parts=parts, nbytes=nbytes):
                self.parts_done += parts
                self.written += nbytes
                self.there += nbytes
            case BytesRead(nbytes=nbytes):
                self.read += nbytes
            case BytesWritten(nbytes=nbytes):
                self.written += nbytes
            case PartDone():
                self.parts_done += 1
            case FileVerified():
                self.verified += 1

    @property
    def done(self) -> int:
        """Of `total`: bytes handed to the destination, or read where nothing is written."""
        return self.read if self.only_reads else self.written

    def numbers(self) -> list[str]:
        """For people, what is worth most first."""
        if self.only_reads:
            rate = self.read / max(monotonic() - self.begun, 1e-3)
            return [f"read {format_size(self.read)} of {format_size(self.total)}", f"{format_size(rate)}/s"]
        rate = (self.written - self.there) / max(monotonic() - self.begun, 1e-3)
        memory = memory_now()
        return [
            f"{format_size(self.written)} of {format_size(self.total)}",
            f"{format_size(rate)}/s",
            f"{self.parts_done:,}/{self.parts:,} parts",
            f"read {format_size(self.read)}",
            *([f"memory {format_size(memory)}"] if memory is not None else []),
        ]
