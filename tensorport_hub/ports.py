"""The ports: what the engine asks of the outside world, as protocols whose docstrings are duties.

`Source` gives bytes, `Sink` takes them, `Journal` remembers what is finished, `Report` is told what happens.
Those that reach outside live in `edge/`; each is held to the same suite in `tests/contracts/`. Nothing here
does anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.progress import Entry, Progress


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a sink holds after a write: the path, its exact size, and the sha256 of its content (hex)."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Published:
    """What a commit made: the new commit's id and page (None for a folder) and where to look at it.

    `pr_url` is the page of the pull request that the result waits in, where it is left open.
    """

    location: str
    commit: str | None
    url: str | None
    changed: bool
    pr_url: str | None = None


class Source(Protocol):
    """One pinned state of a repository or folder: what it reads never changes after it was opened."""

    @property
    def repo(self) -> str | None:
        """The repository's id; None for a folder."""

    @property
    def commit(self) -> str:
        """The commit that everything is read from; for a folder "", it has none."""

    @property
    def stamp(self) -> str:
        """What changes when bytes do and `commit` does not; "" where the commit pins everything."""

    @property
    def files(self) -> Sequence[SourceFile]:
        """All files, sorted by path, with sizes and what digests the other side states."""

    def read_into(self, path: str, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with exactly the file's bytes from `start`, or raise: never short, never other bytes.

        Safe to call from several threads. Retries what is transient before it raises.

        Raises:
            SourceError: unreachable, gone, changed, or the range lies outside the file.
        """

    def close(self) -> None:
        """Give connections and handles back; reading afterwards is a fault of the caller."""


class Writer(Protocol):
    """One file on its way into a sink. Used by one thread; abandoned writers must be aborted."""

    def write(self, block: memoryview) -> None:
        """Append; the buffer may be reused once the call returns. May block for back-pressure.

        Raises:
            DestinationError: with `transient` where replaying the whole file may help.
        """

    def finish(self) -> Receipt:
        """The whole file is written: make it durable in the sink (not yet visible to readers).

        Raises:
            DestinationError: the length differs from what `open` was told, or the sink refuses.
        """

    def abort(self) -> None:
        """Forget the file; never raises. Idempotent, and harmless after `finish`."""


SMALL_NBYTES = 1 << 20
"""A file of at most so many bytes is small: dozens of them may be on their way beside others."""


class Store(Protocol):
    """Where the content of files goes; that it is there makes none of it visible to readers."""

    def open(self, path: str, size: int) -> Writer:
        """Begin a file of exactly `size` bytes; opening the same path again starts it anew.

        Safe to call from several threads. May block until a stream (for a file that is not small) or staging
        space is free.
        """


class Sink(Store, Protocol):
    """A store, and what shows it. Nothing is visible before `commit`, and then everything at once."""

    def has(self, receipt: Receipt) -> bool:
        """Whether this content is here, of whatever run and under whatever name, for `commit` to publish."""

    def put(self, path: str, content: bytes) -> Receipt:
        """Add a small file (configuration, card, manifest) to what `commit` will publish."""

    def commit(self, receipts: Sequence[Receipt]) -> Published:
        """Publish all receipts and all `put` files at once, removing whatever else the mirror held.

        Raises:
            DestinationError: nothing was published, or it is unknown and the message says so.
        """

    def discard(self) -> None:
        """This run can never succeed: forget what was kept for a next one; never raises."""

    def close(self) -> None:
        """Give connections and sessions back, whatever happened; never raises.

        Without a commit, what the journal knows of stays for the next run; all else goes.
        """


class Journal(Protocol):
    """What the runs of one plan finished, for the next run of it. The sink, not the journal, is the truth."""

    @property
    def progress(self) -> Progress:
        """What runs before this one finished."""

    def add(self, entry: Entry) -> None:
        """Remember an entry: at once, or with others at the next checkpoint, which may happen in this call.

        An output file is entered once its writer has finished. Safe to call from several threads.

        Raises:
            DestinationError: it can't be kept, or another run of the plan has taken over.
        """

    def save(self) -> None:
        """The run ends early: keep what is not kept yet, within seconds; never raises."""


@dataclass(frozen=True)
class Begun:
    """Of several runs the next one begins; events up to the next of this kind are its own."""

    number: int
    count: int
    source: str


@dataclass(frozen=True)
class Failed:
    """One of several runs failed; the others go on."""

    source: str
    message: str


@dataclass(frozen=True)
class Planned:
    """A plan is complete: bytes that will be read and written, and files of weights (`parts`)."""

    parts: int
    bytes_in: int
    bytes_out: int


@dataclass(frozen=True)
class Kept:
    """The destination holds files (`parts`) that are made of the same bytes: they need not be made again."""

    parts: int
    nbytes: int


@dataclass(frozen=True)
class Resumed:
    """An interrupted run left files of weights (`parts`) that need not be made again."""

    parts: int
    nbytes: int


@dataclass(frozen=True)
class Saved:
    """So many files (`parts`) are safe now: a run that begins after this moment won't make them again."""

    parts: int


@dataclass(frozen=True)
class BytesRead:
    """Source bytes that arrived."""

    file: str
    nbytes: int


@dataclass(frozen=True)
class BytesWritten:
    """Output bytes that were handed to the sink."""

    path: str
    nbytes: int


@dataclass(frozen=True)
class PartDone:
    """The sink holds a file of weights."""

    receipt: Receipt


@dataclass(frozen=True)
class PartRetried:
    """A file failed for a passing reason and is written again."""

    path: str
    attempt: int
    reason: str


@dataclass(frozen=True)
class FileVerified:
    """A source file was read whole and its digest is what the source states."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Waiting:
    """The other side asked us to wait, or a passing fault makes us."""

    seconds: float
    reason: str


@dataclass(frozen=True)
class Warned:
    """Something the user should know that does not stop the run."""

    message: str


@dataclass(frozen=True)
class Committed:
    """The result is visible to readers."""

    published: Published


Event = (
    Begun
    | Failed
    | Planned
    | Kept
    | Resumed
    | BytesRead
    | BytesWritten
    | PartDone
    | PartRetried
    | FileVerified
    | Saved
    | Waiting
    | Warned
    | Committed
)

Report = Callable[[Event], None]
"""Called with every event, from any thread; may be slow, and what it raises does not reach the run."""
