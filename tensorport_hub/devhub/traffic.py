"""Traffic: the one door of both origins, and the book in which every request is written.

The middleware made by `door` lets a request in: it counts it against the rate limits, carries out
the fault that befalls it, turns a `Refusal` into its answer, sends the answer itself (so that the
book holds what was really sent) and writes a `Seen`. The book is what tests read: who asked for
which bytes, and whether a token went where none belongs.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from tensorport_hub.devhub.blobs import FileBlob
from tensorport_hub.devhub.bodies import BlobAnswer, Dropped
from tensorport_hub.devhub.faults import Fault, Faults
from tensorport_hub.devhub.limits import Limits
from tensorport_hub.devhub.refusals import Refusal
from tensorport_hub.devhub.signing import Signer

BODY_FAULTS = ("drop", "stall", "wrong_bytes", "truncate", "ignore_range", "slow")
UPLOADS = ("POST", "PUT", "PATCH")


@dataclass(frozen=True)
class Seen:
    """One request as it ended. `status` 0: the connection was closed without an answer."""

    origin: str
    method: str
    path: str
    query: Mapping[str, str]
    status: int
    authorized: bool
    authorization: str | None
    range: str | None
    bytes_in: int
    bytes_out: int


class Traffic:
    """The book of requests. Thread-safe."""

    def __init__(self) -> None:
        self._seen: list[Seen] = []
        self._open = 0
        self._quiet = threading.Condition()

    def begin(self) -> None:
        with self._quiet:
            self._open += 1

    def end(self, seen: Seen) -> None:
        with self._quiet:
            self._seen.append(seen)
            self._open -= 1
            self._quiet.notify_all()

    def seen(self, patience: float = 0.5) -> list[Seen]:
        """Every request so far; waits a moment for those whose last byte is just on its way."""
        deadline = time.monotonic() + patience
        with self._quiet:
            while self._open and (left := deadline - time.monotonic()) > 0:
                self._quiet.wait(left)
            return list(self._seen)

    def forget(self) -> None:
        with self._quiet:
            self._seen.clear()


@dataclass(frozen=True)
class Door:
    """What the door of one origin knows."""

    origin: str
    traffic: Traffic
    faults: Faults
    signer: Signer
    limits: Limits | None

    async def admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """One request from its first byte to its last."""
        self.traffic.begin()
        answer: web.StreamResponse | None = None
        closed = False
        fault = self.faults.take(self.origin, request.method, request.path)
        try:
            self.faults.suffer(request, fault)
            answer = self._sendable(request, await self._answer(request, handler, fault), fault)
            await self._send(request, answer, fault)
            return answer
        except (Dropped, ConnectionError):  # a fault closed the connection, or the client did
            closed = True
            return web.Response(status=499)  # never sent: the connection is closed
        finally:
            self.faults.suffer(request, None)
            self.traffic.end(self._note(request, answer, closed))

    def _note(self, request: web.Request, answer: web.StreamResponse | None, closed: bool) -> Seen:
        authorization = request.headers.get("Authorization")
        answered = answer is not None and (answer.prepared or not closed)
        return Seen(
            self.origin,
            request.method,
            request.path,
            dict(request.query),
            answer.status if answer is not None and answered else 0,
            authorization is not None,
            authorization,
            request.headers.get("Range"),
            request.content.total_bytes,
            _body_bytes(request, answer),
        )

    async def _answer(
        self, request: web.Request, handler: Handler, fault: Fault | None
    ) -> web.StreamResponse:
        headers: dict[str, str] = {}
        kind = Limits.kind(request.path)
        if self.limits is not None and kind is not None:
            who = request.headers.get("Authorization") or request.remote or ""
            passes, headers = self.limits.count(kind, who)
            if not passes:
                words = "We had to rate limit you, you hit the quota of 1 window"
                return Refusal(429, words, headers=headers).response()
        try:
            if fault is not None:
                await self._befall(request, fault)
            answer = await handler(request)
        except Refusal as refusal:
            answer = refusal.response()
        except web.HTTPException as other:
            answer = web.json_response({"error": other.reason}, status=other.status)
        if fault is not None and fault.kind == "lost_answer":
            _close(request)
        if not answer.prepared:
            for name, value in headers.items():
                answer.headers.setdefault(name, value)
        return answer

    async def _befall(self, request: web.Request, fault: Fault) -> None:
        """The faults that strike before the request is handled."""
        upload = request.method in UPLOADS
        if fault.kind == "close":
            _close(request)
        elif fault.kind in ("status", "conflict"):
            words = "A commit has happened since. Please refresh and try again."
            said = words if fault.kind == "conflict" else "refused by a fault"
            raise Refusal(fault.answer_status, said, headers=fault.answer_headers)
        elif fault.kind == "expire":
            self.signer.kill_url(request.query)
        elif fault.kind == "drop" and upload:
            left = fault.at or 0
            while left > 0 and (piece := await request.content.read(min(left, 1 << 20))):
                left -= len(piece)
            _close(request)
        elif fault.kind == "stall" and upload and not fault.at:
            await asyncio.sleep(fault.seconds)

    @staticmethod
    def _sendable(
        request: web.Request, answer: web.StreamResponse, fault: Fault | None
    ) -> web.StreamResponse:
        """The answer in the form that the door sends, counts and, for a fault, breaks."""
        if isinstance(answer, web.FileResponse):
            return _of_file(request, answer)
        broken = _on_the_way_out(request, fault) is not None and answer.status < 300
        return BlobAnswer.of(answer) if broken and isinstance(answer, web.Response) else answer

    @staticmethod
    async def _send(request: web.Request, answer: web.StreamResponse, fault: Fault | None) -> None:
        if answer.prepared:
            return
        if isinstance(answer, BlobAnswer):
            await answer.send(request, _on_the_way_out(request, fault))
            return
        await answer.prepare(request)
        await answer.write_eof()


def _on_the_way_out(request: web.Request, fault: Fault | None) -> Fault | None:
    """The fault, if it befalls the answer's body: on an upload it befell the request's."""
    if fault is None or request.method in UPLOADS or fault.kind not in BODY_FAULTS:
        return None
    return fault


def _of_file(request: web.Request, answer: web.FileResponse) -> BlobAnswer:
    """aiohttp's own file answer as ours, which can be counted and befallen by faults."""
    path = answer._path  # aiohttp tells it nowhere else
    headers = {"Content-Type": answer.headers.get("Content-Type", "application/octet-stream")}
    return BlobAnswer.to(request, FileBlob("", path.stat().st_size, path), headers, path.name)


def _body_bytes(request: web.Request, answer: web.StreamResponse | None) -> int:
    """How many bytes of the answer's body were sent."""
    if isinstance(answer, BlobAnswer):
        return answer.bytes_out
    if answer is None or request.method == "HEAD" or not answer.prepared:
        return 0
    return answer.content_length or 0


def _close(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.close()
    raise Dropped("closed by a fault")


def door(keeper: Door) -> Middleware:
    """The middleware of one origin."""

    @web.middleware
    async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await keeper.admit(request, handler)

    return admit
