"""The Xet storage of the devhub: the HTTP side of content-addressed storage, under /cas/.

What hf_xet 1.8 asks for: POST of xorbs and shards, GET of reconstructions, GET of the xorb ranges those
name. Newer ways it tries first (upload grants, v2 shards, v2 reconstructions) and global deduplication
answer 404, and it falls back. Uploads are verified before they are kept (`admission`); a refusal is a 400
that says what differs.

Rules: bodies stream to a file and are bounded; unpacking and hashing run in worker threads, never on the
event loop; a xorb is served by sendfile, and only the byte range that its signed, expiring URL grants;
every other request needs a bearer token that `check_token` takes, else 401.

Source: the Xet protocol specification ("CAS API", "Upload protocol", "Download protocol").
"""

from __future__ import annotations

import asyncio
import hmac
import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ParamSpec

from aiohttp import web

from tensorport_hub.devhub.xet.admission import admit_shard, admit_xorb
from tensorport_hub.devhub.xet.blob import XetBlob
from tensorport_hub.devhub.xet.errors import Refused
from tensorport_hub.devhub.xet.hashing import hash_bytes
from tensorport_hub.devhub.xet.local import LocalCas
from tensorport_hub.devhub.xet.reconstruction import reconstruction
from tensorport_hub.devhub.xet.shard import SHARD_MAX_NBYTES
from tensorport_hub.devhub.xet.store import Store
from tensorport_hub.devhub.xet.xorb import XORB_MAX_NBYTES

__all__ = ["Cas", "LocalCas", "XetBlob"]

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
Args = ParamSpec("Args")

_URL_SECONDS = 3600
_WRITE_NBYTES = 4 << 20  # received bytes gathered before a thread writes them
_RANGE = re.compile(r"bytes=([0-9]{1,15})-([0-9]{0,15})")


class Cas:
    """Content-addressed storage under `root`, as routes for the CDN application."""

    def __init__(
        self, root: Path, *, base_url: Callable[[], str], check_token: Callable[[str], bool]
    ) -> None:
        self._store = Store(root)
        self._base_url = base_url
        self._check_token = check_token
        self._key = secrets.token_bytes(32)
        self._workers = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="cas-admission")

    def routes(self) -> list[web.AbstractRouteDef]:
        """The routes; all paths start with /cas/."""
        return [
            web.post("/cas/v1/xorbs/{prefix}/{hash}", self._guarded(self._post_xorb)),
            web.post("/cas/v1/shards", self._guarded(self._post_shard)),
            web.get("/cas/v1/reconstructions/{hash}", self._guarded(self._get_reconstruction)),
            web.get("/cas/v1/chunks/{prefix}/{hash}", self._guarded(_not_offered)),
            web.post("/cas/v1/xorb-grants/{prefix}/{hash}", self._guarded(_not_offered)),
            web.post("/cas/v2/shards", self._guarded(_not_offered)),
            web.get("/cas/v2/reconstructions/{hash}", self._guarded(_not_offered)),
            web.post("/cas/v1/telemetry", self._guarded(_taken)),
            web.get("/cas/xorbs/{hash}", self._get_xorb),
        ]

    def find(self, sha256: str) -> XetBlob | None:
        """A file whose shard was accepted, by the sha256 of its bytes: one look-up in the index."""
        return self._store.find(sha256)

    def close(self) -> None:
        """Wait for the threads and close the index."""
        self._workers.shutdown()
        self._store.close()

    def _guarded(self, answer: Answer) -> Answer:
        """`answer`, behind the token check, with a refusal as a 400."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            try:
                if scheme.lower() == "bearer" and self._check_token(token.strip()):
                    return await answer(request)
                refusal = _error(401, "a bearer token with access to this storage is needed")
            except Refused as refused:
                refusal = _error(400, str(refused))
            # a client that is cut off while it sends sees a broken connection and tries again for minutes
            await _discard(request)
            return refusal

        return guarded

    async def _post_xorb(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["prefix"] != "default":
            raise Refused(f"xorb prefix `{request.match_info['prefix'][:80]}`: expected `default`")
        digest = hash_bytes(request.match_info["hash"])
        body = self._store.incoming()
        try:
            await self._receive(request, body, XORB_MAX_NBYTES)
            new = await self._admission(admit_xorb, self._store, digest, body)
        finally:
            body.unlink(missing_ok=True)
        return web.json_response({"was_inserted": new})

    async def _post_shard(self, request: web.Request) -> web.StreamResponse:
        body = self._store.incoming()
        try:
            await self._receive(request, body, SHARD_MAX_NBYTES)
            new = await self._admission(admit_shard, self._store, body)
        finally:
            body.unlink(missing_ok=True)
        return web.json_response({"result": int(new)})

    async def _get_reconstruction(self, request: web.Request) -> web.StreamResponse:
        digest = hash_bytes(request.match_info["hash"])
        blob = await asyncio.to_thread(self._store.file, digest)
        if blob is None:
            return _error(404, f"no file `{request.match_info['hash']}`")
        start, stop = _wanted(request.headers.get("Range"), blob.size)
        if start >= stop and blob.size:
            answer = _error(416, f"range starts at {start}, the file has {blob.size} bytes")
            answer.headers["Content-Range"] = f"bytes */{blob.size}"
            return answer
        return web.json_response(await asyncio.to_thread(reconstruction, blob, start, stop, self._grant))

    async def _get_xorb(self, request: web.Request) -> web.StreamResponse:
        """A range of a stored xorb, to whoever holds its signed URL."""
        text, query = request.match_info["hash"], request.query
        granted, expires = query.get("range", ""), query.get("expires", "")
        signature = self._signature(text, granted, expires).encode()
        if not hmac.compare_digest(query.get("signature", "").encode(errors="replace"), signature):
            return _error(403, "the signature does not match")
        if int(expires) < time.time():
            return _error(403, "the URL has expired")
        range_header = request.headers.get("Range", "")
        wanted = _RANGE.fullmatch(range_header)
        first, last = (int(bound) for bound in granted.split("-"))
        if not wanted or not wanted[2] or not first <= int(wanted[1]) <= int(wanted[2]) <= last:
            return _error(
                403, f"the URL grants the range {granted}, the request asks for `{range_header[:80]}`"
            )
        return web.FileResponse(
            self._store.xorb_path(hash_bytes(text)), headers={"Content-Type": "application/octet-stream"}
        )

    def _grant(self, xorb: str, first: int, last: int) -> str:
        """A URL for the stored bytes first..last (inclusive) of a xorb."""
        granted, expires = f"{first}-{last}", str(int(time.time()) + _URL_SECONDS)
        signature = self._signature(xorb, granted, expires)
        query = f"range={granted}&expires={expires}&signature={signature}"
        return f"{self._base_url()}/cas/xorbs/{xorb}?{query}"

    def _signature(self, xorb: str, granted: str, expires: str) -> str:
        return hmac.digest(self._key, f"{xorb} {granted} {expires}".encode(errors="replace"), "sha256").hex()

    async def _receive(self, request: web.Request, body: Path, limit: int) -> None:
        """Stream a request's body into a file."""
        too_large = f"the body is larger than {limit} bytes"
        if (request.content_length or 0) > limit:
            raise web.HTTPRequestEntityTooLarge(limit, request.content_length or 0, text=too_large)
        nbytes = 0
        with body.open("wb") as file:
            held = bytearray()
            async for block in request.content.iter_any():
                nbytes += len(block)
                if nbytes > limit:
                    raise web.HTTPRequestEntityTooLarge(limit, nbytes, text=too_large)
                held += block
                if len(held) >= _WRITE_NBYTES:
                    await asyncio.to_thread(file.write, held)
                    held = bytearray()
            file.write(held)

    async def _admission(self, admit: Callable[Args, bool], *args: Args.args, **named: Args.kwargs) -> bool:
        """Run a check in a thread of its own pool, one a processor: a look-up never waits behind it."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workers, partial(admit, *args, **named))


async def _not_offered(request: web.Request) -> web.StreamResponse:
    """What a client may ask for first and does without."""
    return _error(404, f"`{request.path}` is not offered")


async def _taken(request: web.Request) -> web.StreamResponse:
    """A client's report about itself: read and dropped."""
    await _discard(request)
    return web.Response(status=204)


async def _discard(request: web.Request) -> None:
    """Read what is left of the body, within the limit of the largest."""
    nbytes = 0
    async for block in request.content.iter_any():
        nbytes += len(block)
        if nbytes > XORB_MAX_NBYTES:
            return


def _wanted(header: str | None, size: int) -> tuple[int, int]:
    """The half-open byte range a Range header asks for, cut at the end of the file. Raises `Refused`."""
    if header is None:
        return 0, size
    bounds = _RANGE.fullmatch(header)
    if bounds is None or (bounds[2] and int(bounds[2]) < int(bounds[1])):
        raise Refused(f"range `{header[:80]}`: expected `bytes=first-last`")
    return int(bounds[1]), min(int(bounds[2]) + 1, size) if bounds[2] else size


def _error(status: int, text: str) -> web.Response:
    return web.json_response({"error": text}, status=status)
