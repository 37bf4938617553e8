"""A lane walks one source file from its first byte to its last: fetch, hash, hand on.

Its *hash frontier* is the block it is at: every byte before it has been hashed, in order, exactly once.
Fetches run a few blocks ahead, in order, on threads of the lane's own; blocks come from a pool of fixed size,
so a lane that runs ahead of the writers waits. Companions that are read early are kept until the walk reaches
them, and are then copied instead of fetched.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from tensorport_hub.core.decode.decoder import Bytes
from tensorport_hub.core.plan import Part
from tensorport_hub.core.ranges import Range, holes
from tensorport_hub.core.schedule import Block, Companion, Walk
from tensorport_hub.engine.blocks import BlockPool, SharedBlock, StopFlag, Stopped
from tensorport_hub.engine.budget import Allotment
from tensorport_hub.engine.part import PartRun, read_range
from tensorport_hub.errors import VerificationError
from tensorport_hub.ports import BytesRead, FileVerified, Report, Source

Start = Callable[[PartRun], None]
"""Gives a part to a worker."""


class Lane:
    """One walk of one source file."""

    def __init__(
        self,
        walk: Walk,
        source: Source,
        make: Callable[[Part], PartRun],
        start: Start,
        allotment: Allotment,
        stop: StopFlag,
        report: Report,
    ) -> None:
        self._walk, self._source, self._make, self._start = walk, source, make, start
        self._allotment, self._stop, self._report = allotment, stop, report
        self._pool = BlockPool(allotment.buffers, allotment.block, stop)
        self._runs: dict[int, PartRun] = {}
        self._ahead: dict[Range, Future[Bytes]] = {}
        self._retained: dict[Range, Bytes] = {}
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % walk.file.size, usedforsecurity=False)

    def run(self) -> str | None:
        """Walk to the end; the file's sha256 where it was read whole.

        Raises:
            SourceError: the source failed for good.
            VerificationError: the whole file's digest is not what the source states.
            Stopped: the run stopped.
        """
        for part in self._walk.empty:
            self._start(self._make(part))
        try:
            with ThreadPoolExecutor(self._allotment.depth, thread_name_prefix="fetch") as fetcher:
                self._walk_blocks(fetcher)
        finally:
            for run in self._runs.values():
                run.end()
        for part in self._walk.apart:
            run = self._make(part)
            run.pulls = True
            self._start(run)
        return self._verify()

    def _walk_blocks(self, fetcher: ThreadPoolExecutor) -> None:
        under_way: deque[tuple[Block, SharedBlock, Future[None], list[tuple[Companion, Future[Bytes]]]]] = (
            deque()
        )
        try:
            for block in self._walk.blocks:
                shared = self._pool.take(block.stop - block.start)
                companions = [
                    (c, self._request(fetcher, c)) for c in block.companions if c.how in ("ahead", "apart")
                ]
                under_way.append((block, shared, fetcher.submit(self._fetch, block, shared.data), companions))
                if len(under_way) > self._allotment.depth:
                    self._consume(*under_way.popleft())
            while under_way:
                self._consume(*under_way.popleft())
        finally:
            for _, _, fetch, extra in under_way:
                fetch.cancel()
                for _, future in extra:
                    future.cancel()

    def _request(self, fetcher: ThreadPoolExecutor, companion: Companion) -> Future[Bytes]:
        future = fetcher.submit(self._read, companion.file, companion.start, companion.stop)
        if companion.how == "ahead":
            self._ahead[companion.start, companion.stop] = future
        return future

    def _read(self, file: str, start: int, stop: int) -> Bytes:
        if self._stop:
            raise Stopped
        data = read_range(self._source, file, start, stop)
        self._report(BytesRead(file, stop - start))
        return data

    def _fetch(self, block: Block, into: Bytes) -> None:
        """Fill `into` with the block: what was read ahead is copied, the rest is read."""
        known = [(r, f) for r, f in self._ahead.copy().items() if r[0] < block.stop and r[1] > block.start]
        for (start, stop), future in known:
            first, last = max(start, block.start), min(stop, block.stop)
            into[first - block.start : last - block.start] = future.result()[first - start : last - start]
        for start, stop in holes([r for r, _ in known], block.start, block.stop):
            if self._stop:
                raise Stopped
            view = into[start - block.start : stop - block.start].data
            self._source.read_into(self._walk.file.path, start, view)
            self._report(BytesRead(self._walk.file.path, stop - start))

    def _consume(
        self,
        block: Block,
        shared: SharedBlock,
        fetch: Future[None],
        companions: list[tuple[Companion, Future[Bytes]]],
    ) -> None:
        try:
            fetch.result()
            if self._walk.whole:
                self._hash(shared.data)
            self._retain(block, shared.data)
            read = {id(companion): future.result() for companion, future in companions}
            for companion in block.companions:
                data = read.get(id(companion))
                self._run_of(companion.part).companions.append(
                    self._held(companion, block, shared.data) if data is None else data
                )
            for piece in block.pieces:
                run = self._run_of(piece.part)
                run.feed(piece.start, piece.stop, shared, piece.offset)
                if piece.start == 0:
                    self._start(run)
                if piece.stop == run.nbytes:
                    del self._runs[piece.part.index]
        finally:
            shared.release()
        self._ahead = {r: f for r, f in self._ahead.items() if r[1] > block.stop}

    def _run_of(self, part: Part) -> PartRun:
        if part.index not in self._runs:
            self._runs[part.index] = self._make(part)
        return self._runs[part.index]

    def _hash(self, data: Bytes) -> None:
        self._sha256.update(data.data)
        if self._walk.file.sha256 is None and self._walk.file.git_oid is not None:
            self._git.update(data.data)

    def _retain(self, block: Block, data: Bytes) -> None:
        """Copy what later companions need of this block; a range may span several blocks."""
        for start, stop in block.retain:
            self._retained[start, stop] = data[start - block.start : stop - block.start].copy()

    def _held(self, companion: Companion, block: Block, data: Bytes) -> Bytes:
        """Companion bytes that this block holds, or that were kept when the walk passed them."""
        if companion.how == "inside":
            return data[companion.start - block.start : companion.stop - block.start].copy()
        pieces = sorted(r for r in self._retained if companion.start <= r[0] and r[1] <= companion.stop)
        kept = [self._retained.pop(r) for r in pieces]
        return kept[0] if len(kept) == 1 else np.concatenate(kept)

    def _verify(self) -> str | None:
        file = self._walk.file
        if not self._walk.whole:
            return None
        sha256 = self._sha256.hexdigest()
        expected, got = (file.sha256, sha256) if file.sha256 else (file.git_oid, self._git.hexdigest())
        if expected is not None and expected != got:
            raise VerificationError(
                f"`{file.path}` is not what the source states: expected digest {expected}, got {got}",
                hint="nothing was published; if it stays so, the source or the way to it is damaged",
            )
        self._report(FileVerified(file.path, sha256))
        return sha256
