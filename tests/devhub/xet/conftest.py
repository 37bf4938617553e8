"""A CAS on loopback with a token endpoint, hf_xet sessions that write nowhere but under tmp_path, and a
recorder that takes whatever hf_xet sends and keeps it, so that tests can change it and send it on."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hf_xet
import numpy as np
import pytest
from aiohttp import web

from tensorport_hub.devhub.xet import Cas

GOOD_TOKEN = "good-token"


@dataclass
class Server:
    """The CAS's routes and a token endpoint on a listener of their own, in a thread."""

    root: Path
    tokens: set[str] = field(default_factory=lambda: {GOOD_TOKEN})
    requests: list[tuple[str, str]] = field(default_factory=list)
    recorded: list[tuple[str, bytes]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    def start(self) -> None:
        self.cas = Cas(self.root, base_url=lambda: self.url, check_token=lambda token: token in self.tokens)
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self.cas.close()

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        application = web.Application(middlewares=[self._note], client_max_size=1 << 27)
        own = [web.get("/token/{token}", self._token), web.post("/record/{path:.+}", self._record)]
        application.add_routes([*self.cas.routes(), *own])
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=2)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "localhost", 0)
        self._loop.run_until_complete(site.start())
        self.port = runner.addresses[0][1]
        ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    @web.middleware
    async def _note(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        return await handler(request)  # type: ignore[no-any-return]  # aiohttp types handlers loosely

    async def _token(self, request: web.Request) -> web.Response:
        token, exp = request.match_info["token"], int(time.time()) + 3600
        headers = {
            "X-Xet-Cas-Url": f"{self.url}/cas",
            "X-Xet-Access-Token": token,
            "X-Xet-Token-Expiration": str(exp),
        }
        return web.json_response(
            {"accessToken": token, "exp": exp, "casUrl": headers["X-Xet-Cas-Url"]}, headers=headers
        )

    async def _record(self, request: web.Request) -> web.Response:
        path = request.match_info["path"]
        if not path.startswith(("v1/xorbs/", "v1/shards")):
            return web.Response(status=404)
        self.recorded.append((path, await request.read()))
        return web.json_response({"was_inserted": True, "result": 1})

    def call(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """One plain request: status, body, headers. A header given as `a_b` is sent as `A-B`."""
        url = path if path.startswith("http") else f"{self.url}{path}"
        request = urllib.request.Request(url, data=body, method=method)
        for name, value in ({"Authorization": f"Bearer {GOOD_TOKEN}"} | headers).items():
            request.add_header(name.replace("_", "-"), value)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), dict(error.headers)


@dataclass
class Client:
    """The unmodified hf_xet against one endpoint."""

    endpoint: dict[str, Any]
    session: Any = field(default_factory=hf_xet.XetSession)

    def commit(self) -> Any:
        return self.session.new_upload_commit(**self.endpoint)

    def upload(self, *contents: bytes, block: int = 1 << 20) -> list[Any]:
        """Each of `contents` by a stream of its own, in one commit; what hf_xet says of each."""
        commit = self.commit()
        infos = []
        for i, content in enumerate(contents):
            stream = commit.start_upload_stream(name=f"file-{i}")
            for start in range(0, len(content), block):
                stream.write(content[start : start + block])
            infos.append(stream.finish().xet_info)
        commit.wait_to_finish()
        return infos

    def download(self, info: Any, start: int | None = None, stop: int | None = None) -> bytes:
        group = self.session.new_download_stream_group(**self.endpoint)
        return b"".join(group.download_stream(info, start, stop))


@pytest.fixture(autouse=True)
def _xet_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """hf_xet's memory of what a server has is in its cache: a new one for each test."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "home" / "xet"))
    monkeypatch.setenv("HF_XET_TELEMETRY_ENABLED", "0")
    yield
    gc.collect()  # a local:// store is locked until the objects that use it are gone


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "cas")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def client(server: Server) -> Client:
    return Client({"token_refresh_url": f"{server.url}/token/{GOOD_TOKEN}"})


@dataclass(frozen=True)
class Recording:
    """What hf_xet sent for one file: its xorb, its shard."""

    content: bytes
    info: Any
    xorb_hash: str
    xorb: bytes
    shard: bytes


@pytest.fixture
def recording(server: Server) -> Recording:
    """A file of some 40 chunks in one xorb and one term, packed in all three ways."""
    content = bf16_bytes(1_500_000) + random_bytes(400_000) + b"the same line again\n" * 20_000
    recorder = Client(
        {
            "endpoint": f"{server.url}/record",
            "token": GOOD_TOKEN,
            "token_expiry_unix_secs": int(time.time()) + 3600,
        }
    )
    (info,) = recorder.upload(content)
    (xorb_path, xorb), (_, shard) = server.recorded
    return Recording(content, info, xorb_path.rpartition("/")[2], xorb, shard)


def random_bytes(nbytes: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(nbytes)


def bf16_bytes(nbytes: int, seed: int = 0) -> bytes:
    """Weights as a model has them: a narrow normal distribution, the upper half of each float32."""
    weights = np.random.default_rng(seed).standard_normal(nbytes // 2 + 1, dtype=np.float32) * 0.02
    return weights.view(np.uint16)[1::2].tobytes()[:nbytes]


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
