"""A lane walks one source file from its first byte to its last: fetch, hash, hand on.

Its *hash frontier* is the block it is at: every byte before it has been hashed, in order, exactly once.
Fetches run a few blocks ahead, in order, on threads of the lane's own; blocks come from a pool of fixed size,
which passes from one lane to the next, so lanes that run ahead of the writers wait, however short their files
are. Companions that are read early are kept until the walk reaches them, and are then copied instead of
fetched. What is read beside the walk is compared with what passes it.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Protocol

import numpy as np

from tensorport_hub.core.decode.decoder import Bytes
from tensorport_hub.core.layout import Part
from tensorport_hub.core.ranges import Range, holes
from tensorport_hub.core.strips import Strip, contiguous, cut, gather, within
from tensorport_hub.core.walk import Block, Companion, Piece, Walk
from tensorport_hub.engine.blocks import BlockPool, SharedBlock
from tensorport_hub.engine.feed import PartRun
from tensorport_hub.engine.reader import Reader
from tensorport_hub.engine.witness import Witness
from tensorport_hub.errors import VerificationError
from tensorport_hub.ports import FileVerified, Report


class Workers(Protocol):
    """Those who write the parts that lanes feed."""

    def make(self, parts: Sequence[Part], *, pulls: bool) -> list[PartRun]:
        """Make parts that are fed together, or (`pulls`) by nobody, once there is room for all of them.

        Raises:
            Stopped: the run stopped meanwhile.
        """

    def give(self, run: PartRun) -> None:
        """Have a part written."""

    def wait_for_takers(self) -> None:
        """Wait until most parts that were given are taken.

        Raises:
            Stopped: the run stopped meanwhile.
        """


class Lane:
    """One walk of one source file.

    Args:
        pool: of the blocks that are read.
        depth: fetches in flight.
    """

    def __init__(
        self,
        walk: Walk,
        reader: Reader,
        workers: Workers,
        witness: Witness,
        pool: BlockPool,
        report: Report,
        *,
        depth: int,
    ) -> None:
        self._walk, self._reader, self._workers, self._witness = walk, reader, workers, witness
        self._pool, self._depth, self._report = pool, depth, report
        self._together = {part.index: parts for parts in walk.together for part in parts}
        self._unfed = deque(walk.unfed)
        self._runs: dict[int, PartRun] = {}
        self._ahead: dict[Range, Future[Bytes]] = {}
        self._retained: dict[Range, Bytes] = {}
        self._to_see = deque(walk.read_beside if walk.whole else ())
        self._seeing: dict[Strip, int] = {}  # with the CRC-32 so far
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % walk.file.size, usedforsecurity=False)

    def run(self) -> str | None:
        """Walk to the end; the file's sha256 where it was read whole.

        Raises:
            SourceError: the source failed for good.
            VerificationError: the whole file's digest is not what the source states, or bytes that were read
                beside this walk are not what passed.
            Stopped: the run stopped.
        """
        try:
            with ThreadPoolExecutor(self._depth, thread_name_prefix="fetch") as fetcher:
                self._walk_blocks(fetcher)
        finally:
            for run in self._runs.values():
                run.end()
        self._give_before(None)
        return self._verify()

    def _give_before(self, index: int | None) -> None:
        """Start the parts that nothing feeds and that stand before part `index` of the plan; None: all."""
        while self._unfed and (index is None or self._unfed[0].index < index):
            self._wait_for_takers()
            for run in self._workers.make((self._unfed.popleft(),), pulls=True):
                self._workers.give(run)

    def _walk_blocks(self, fetcher: ThreadPoolExecutor) -> None:
        under_way: deque[tuple[Block, SharedBlock, Future[None], dict[Companion, Future[Bytes]]]] = deque()
        try:
            for block in self._walk.blocks:
                shared = self._pool.take(block.stop - block.start)
                companions = self._request(block, fetcher)
                under_way.append((block, shared, fetcher.submit(self._fetch, block, shared.data), companions))
                if len(under_way) > self._depth:
                    self._consume(*under_way.popleft())
            while under_way:
                self._consume(*under_way.popleft())
        finally:
            for _, _, fetch, extra in under_way:
                fetch.cancel()
                for future in extra.values():
                    future.cancel()

    def _request(self, block: Block, fetcher: ThreadPoolExecutor) -> dict[Companion, Future[Bytes]]:
        """Begin to read a block's companions that don't come with the walk."""
        requested = {}
        for c in block.companions:
            if c.how == "ahead" and (c.start, c.stop) not in self._ahead:
                self._ahead[c.start, c.stop] = fetcher.submit(self._reader.range, c.file, c.start, c.stop)
            elif c.how == "apart":
                requested[c] = fetcher.submit(self._reader.strip, c.file, c.strip)
        return requested

    def _fetch(self, block: Block, into: Bytes) -> None:
        """Fill `into` with the block: what was read ahead is copied, the rest is read."""
        known = [(r, f) for r, f in self._ahead.copy().items() if r[0] < block.stop and r[1] > block.start]
        for (start, stop), future in known:
            first, last = max(start, block.start), min(stop, block.stop)
            into[first - block.start : last - block.start] = future.result()[first - start : last - start]
        for start, stop in holes([r for r, _ in known], block.start, block.stop):
            self._reader.fill(into[start - block.start : stop - block.start], self._walk.file.path, start)

    def _consume(
        self,
        block: Block,
        shared: SharedBlock,
        fetch: Future[None],
        requested: dict[Companion, Future[Bytes]],
    ) -> None:
        try:
            fetch.result()
            if self._walk.whole:
                self._hash(shared.data)
            self._note(block, shared.data)
            self._retain(block, shared.data)
            for piece in block.pieces:
                run = self._run_of(piece)
                bring = partial(self._bring, piece, block, shared.data, requested)
                if run.feed(piece, bring, shared):
                    self._workers.give(run)
                if run.is_fed:
                    del self._runs[piece.part.index]
        finally:
            shared.release()
        self._ahead = {r: f for r, f in self._ahead.items() if r[1] > block.stop}

    def _run_of(self, piece: Piece) -> PartRun:
        part = piece.part
        if part.index not in self._runs:
            self._wait_for_takers()
            self._give_before(part.index)
            for run in self._workers.make(self._together.get(part.index, (part,)), pulls=False):
                self._runs[run.part.index] = run
        return self._runs[part.index]

    def _wait_for_takers(self) -> None:
        """Let the workers catch up, but never while one of them may wait for the rest of a part."""
        if not self._runs:
            self._workers.wait_for_takers()

    def _hash(self, data: Bytes) -> None:
        self._sha256.update(data.data)
        if self._walk.file.sha256 is None and self._walk.file.git_oid is not None:
            self._git.update(data.data)

    def _note(self, block: Block, data: Bytes) -> None:
        """Take the CRC-32 of what is read beside this walk too, from the bytes that were hashed."""
        while self._to_see and self._to_see[0].start < block.stop:
            self._seeing[self._to_see.popleft()] = 0
        for strip, crc in [*self._seeing.items()]:
            for _, view in within(strip, data, block.start):
                crc = zlib.crc32(np.ascontiguousarray(view).data, crc)
            self._seeing[strip] = crc
            if strip.stop <= block.stop:
                del self._seeing[strip]
                self._witness.passed(self._walk.file.path, strip, crc)

    def _retain(self, block: Block, data: Bytes) -> None:
        """Copy what later companions need of this block; a range may span several blocks."""
        for start, stop in block.retain:
            if (start, stop) not in self._retained:
                self._retained[start, stop] = np.empty(stop - start, np.uint8)
            gather(contiguous(start, stop), self._retained[start, stop], data, block.start)

    def _bring(
        self, piece: Piece, block: Block, data: Bytes, requested: Mapping[Companion, Future[Bytes]]
    ) -> dict[int, Bytes]:
        """The companions of a piece, by their number."""
        return {
            c.number: requested[c].result() if c in requested else self._brought(c, block, data)
            for c in piece.companions
        }

    def _brought(self, companion: Companion, block: Block, data: Bytes) -> Bytes:
        """A companion from bytes that this block holds, or that were kept, or read ahead."""
        rows = companion.start, companion.stop
        if companion.how == "inside":
            return cut(contiguous(block.start, block.stop), data, companion.strip).copy().reshape(-1)
        if companion.how == "ahead":
            kept = self._ahead[rows].result()
        else:
            kept = self._retained.pop(rows) if companion.last else self._retained[rows]
        return np.ascontiguousarray(cut(contiguous(*rows), kept, companion.strip)).reshape(-1)

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
