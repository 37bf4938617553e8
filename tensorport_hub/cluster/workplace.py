"""A worker process's part of a run: its plan, source and store, and what it tells while it works.

The engine is that of one machine; only commits are the coordinator's. A process carries out one share at a
time, so that `--max-memory` and `--workers` are its own. The token is the one that the worker finds by
itself; where it finds none, the one that it was given.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from tensorport_hub import __version__
from tensorport_hub.cluster.brief import Assignment, Brief, Ended, Item, Told
from tensorport_hub.cluster.worker import other_version
from tensorport_hub.core.progress import Entry, Progress, remaining
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.edge.hub_source import HubSource
from tensorport_hub.edge.hub_store import HubStore
from tensorport_hub.edge.local import LocalSource
from tensorport_hub.edge.retry import retried
from tensorport_hub.engine.blocks import StopFlag
from tensorport_hub.engine.run import Work, carry_out
from tensorport_hub.engine.witness import Witness
from tensorport_hub.errors import DestinationError, SourceError
from tensorport_hub.meter import peak_memory
from tensorport_hub.ports import BytesRead, BytesWritten, Event, PartRetried, Source, Waiting, Warned
from tensorport_hub.reading import read_seconds

_PULSE = 0.5
"""Seconds between two tellings."""

Tell = Callable[[Told], None]
Wanted = Callable[[], bool]
"""Whether anybody still waits for a share."""


class Dismissed(DestinationError):
    """The run ended while a worker was still at it."""


class Workplace:
    """A run's place in this process; a context manager.

    Args:
        given: the coordinator's token.

    Raises:
        UseError: the plan is another version's.
        SourceError: the source is not what the plan was made of, or can't be read from here.
        DestinationError: there is no token.
    """

    def __init__(self, brief: Brief, given: str | None) -> None:
        self._brief = brief
        self._plan = brief.plan
        if self._plan.version != __version__:
            raise other_version(self._plan.version)
        self._client = HubClient(endpoint=brief.endpoint)
        if self._client.token is None and given is not None:
            self._client = HubClient(endpoint=brief.endpoint, token=given)
        if self._client.token is None:
            raise DestinationError(
                "writing to the Hub needs a token, and this worker has none",
                hint="start the worker with `HF_TOKEN`, or after `hf auth login`",
            )
        self._closed = False
        self._stop = StopFlag()
        self._busy = threading.Lock()
        self._teller: _Teller | None = None
        self._store: HubStore | None = None
        self._source = self._open_source()

    def _open_source(self) -> Source:
        brief, plan = self._brief, self._plan
        if brief.folder is not None:
            folder = LocalSource(Path(brief.folder))
            if folder.stamp != brief.stamp:
                raise SourceError(f"folder `{brief.folder}` is not what it is for the coordinator")
            return folder
        assert plan.repo is not None
        repo = plan.repo
        state = retried(lambda: self._client.repo_state(repo, plan.commit, SourceError), self._report)
        there = {file.path: (file.size, file.sha256, file.git_oid) for file in state.files}
        for file in plan.files:
            if there.get(file.path) != (file.size, file.sha256, file.git_oid):
                raise SourceError(f"`{file.path}` of `{repo}` is not what the plan says of it")
        source = HubSource(
            self._client, state, read_seconds=read_seconds(), report=self._report, xet=brief.by_xet
        )
        try:
            source.read_into(plan.files[0].path, 0, memoryview(bytearray(8)))  # a gated one is listed to all
        except BaseException:
            source.close()
            raise
        return source

    def _report(self, event: Event) -> None:
        if self._teller is not None:
            self._teller.report(event)

    def carry_out(self, given: Assignment, tell: Tell, wanted: Wanted) -> Ended:
        """Walk the files of a share and write what is made of them.

        Raises:
            TensorportError: as on one machine.
        """
        try:
            with self._busy:
                return self._carry_out(given, tell, wanted)
        finally:
            if self._closed:
                self.close()

    def _carry_out(self, given: Assignment, tell: Tell, wanted: Wanted) -> Ended:
        if self._closed:
            raise Dismissed("the run has ended")
        self._stop = stop = StopFlag()
        made = {one.index: one for one in given.made}
        left = remaining(self._plan, Progress(made))
        files = [file for file in left.files if file.path in given.files]
        self._client.pace.deal(given.windows)
        witness = Witness()
        with _Teller(given.number, tell, wanted, stop) as teller:
            self._teller = teller
            store = self._opened_store()
            allotment = self._brief.limits.allot(self._plan, streams=store.streams, by_xet=self._brief.by_xet)
            work = Work(self._plan, left, files, made, allotment)
            carry_out(work, self._source, store, teller.enter, witness, stop, teller.report)
        readings = witness.seen(work.schedule.from_elsewhere)
        return Ended(teller.all(), readings, peak_memory())

    def _opened_store(self) -> HubStore:
        if self._store is None:
            brief = self._brief
            allotment = brief.limits.allot(self._plan, streams=brief.transfer != "lfs", by_xet=brief.by_xet)
            self._store = HubStore.of(
                self._client,
                brief.destination,
                transfer=brief.transfer,
                max_disk=brief.max_disk,
                writers=allotment.workers * self._plan.files_at_once,
                uploads=allotment.uploads,
                read_seconds=read_seconds(),
                report=self._report,
            )
        return self._store

    def close(self) -> None:
        """Stop what is under way, and give everything back: now, or when that has ended."""
        self._closed = True
        self._stop.fail(Dismissed("the run has ended"))
        if self._busy.acquire(blocking=False):
            try:
                self._client.pace.deal({})
                self._source.close()
                if self._store is not None:
                    self._store.close()
                    self._store = None
            finally:
                self._busy.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Teller:
    """Gathers what happens, and tells it from time to time, in a thread of its own."""

    def __init__(self, number: int, tell: Tell, wanted: Wanted, stop: StopFlag) -> None:
        self._number, self._tell, self._wanted, self._stop = number, tell, wanted, stop
        self._items: list[Item] = []
        self._bytes: Counter[type[Event]] = Counter()
        self._told = Told(number, 0, (), 0, 0)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="teller", daemon=True)

    def enter(self, entry: Entry) -> None:
        with self._lock:
            self._items.append(entry)

    def report(self, event: Event) -> None:
        """Sum up bytes, and keep what is worth saying; what follows from entries the coordinator says."""
        with self._lock:
            if isinstance(event, BytesRead | BytesWritten):
                self._bytes[type(event)] += event.nbytes
            elif isinstance(event, PartRetried | Waiting | Warned):
                self._items.append(event)

    def all(self) -> Told:
        """Everything so far."""
        return self._since(0)

    def _since(self, at: int) -> Told:
        with self._lock:
            read, written = self._bytes[BytesRead], self._bytes[BytesWritten]
            return Told(self._number, at, tuple(self._items[at:]), read, written)

    def _run(self) -> None:
        while not self._over.wait(_PULSE):
            if not self._wanted():
                self._stop.fail(Dismissed("nobody waits for this share any more"))
            self._tell_new()

    def _tell_new(self) -> None:
        now = self._since(self._told.at + len(self._told.items))
        if now.items or (now.read, now.written) != (self._told.read, self._told.written):
            self._tell(now)
            self._told = now

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if error is not None:  # else the end says it all
            self._tell_new()
