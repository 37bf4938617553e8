"""A source and a sink in memory, and wrappers that make any source or sink fail.

The fakes keep every duty of `ports.py` (they subclass the contract suites like the real ones) and record what
was asked of them, so that a test can say which bytes were read how often and what became of every writer.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import numpy.typing as npt

from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.plan import Plan
from tensorport_hub.core.progress import Entry, Progress, Remaining, gathered, remaining
from tensorport_hub.errors import DestinationError, SourceError
from tensorport_hub.ports import Published, Receipt, Sink, Source, Writer


def everything(plan: Plan) -> Remaining:
    """All that there is to do, where nothing is done."""
    return remaining(plan, Progress())


class MemoryJournal:
    """A journal in memory; `failing` makes `add` raise."""

    def __init__(self, progress: Progress | None = None, failing: BaseException | None = None) -> None:
        self.progress = progress or Progress()
        self.failing = failing
        self.entries: list[Entry] = []
        self.saved = 0

    def add(self, entry: Entry) -> None:
        if self.failing is not None:
            raise self.failing
        self.entries.append(entry)

    def save(self) -> None:
        self.saved += 1

    def next(self) -> MemoryJournal:
        """The journal that the next run finds."""
        return MemoryJournal(gathered(self.entries))


@dataclass(frozen=True)
class Read:
    """One call of `read_into`."""

    path: str
    start: int
    stop: int


class MemorySource:
    """Files in a dictionary; records every read."""

    stamp = ""

    def __init__(
        self,
        files: Mapping[str, bytes],
        *,
        repo: str | None = "org/model",
        commit: str = "c" * 40,
        stated: Literal["sha256", "git", "nothing"] = "sha256",
    ) -> None:
        self.repo, self.commit = repo, commit
        self.contents = dict(files)
        self.files: Sequence[SourceFile] = [
            _stated(path, data, stated) for path, data in sorted(self.contents.items())
        ]
        self.reads: list[Read] = []
        self.closed = False
        self._lock = threading.Lock()

    def read_into(self, path: str, start: int, buffer: memoryview) -> None:
        if path not in self.contents:
            raise SourceError(f"`{path}` is not there")
        data, stop = self.contents[path], start + len(buffer)
        if start < 0 or stop > len(data):
            raise SourceError(f"range {start}:{stop} lies outside the {len(data)} bytes of `{path}`")
        with self._lock:
            self.reads.append(Read(path, start, stop))
        buffer[:] = data[start:stop]

    def close(self) -> None:
        self.closed = True

    @property
    def bytes_read(self) -> int:
        """Bytes handed out so far."""
        with self._lock:
            return sum(read.stop - read.start for read in self.reads)

    def counts(self, path: str) -> npt.NDArray[np.int64]:
        """How often each byte of `path` was read."""
        edges = np.zeros(len(self.contents[path]) + 1, np.int64)
        for read in self.reads:
            if read.path == path:
                edges[read.start] += 1
                edges[read.stop] -= 1
        return np.cumsum(edges)[:-1]


def _stated(path: str, data: bytes, stated: str) -> SourceFile:
    if stated == "sha256":
        return SourceFile(path, len(data), sha256=hashlib.sha256(data).hexdigest())
    if stated == "git":
        blob = b"blob " + str(len(data)).encode() + b"\0" + data
        return SourceFile(path, len(data), git_oid=hashlib.sha1(blob, usedforsecurity=False).hexdigest())
    return SourceFile(path, len(data))


class MemorySink:
    """Holds finished files in `held`; `commit` copies them to `visible`. Records what became of writers.

    Attributes:
        visible: what readers see; hand it to the next sink of the same destination.
        events: ("open" | "finish" | "abort" | "put" | "commit" | "close", path), in order.
        live: writers that were neither finished nor aborted.
    """

    def __init__(self, visible: dict[str, bytes] | None = None) -> None:
        self.visible: dict[str, bytes] = {} if visible is None else visible
        self.held: dict[str, bytes] = {}
        self.small: dict[str, bytes] = {}
        self.receipts: list[Receipt] = []
        self.commits: list[tuple[Receipt, ...]] = []
        self.events: list[tuple[str, str]] = []
        self.live: set[MemoryWriter] = set()
        self.bytes_written = 0
        self.lock = threading.RLock()

    def open(self, path: str, size: int) -> MemoryWriter:
        writer = MemoryWriter(self, path, size)
        with self.lock:
            self.events.append(("open", path))
            self.live.add(writer)
        return writer

    def has(self, receipt: Receipt) -> bool:
        held = self.held.get(receipt.path)
        return held is not None and hashlib.sha256(held).hexdigest() == receipt.sha256

    def put(self, path: str, content: bytes) -> Receipt:
        with self.lock:
            self.events.append(("put", path))
            self.small[path] = bytes(content)
        return Receipt(path, len(content), hashlib.sha256(content).hexdigest())

    def commit(self, receipts: Sequence[Receipt]) -> Published:
        for receipt in receipts:
            held = self.held.get(receipt.path)
            if held is None or hashlib.sha256(held).hexdigest() != receipt.sha256:
                raise DestinationError(f"`{receipt.path}` is not held")
        wanted = {receipt.path: self.held[receipt.path] for receipt in receipts} | self.small
        changed = wanted != self.visible
        with self.lock:
            self.events.append(("commit", ""))
            self.commits.append(tuple(receipts))
            self.visible.clear()
            self.visible.update(wanted)
        return Published("memory", None, None, changed)

    def discard(self) -> None:
        self.held.clear()

    def close(self) -> None:
        with self.lock:
            self.events.append(("close", ""))
            self.held.clear()

    def counted(self, kind: str) -> Counter[str]:
        """How often each path met an event of `kind`."""
        return Counter(path for event, path in self.events if event == kind)


class MemoryWriter:
    """One file on its way into a `MemorySink`."""

    def __init__(self, sink: MemorySink, path: str, size: int) -> None:
        self._sink, self._path, self._size = sink, path, size
        self._data = bytearray()

    def write(self, block: memoryview) -> None:
        self._data += block
        with self._sink.lock:
            self._sink.bytes_written += block.nbytes

    def finish(self) -> Receipt:
        if len(self._data) != self._size:
            raise DestinationError(f"`{self._path}`: expected {self._size} bytes, got {len(self._data)}")
        data = bytes(self._data)
        receipt = Receipt(self._path, self._size, hashlib.sha256(data).hexdigest())
        with self._sink.lock:
            self._sink.events.append(("finish", self._path))
            self._sink.held[self._path] = data
            self._sink.receipts.append(receipt)
            self._sink.live.discard(self)
        return receipt

    def abort(self) -> None:
        with self._sink.lock:
            if self in self._sink.live:
                self._sink.live.discard(self)
                self._sink.events.append(("abort", self._path))


class FlakySource:
    """Another source, but the first `times` reads that touch byte `at` of files like `path` go wrong.

    `drop`: the bytes before `at` come, then an error; `wrong`: byte `at` comes with all its bits flipped.
    """

    def __init__(
        self,
        source: Source,
        fault: Literal["drop", "wrong"],
        *,
        path: str = "*",
        at: int = 0,
        times: float = 1,
        after: int = 0,
        transient: bool = False,
    ) -> None:
        self._source, self._fault, self._path, self._at = source, fault, path, at
        self._times, self._after, self._transient = times, after, transient
        self._lock = threading.Lock()
        self.struck = 0

    @property
    def repo(self) -> str | None:
        return self._source.repo

    @property
    def commit(self) -> str:
        return self._source.commit

    @property
    def stamp(self) -> str:
        return self._source.stamp

    @property
    def files(self) -> Sequence[SourceFile]:
        return self._source.files

    def read_into(self, path: str, start: int, buffer: memoryview) -> None:
        hit = start <= self._at < start + len(buffer) and fnmatchcase(path, self._path)
        if not hit or not self._strikes():
            self._source.read_into(path, start, buffer)
        elif self._fault == "wrong":
            self._source.read_into(path, start, buffer)
            buffer[self._at - start] ^= 0xFF
        else:
            self._source.read_into(path, start, buffer[: self._at - start])
            raise SourceError(f"`{path}` broke off at byte {self._at}", transient=self._transient)

    def _strikes(self) -> bool:
        """Whether this hit is one of those that go wrong: `times` of them, `after` good ones."""
        with self._lock:
            if self._after:
                self._after -= 1
                return False
            if not self._times:
                return False
            self._times -= 1
            self.struck += 1
            return True

    def close(self) -> None:
        self._source.close()


class FlakySink:
    """Another sink, but files like `path` fail, the first `times` attempts of them (each path for itself).

    At `open`; at `write`, once `byte` bytes were taken; at `finish`, before it reaches the sink. `truncate`
    raises nothing itself: what follows byte `byte` is lost, so that the sink must find the length wrong.
    """

    def __init__(
        self,
        sink: Sink,
        fault: Literal["open", "write", "finish", "truncate"],
        *,
        path: str = "*",
        byte: int = 0,
        times: float = 1,
        transient: bool = True,
        retry_after: float | None = None,
        error: BaseException | None = None,
    ) -> None:
        self.sink, self.fault, self.byte = sink, fault, byte
        self._path, self._times = path, times
        self._transient, self._retry_after, self._error = transient, retry_after, error
        self._struck: Counter[str] = Counter()
        self._lock = threading.Lock()

    def failure(self, path: str) -> BaseException:
        """What is raised."""
        return self._error or DestinationError(
            f"`{path}` failed at {self.fault}", transient=self._transient, retry_after=self._retry_after
        )

    def open(self, path: str, size: int) -> Writer:
        strikes = self._strikes(path)
        if strikes and self.fault == "open":
            raise self.failure(path)
        writer = self.sink.open(path, size)
        return _FlakyWriter(self, writer, path) if strikes else writer

    def _strikes(self, path: str) -> bool:
        with self._lock:
            self._struck[path] += 1
            return fnmatchcase(path, self._path) and self._struck[path] <= self._times

    def has(self, receipt: Receipt) -> bool:
        return self.sink.has(receipt)

    def put(self, path: str, content: bytes) -> Receipt:
        return self.sink.put(path, content)

    def discard(self) -> None:
        self.sink.discard()

    def commit(self, receipts: Sequence[Receipt]) -> Published:
        return self.sink.commit(receipts)

    def close(self) -> None:
        self.sink.close()


class _FlakyWriter:
    def __init__(self, flaky: FlakySink, writer: Writer, path: str) -> None:
        self._flaky, self._writer, self._path = flaky, writer, path
        self._room = flaky.byte

    def write(self, block: memoryview) -> None:
        if self._flaky.fault == "finish":
            return self._writer.write(block)
        kept = block[: self._room]
        self._writer.write(kept)
        self._room -= len(kept)
        if len(kept) < len(block) and self._flaky.fault == "write":
            raise self._flaky.failure(self._path)
        return None

    def finish(self) -> Receipt:
        if self._flaky.fault in ("finish", "write"):
            raise self._flaky.failure(self._path)
        return self._writer.finish()

    def abort(self) -> None:
        self._writer.abort()


class BoundedSink:
    """Another sink whose `open` waits until its open files fit `staging` bytes and `writers` places.

    Wakes waiters in no particular order: small files overtake large ones, as with the LFS staging folder.
    """

    def __init__(self, sink: Sink, *, staging: int, writers: int = 1_000) -> None:
        self._sink, self._staging, self._writers = sink, staging, writers
        self._changed = threading.Condition()
        self.most_staged = 0
        self.staged = self.writing = 0

    def open(self, path: str, size: int) -> Writer:
        with self._changed:
            self._changed.wait_for(
                lambda: self.staged + size <= self._staging and self.writing < self._writers
            )
            self.staged += size
            self.writing += 1
            self.most_staged = max(self.most_staged, self.staged)
        try:
            return _BoundedWriter(self, self._sink.open(path, size), size)
        except BaseException:
            self.release(size)
            raise

    def release(self, size: int) -> None:
        """Give a file's place back."""
        with self._changed:
            self.staged -= size
            self.writing -= 1
            self._changed.notify_all()

    def has(self, receipt: Receipt) -> bool:
        return self._sink.has(receipt)

    def put(self, path: str, content: bytes) -> Receipt:
        return self._sink.put(path, content)

    def discard(self) -> None:
        self._sink.discard()

    def commit(self, receipts: Sequence[Receipt]) -> Published:
        return self._sink.commit(receipts)

    def close(self) -> None:
        self._sink.close()


class _BoundedWriter:
    def __init__(self, bounded: BoundedSink, writer: Writer, size: int) -> None:
        self._bounded, self._writer, self._size = bounded, writer, size
        self._held = True

    def write(self, block: memoryview) -> None:
        self._writer.write(block)

    def finish(self) -> Receipt:
        receipt = self._writer.finish()
        self._release()
        return receipt

    def abort(self) -> None:
        self._writer.abort()
        self._release()

    def _release(self) -> None:
        if self._held:
            self._held = False
            self._bounded.release(self._size)
