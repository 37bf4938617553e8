"""What a run looks like while it runs: a live bar on a terminal, elsewhere a line every ten seconds.

Both go to stderr and draw the same events. The numbers are what happened, not what is hoped: bytes handed to
the destination, of those that the plan says.
"""

from __future__ import annotations

import sys
import threading
from time import monotonic
from typing import Protocol, Self

import click
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tensorport_hub.core.size import format_size
from tensorport_hub.meter import memory_now
from tensorport_hub.ports import (
    Begun,
    BytesRead,
    BytesWritten,
    Committed,
    Event,
    Failed,
    FileVerified,
    Kept,
    PartDone,
    PartRetried,
    Planned,
    Resumed,
    Waiting,
    Warned,
)

_LINE_SECONDS = 10.0
_QUIET_WAIT = 2.0


class Display(Protocol):
    """Draws events; a context manager, callable from any thread."""

    def __call__(self, event: Event) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


class _Counts:
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

    def text(self) -> str:
        if self.only_reads:
            rate = self.read / max(monotonic() - self.begun, 1e-3)
            return f"read {format_size(self.read)} of {format_size(self.total)}, {format_size(rate)}/s"
        rate = (self.written - self.there) / max(monotonic() - self.begun, 1e-3)
        memory = memory_now()
        held = f", memory {format_size(memory)}" if memory is not None else ""
        return (
            f"read {format_size(self.read)},"
            f" written {format_size(self.written)} of {format_size(self.total)},"
            f" {self.parts_done}/{self.parts} parts, {format_size(rate)}/s{held}"
        )


def remark(event: Event) -> str | None:
    """A line that is worth saying even where no bar is drawn."""
    match event:
        case Begun(number=number, count=count, source=source):
            return f"[{number}/{count}] {source}"
        case Failed(source=source, message=message):
            return f"failed: {source}: {message}"
        case Warned(message=message):
            return f"warning: {message}"
        case Waiting(seconds=seconds, reason=reason) if seconds >= _QUIET_WAIT:
            return f"waiting {seconds:.0f} s: {reason}"
        case PartRetried(path=path, attempt=attempt, reason=reason):
            return f"retrying {path} (attempt {attempt}): {reason}"
        case Resumed(parts=parts, nbytes=nbytes):
            return f"continuing: {parts:,} files with {format_size(nbytes)} are there already"
        case Kept(parts=parts, nbytes=nbytes):
            return f"keeping: {parts:,} files with {format_size(nbytes)} were made of the same bytes"
        case Committed(published=published):
            word = "offered on" if published.pr_url else "published"
            return f"{word} {published.location}" + ("" if published.changed else " (nothing changed)")
    return None


class Quiet:
    """Warnings and failures only."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, (Warned, Failed)):
            click.echo(remark(event), err=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class Lines:
    """A line every ten seconds."""

    def __init__(self) -> None:
        self._counts, self._lock = _Counts(), threading.Lock()
        self._last = monotonic()

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._counts.add(event)
            line = remark(event)
            if line is not None:
                click.echo(line, err=True)
            if self._counts.total and monotonic() - self._last >= _LINE_SECONDS:
                self._last = monotonic()
                click.echo(self._counts.text(), err=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class Bar:
    """A live bar on a terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._counts, self._lock = _Counts(), threading.Lock()
        self._progress = Progress(
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=self._console,
        )
        self._task = self._progress.add_task("", total=None, detail="reading headers")
        self._live = Live(self._progress, console=self._console, refresh_per_second=5)

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._counts.add(event)
            line = remark(event)
        if line is not None:
            self._console.print(line, markup=False, highlight=False)
        if self._counts.total:
            detail = "publishing" if self._counts.parts_done == self._counts.parts else self._counts.text()
            self._progress.update(
                self._task, total=self._counts.total, completed=self._counts.done, detail=detail
            )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._counts.total:
            self._progress.update(self._task, detail=self._counts.text())
        self._live.stop()


def display(*, quiet: bool, no_progress: bool) -> Display:
    """The display that fits where stderr goes."""
    if quiet:
        return Quiet()
    return Bar() if sys.stderr.isatty() and not no_progress else Lines()
