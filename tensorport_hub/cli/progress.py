"""What a run looks like while it runs: a live bar on a terminal, elsewhere a line every ten seconds.

Both go to stderr and draw the same events, counted in `counts`; the bar has a module of its own.
"""

from __future__ import annotations

import sys
import threading
from time import monotonic
from typing import Protocol, Self

import click

from tensorport_hub.cli.counts import Counts
from tensorport_hub.core.size import format_size
from tensorport_hub.ports import (
    Begun,
    Committed,
    Event,
    Failed,
    Kept,
    PartRetried,
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
            word = (
                "offered on"
                if published.pr_url
                else "written to"
                if published.commit is None
                else "published"
            )
            return f"{word if published.changed else 'unchanged:'} {published.location}"
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
        self._counts, self._lock = Counts(), threading.Lock()
        self._last = monotonic()

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._counts.add(event)
            line = remark(event)
            if line is not None:
                click.echo(line, err=True)
            if self._counts.total and monotonic() - self._last >= _LINE_SECONDS:
                self._last = monotonic()
                click.echo(", ".join(self._counts.numbers()), err=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def display(*, quiet: bool, no_progress: bool) -> Display:
    """The display that fits where stderr goes."""
    if quiet:
        return Quiet()
    if no_progress or not sys.stderr.isatty():
        return Lines()
    from tensorport_hub.cli.bar import Bar

    return Bar(remark)
