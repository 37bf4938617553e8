"""A Hub whose answers are damaged: a documented error or the right mirror, in bounded time."""

from __future__ import annotations

import json
import os
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tensorport_hub import mirror, verify
from tensorport_hub.devhub import DevHub
from tensorport_hub.edge import retry
from tensorport_hub.engine import part
from tensorport_hub.errors import TensorportError
from tests.e2e.reading import contents
from tests.e2e.test_resume import MODEL, SOURCE
from tests.hostile.damage import nodes

TRIALS = 20
JUNK: list[Any] = [
    None,
    True,
    -1,
    0,
    1 << 62,
    1.5,
    "",
    "x" * 5000,
    "../../x",
    "a\0b\x1b[31m",
    [],
    {},
    [None],
    {"a": []},
]
BODIES = [b"", b"{", b"null", b"[]", b"[" * 100_000, b"<html>busy</html>", b"\xff\xfe\x00", b'"text"']


class Proxy(ThreadingHTTPServer):
    """Passes everything on to the Hub, and damages one JSON answer in a few."""

    daemon_threads = True

    def __init__(self, upstream: str, draw: random.Random) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.draw = upstream, draw
        self.share = 0.04
        self.damaged = 0
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def damage(self, body: bytes) -> bytes:
        """The body, or something else."""
        with self.lock:
            if self.draw.random() > self.share:
                return body
            self.damaged += 1
            if self.draw.random() < 0.2:
                return self.draw.choice(BODIES)
            try:
                value = json.loads(body)
            except ValueError:
                return body
            for _ in range(self.draw.randint(1, 3)):
                paths = list(nodes(value))
                if paths:
                    *way, key = self.draw.choice(paths)
                    at = value
                    for step in way:
                        at = at[step]
                    if self.draw.random() < 0.3:
                        del at[key]
                    else:
                        at[key] = self.draw.choice(JUNK)
            return json.dumps(value).encode()


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Proxy
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def _pass(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else None
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self._chunks())
        skipped = {"host", "content-length", "transfer-encoding", "connection", "accept-encoding"}
        headers = {key: value for key, value in self.headers.items() if key.lower() not in skipped}
        request = urllib.request.Request(
            self.server.upstream + self.path, data=body, headers=headers, method=self.command
        )
        try:
            with _OPENER.open(request, timeout=30) as answer:
                self._answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            self._answer(error.code, error.headers, error.read())

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _answer(self, status: int, headers: Any, body: bytes) -> None:
        if (
            "json" in headers.get("Content-Type", "")
            and self.command != "HEAD"
            and self.path.startswith("/api")
        ):
            body = self.server.damage(body)
        self.send_response(status)
        for key, value in headers.items():
            if key.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(key, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _pass

    def log_message(self, *_: object) -> None:
        """Nothing."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))


@pytest.fixture
def proxy(hub: DevHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    hub.add_repo(SOURCE, MODEL)
    monkeypatch.setattr(retry, "_FIRST", 0.001)
    monkeypatch.setattr(part, "_PAUSE", 0.001)
    server = Proxy(hub.endpoint, random.Random(1))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_damaged_answers(hub: DevHub, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many runs, each with some answers of the API damaged: no other exception than ours, no wrong
    mirror on `main`, nothing written to the disk outside the temporary folder."""
    mirror(SOURCE, "me/undisturbed", checkpoint_every=300_000, transfer="lfs")
    expected = contents(hub, "me/undisturbed")
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir(tmp_path))
    ends = {"done": 0, "error": 0}
    monkeypatch.setenv("HF_ENDPOINT", proxy.endpoint)
    for number in range(TRIALS):
        target = f"me/trial-{number // 2}"
        try:
            mirror(SOURCE, target, checkpoint_every=300_000, transfer="lfs")
            ends["done"] += 1
        except TensorportError as error:
            ends["error"] += 1
            failure = error
            check_words(failure)
        found = published(hub, target)
        assert not found or found == expected, number
    assert sorted(os.listdir(tmp_path)) == before
    assert proxy.damaged > TRIALS // 2
    assert min(ends.values()) > 2, ends


def published(hub: DevHub, target: str) -> dict[str, bytes]:
    """What readers of `main` see; nothing where there is no repository."""
    try:
        return contents(hub, target)
    except LookupError:
        return {}


def check_words(error: TensorportError) -> None:
    """Ours, short, printable, with a documented exit code."""
    assert error.exit_code in (2, 3, 4, 5, 6, 7), error
    assert 0 < len(error.message) < 3000
    assert all(line.isprintable() for line in error.message.splitlines())


def test_damaged_answers_to_verify(hub: DevHub, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` finds faults or raises ours; a mirror whose listing is damaged is never called proven."""
    mirror(SOURCE, "me/good", transfer="lfs")
    monkeypatch.setenv("HF_ENDPOINT", proxy.endpoint)
    proxy.share = 0.6
    for _ in range(60):
        try:
            verify("me/good")
        except TensorportError as error:
            check_words(error)
