"""Bodies: blobs on their way out, request bodies on their way in, and the faults that befall both.

A `BlobAnswer` is an answer whose body is a span of a blob. It is sent by `sendfile` where a plain
file holds the bytes and no fault is on; other blobs are read in a thread, one block ahead of the
socket. `uploaded` yields a request's body in blocks of a few MB, so that a hop to a thread for
hashing costs nothing beside it. No file is ever whole in memory.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

from aiohttp import web

from tensorport_hub.devhub.blobs import BLOCK, Blob, MemoryBlob
from tensorport_hub.devhub.faults import Fault
from tensorport_hub.devhub.refusals import Refusal

SMALL = 256 << 10  # below this one read and one write beat the set-up of sendfile
RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class Dropped(ConnectionError):
    """The connection was closed by a fault; nothing more can be said on it."""


class BlobAnswer(web.StreamResponse):
    """The bytes `start:stop` of a blob."""

    def __init__(self, blob: Blob, start: int, stop: int, *, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(status=status, headers=headers)
        self._blob = blob
        self._first = start
        self._end = stop
        self.bytes_out = 0

    @classmethod
    def to(cls, request: web.Request, blob: Blob, headers: Mapping[str, str], etag: str) -> BlobAnswer:
        """The answer to a GET or HEAD, with or without a Range; 416 for a range past the end."""
        given = {"Accept-Ranges": "bytes", "ETag": f'"{etag}"', **headers}
        asked = _asked(request, etag)
        if asked is None:
            return cls(blob, 0, blob.size, status=200, headers=given)
        start, stop = _span(asked, blob.size)
        given["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
        return cls(blob, start, stop, status=206, headers=given)

    @classmethod
    def of(cls, response: web.Response) -> BlobAnswer:
        """An ordinary small answer, sent this way for a fault's sake."""
        body = response.body if isinstance(response.body, bytes | bytearray) else b""
        headers = {name: value for name, value in response.headers.items() if name != "Content-Length"}
        return cls(MemoryBlob(bytes(body)), 0, len(body), status=response.status, headers=headers)

    def _bend(self, fault: Fault) -> None:
        """Change what is announced, for the faults that lie consistently."""
        if fault.kind == "ignore_range" and self.status == 206:
            self._first, self._end = 0, self._blob.size
            self.set_status(200)
            del self.headers["Content-Range"]
        elif fault.kind == "truncate":
            length = self._end - self._first
            self._end = self._first + min(length, fault.at if fault.at is not None else length // 2)
            if self.status == 206:
                span = f"{self._first}-{max(self._end - 1, self._first)}"
                self.headers["Content-Range"] = f"bytes {span}/{self._blob.size}"

    async def send(self, request: web.Request, fault: Fault | None) -> None:
        """Send headers and body, as the fault wants it. The middleware calls this, once."""
        if fault is not None:
            self._bend(fault)
        self.content_length = self._end - self._first
        await self.prepare(request)
        if request.method == "HEAD" or self._first == self._end:
            await self.write_eof()
        elif fault is not None and fault.kind in ("drop", "stall", "wrong_bytes"):
            await self._send_badly(request, fault)
        elif fault is not None and fault.kind == "slow":
            await self._send_slowly(fault.rate)
            await self.write_eof()
        else:
            await self._send_well(request)
            await self.write_eof()

    async def _send_well(self, request: web.Request) -> None:
        path = self._blob.path
        if path is None or self._end - self._first <= SMALL:
            await self._pump(self._first, self._end)
            return
        transport = request.transport
        if transport is None:
            raise Dropped("the client is gone")
        with path.open("rb", buffering=0) as file:
            file.seek(self._first)
            try:
                count = self._end - self._first
                await asyncio.get_running_loop().sendfile(transport, file, self._first, count)
            finally:
                self.bytes_out += file.tell() - self._first  # what left, also when the client went away

    async def _send_badly(self, request: web.Request, fault: Fault) -> None:
        at = min(self._first + (fault.at or 0), self._end)
        await self._pump(self._first, at)
        if fault.kind == "drop":
            await self.drain_and_close(request)
            return
        if fault.kind == "stall":
            await asyncio.sleep(fault.seconds)
        elif at < self._end:
            wrong = bytes(byte ^ 0xFF for block in self._blob.read(at, at + 1) for byte in block)
            await self.write(wrong)
            self.bytes_out += 1
            at += 1
        await self._pump(at, self._end)
        await self.write_eof()

    async def _send_slowly(self, rate: int) -> None:
        """At so many bytes a second, in twenty sips of each of them."""
        clock = asyncio.get_running_loop().time
        begun, sip = clock(), max(rate // 20, 1)
        for start in range(self._first, self._end, sip):
            stop = min(start + sip, self._end)
            await self._pump(start, stop)
            await asyncio.sleep(max(begun + (stop - self._first) / rate - clock(), 0))

    async def drain_and_close(self, request: web.Request) -> None:
        if request.transport is not None:
            request.transport.close()
        raise Dropped("dropped by a fault")

    async def _pump(self, start: int, stop: int) -> None:
        """Write a span, reading one block ahead in a thread."""
        if start >= stop:
            return
        if self._blob.path is not None and stop - start <= SMALL:
            blocks = list(self._blob.read(start, stop))
            await self.write(b"".join(blocks))
            self.bytes_out += stop - start
            return
        source = self._blob.read(start, stop)
        pending = asyncio.ensure_future(asyncio.to_thread(_next, source))
        try:
            while block := await pending:
                pending = asyncio.ensure_future(asyncio.to_thread(_next, source))
                await self.write(block)
                self.bytes_out += len(block)
        finally:
            if not pending.done():
                await asyncio.wait([pending])


def _next(source: Iterator[bytes]) -> bytes:
    """The next block that is not empty; empty at the end."""
    for block in source:
        if block:
            return block
    return b""


def _asked(request: web.Request, etag: str) -> str | None:
    """The Range header that counts: one range, and of this version of the file."""
    asked = request.headers.get("Range")
    if asked is None or RANGE.fullmatch(asked.strip()) is None:
        return None
    wanted = request.headers.get("If-Range")
    return asked if wanted is None or wanted.strip('"') == etag else None


def _span(asked: str, size: int) -> tuple[int, int]:
    found = RANGE.fullmatch(asked.strip())
    assert found is not None
    first, last = found.groups()
    if first:
        start, stop = int(first), min(int(last) + 1, size) if last else size
    else:
        start, stop = max(size - int(last or 0), 0), size
    if start >= stop:
        raise Refusal(416, f"Range `{asked}` not satisfiable", headers={"Content-Range": f"bytes */{size}"})
    return start, stop


async def uploaded(request: web.Request, fault: Fault | None) -> AsyncIterator[bytearray]:
    """The request's body in blocks; a `stall` pauses it, `wrong_bytes` flips one of its bytes."""
    block = bytearray()
    done = 0
    at = fault.at or 0 if fault is not None and fault.kind in ("stall", "wrong_bytes") else None
    async for piece in request.content.iter_any():
        block += piece
        if len(block) < BLOCK:
            continue
        at = await _suffer(fault, at, block, done)
        done += len(block)
        yield block
        block = bytearray()
    if block:
        await _suffer(fault, at, block, done)
        yield block


async def _suffer(fault: Fault | None, at: int | None, block: bytearray, done: int) -> int | None:
    if fault is None or at is None or at >= done + len(block):
        return at
    if fault.kind == "stall":
        await asyncio.sleep(fault.seconds)
    else:
        block[at - done] ^= 0xFF
    return None


async def write_behind(blocks: AsyncIterator[bytearray], write: Callable[[bytearray], None]) -> None:
    """Write (and hash) each block in a thread while the next one comes in; every write has ended."""
    pending: asyncio.Future[None] | None = None
    try:
        async for block in blocks:
            if pending is not None:
                await pending
            pending = asyncio.ensure_future(asyncio.to_thread(write, block))
        if pending is not None:
            await pending
    finally:
        if pending is not None and not pending.done():
            await asyncio.wait([pending])
