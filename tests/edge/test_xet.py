"""What hf_xet connects with: tokens that make sense, or an error before it sees them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from tensorport_hub.edge.http import Http
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.edge.xet import connection
from tensorport_hub.errors import DestinationError, SourceError

TOKEN = {"casUrl": "https://cas.example/", "accessToken": "swordfish", "exp": 4_102_444_800}


class _Server(HTTPServer):
    """Answers everything with one body."""

    status, body = 200, b""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        if self.server.status == 429:
            self.send_header("RateLimit", '"api";r=0;t=60')
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[_Server]:
    running = _Server(("127.0.0.1", 0), _Handler)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def connect(server: _Server, refusal: Any = SourceError) -> dict[str, Any] | None:
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    client = HubClient(endpoint=endpoint, token="hf_mine")
    url = client.xet_token_url("read", "org/model", "0" * 40)
    return connection(client, Http(read_seconds=5), url, "Xet token of `org/model`", refusal)


def test_a_token_is_what_hf_xet_connects_with(server: _Server) -> None:
    """The storage gets its own token; the Hub's goes back to where this one came from, and nowhere else."""
    server.body = json.dumps(TOKEN).encode()
    found = connect(server)
    assert found is not None
    assert (found["endpoint"], found["token"]) == ("https://cas.example/", "swordfish")
    assert found["token_refresh_url"].endswith(f"/api/models/org/model/xet-read-token/{'0' * 40}")
    assert "hf_mine" in found["token_refresh_headers"]["authorization"]
    assert "hf_mine" not in str(found["custom_headers"])


@pytest.mark.parametrize(
    "changed",
    [
        {"exp": -1},
        {"exp": 1 << 70},
        {"exp": "soon"},
        {"exp": None},
        {"exp": float("inf")},
        {"accessToken": ""},
        {"accessToken": "a\nb"},
        {"accessToken": "a\0b"},
        {"casUrl": ""},
        {"casUrl": "../../x"},
        {"casUrl": "file:///etc"},
        {"casUrl": "https://cas.example/ x"},
    ],
)
@pytest.mark.parametrize("refusal", [SourceError, DestinationError])
def test_a_token_that_makes_no_sense_is_refused(
    server: _Server, changed: dict[str, Any], refusal: Any
) -> None:
    """What hf_xet would choke on is an error that names the token, and does not show it."""
    server.body = json.dumps({**TOKEN, **changed}).encode()
    with pytest.raises(refusal, match="Xet token of `org/model` makes no sense") as caught:
        connect(server, refusal)
    assert "swordfish" not in str(caught.value)


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"[]", b"{}", b"[" * 60_000, b"<html>busy</html>"])
def test_an_answer_that_is_no_token_is_refused(server: _Server, body: bytes) -> None:
    """So is an answer that is cut short, or something else."""
    server.body = body
    with pytest.raises(SourceError, match="makes no sense"):
        connect(server)


@pytest.mark.parametrize(("status", "transient"), [(401, False), (403, False), (429, True), (503, True)])
def test_a_refusal_is_what_its_status_says(server: _Server, status: int, transient: bool) -> None:
    """Whose fault it is, and whether it may pass, as everywhere."""
    server.status = status
    with pytest.raises(SourceError, match=str(status)) as caught:
        connect(server)
    assert caught.value.transient is transient


def test_a_hub_without_xet(server: _Server) -> None:
    """A Hub that knows no such endpoint has no such storage: no error."""
    server.status = 404
    assert connect(server) is None


def test_a_closed_window_is_obeyed(server: _Server) -> None:
    """After a 429 nothing is asked before its time is over."""
    server.status = 429
    with pytest.raises(SourceError, match="429"):
        connect(server)
    server.status, server.body = 200, json.dumps(TOKEN).encode()
    with pytest.raises(SourceError, match="waits for the rate limit") as caught:
        connect(server)
    assert caught.value.transient
