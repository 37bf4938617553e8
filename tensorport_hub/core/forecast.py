"""What a run will ask of others and of the clock, before it begins: limits, requests, commits, time.

Numbers are upper estimates of a run that meets no fault and continues none; a test counts the requests of
real runs against them. Limits are those of the Hub's documentation ("Storage limits", "Rate limits"); where
a Hub says how wide an account's windows are, that counts. The time is arithmetic over a rate, and says where
that is from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

FOLDER_ENTRIES, REPOSITORY_FILES = 10_000, 100_000
FILE_NBYTES, LARGE_FILE_NBYTES = 500_000_000_000, 200_000_000_000

_PREUPLOAD_FILES = 256


@dataclass(frozen=True)
class Limit:
    """A number that is limited: `most` may be crossed where it is not `hard`, which nobody recommends."""

    what: str
    value: int
    most: int
    hard: bool

    @property
    def crossed(self) -> bool:
        return self.value > self.most


@dataclass(frozen=True)
class Window:
    """So many requests of a kind (`api`, `resolvers`) an account may make in so many seconds.

    `left` are those of the present window, and `stated` whether the Hub itself said all this.
    """

    kind: str
    most: int
    left: int
    seconds: int
    stated: bool


FREE = (Window("api", 1_000, 1_000, 300, False), Window("resolvers", 5_000, 5_000, 300, False))
"""What the documentation says of a free account."""


@dataclass(frozen=True)
class Rate:
    """Bytes a second, from the slowest to the fastest that was seen, and how they are known."""

    low: float
    high: float
    how: str


@dataclass(frozen=True)
class Forecast:
    """What is to be expected of a run.

    Attributes:
        files: of the whole mirror, small ones included.
        requests: to the Hub: `api`, `resolvers` (of files), `commits`; all 0 for folders.
        windows: what of them the account may make.
        waits: seconds that the windows alone will take.
        rate, seconds: (at least, at most), where a rate is known.
    """

    files: int
    limits: tuple[Limit, ...]
    requests: dict[str, int]
    windows: tuple[Window, ...]
    waits: int
    rate: Rate | None
    seconds: tuple[float, float] | None


def limits(paths: Sequence[str], largest: int) -> tuple[Limit, ...]:
    """The Hub's limits on a repository with these files, the largest of so many bytes."""
    entries = Counter(path.rpartition("/")[0] for path in paths)
    entries[""] += len({path.split("/")[0] for path in paths if "/" in path})
    return (
        Limit("entries of a folder", max(entries.values()), FOLDER_ENTRIES, True),
        Limit("files of a repository", len(paths), REPOSITORY_FILES, False),
        Limit("bytes of a file", largest, FILE_NBYTES, True),
        Limit("bytes of a file, as recommended", largest, LARGE_FILE_NBYTES, False),
    )


def source_requests(weights: int, carried: int) -> dict[str, int]:
    """To a Hub that is read from: each file is resolved once.

    The card, what is carried over, and the index of several weight files are fetched there, too; the
    configuration once more, where it is carried over.
    """
    small = carried + 1 + (weights > 1)
    return {"api": 1, "resolvers": weights + 2 * small + 1, "commits": 0}


def destination_requests(
    *, parts: int, small: int, checkpoints: int | None, pull: bool, lfs: bool
) -> dict[str, int]:
    """To a Hub that is published on.

    Args:
        checkpoints: before the publication; None: one commit does it all.
        pull: a pull request is left open.
        lfs: each part is asked for and confirmed by itself; by Xet they are not.
    """
    api = 10 + ceil(max(small, 1) / _PREUPLOAD_FILES) + (2 * parts if lfs else 1)
    commits = 1
    if pull or checkpoints is not None:
        commits = 2 + (checkpoints or 0)
        api += (7 if pull else 12) + 2 * commits
        commits += not pull  # the merge
    return {"api": api, "resolvers": 0, "commits": commits}


def waits(requests: dict[str, int], windows: Sequence[Window]) -> int:
    """Seconds that a run takes at least because its requests do not fit the windows."""
    found = [0]
    for window in windows:
        beyond = requests[window.kind] - window.left
        if beyond > 0:
            found.append(ceil(beyond / window.most) * window.seconds)
    return max(found)


def seconds(rate: Rate, *, bytes_in: int, bytes_out: int, waits: int) -> tuple[float, float]:
    """At least: publishing keeps up with reading. At most: they take turns, each as slow as was seen."""
    return max(bytes_in / rate.high, waits), (bytes_in + bytes_out) / rate.low + waits
