"""Byte ranges as data: which requests cover which spans.

All ranges are half-open `(start, stop)`. Fetching is somebody else's: these functions only decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Range = tuple[int, int]


def coalesce(ranges: Iterable[Range], *, gap: int = 0, longest: int | None = None) -> list[Range]:
    """Join ranges that overlap, touch, or lie at most `gap` bytes apart; ascending, empty ones dropped.

    No byte of an input is lost, none is named twice. A joined range stays within `longest` bytes, except
    where a single input is longer by itself or inputs overlap.
    """
    joined: list[Range] = []
    for start, stop in sorted(r for r in ranges if r[0] < r[1]):
        if joined:
            first, last = joined[-1]
            fits = longest is None or max(stop, last) - first <= longest
            if start < last or (start - last <= gap and fits):
                joined[-1] = (first, max(stop, last))
                continue
        joined.append((start, stop))
    return joined


def pieces(start: int, stop: int, size: int) -> Iterator[Range]:
    """Cut `start:stop` into consecutive ranges of at most `size`."""
    if size <= 0:
        raise ValueError(f"piece size must be positive, got {size}")
    for at in range(start, stop, size):
        yield at, min(at + size, stop)


def holes(ranges: Iterable[Range], start: int, stop: int) -> list[Range]:
    """What of `start:stop` no range covers."""
    missing: list[Range] = []
    at = start
    for first, last in coalesce(ranges):
        if first >= stop:
            break
        if first > at:
            missing.append((at, first))
        at = max(at, last)
    if at < stop:
        missing.append((at, stop))
    return missing
