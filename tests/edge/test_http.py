"""Bulk HTTP: what a status means, how long to wait, and bodies that break, against a real server."""

from __future__ import annotations

import socket
import socketserver
import threading
import traceback
from collections.abc import Iterator
from email.utils import formatdate
from time import time

import pytest
import urllib3
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.edge.http import TRANSIENT, Http, failure, plain, read_into, wait_seconds
from tensorport_hub.errors import DestinationError, SourceError

BODY = bytes(range(256)) * 16_384  # 4 MiB


class Answers(socketserver.ThreadingTCPServer):
    """Answers each path with prepared bytes, then closes the connection; keeps the request's text."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.requests: list[str] = []
        super().__init__(("127.0.0.1", 0), _Answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Answers)
        text = b""
        while b"\r\n\r\n" not in text:
            line = self.rfile.readline()
            if not line:
                return
            text += line
        self.server.requests.append(text.decode("latin1"))
        path = text.split(b" ")[1].decode().partition("?")[0]
        answer = self.server.answers[path]
        if answer == b"reset":
            linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            return
        if answer == b"silence":
            self.rfile.read()
            return
        self.wfile.write(answer)


@pytest.fixture
def server() -> Iterator[Answers]:
    with Answers() as answers:
        thread = threading.Thread(target=answers.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield answers
        answers.shutdown()
        thread.join()


@pytest.fixture
def http() -> Iterator[Http]:
    connections = Http(read_seconds=0.5)
    yield connections
    connections.close()


def answer(status: str, body: bytes = b"", **headers: str) -> bytes:
    """An answer on the wire."""
    lines = "".join(f"{key.replace('_', '-')}: {value}\r\n" for key, value in headers.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


def get(http: Http, server: Answers, path: str = "/a") -> urllib3.BaseHTTPResponse:
    return http.request("GET", server.url + path, refusal=SourceError, headers={"Range": "bytes=0-9"})


class TestReadInto:
    """Bodies into buffers."""

    @pytest.mark.parametrize("size", [1, 100, (1 << 20) + 1, len(BODY)])
    def test_fills_the_buffer(self, http: Http, server: Answers, size: int) -> None:
        """A body of the buffer's size fills it, by as many reads as it takes."""
        server.answers["/a"] = answer("206 Partial Content", BODY[:size], Content_Length=str(size))
        buffer = bytearray(size)
        assert read_into(get(http, server), memoryview(buffer)) == size
        assert buffer == BODY[:size]

    @pytest.mark.parametrize("sent", [0, 1, 5, 1 << 20, (1 << 20) + 1, len(BODY) - 1])
    @pytest.mark.parametrize("stated", [True, False])
    def test_short_body_is_counted(self, http: Http, server: Answers, sent: int, stated: bool) -> None:
        """Of a body that breaks off no more is counted than came, and what is counted is right."""
        headers = {"Content_Length": str(len(BODY))} if stated else {}
        server.answers["/a"] = answer("206 Partial Content", BODY[:sent], **headers)
        buffer = bytearray(len(BODY))
        got = read_into(get(http, server), memoryview(buffer))
        assert sent - (1 << 20) < got <= sent
        assert buffer[:got] == BODY[:got]
        assert not any(buffer[sent:])

    def test_longer_body_stays_outside(self, http: Http, server: Answers) -> None:
        """Of a longer body only the buffer's size is taken."""
        server.answers["/a"] = answer("200 OK", BODY[:100], Content_Length="100")
        around = bytearray(20)
        assert read_into(get(http, server), memoryview(around)[5:15]) == 10
        assert around == bytes(5) + BODY[:10] + bytes(5)

    def test_stalled_body_ends(self, http: Http, server: Answers) -> None:
        """A body that stops coming is a short one, after the read time."""
        released = threading.Event()
        listener = socket.create_server(("127.0.0.1", 0))

        def stall() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer("200 OK", b"12345", Content_Length="10"))
                released.wait(5)

        thread = threading.Thread(target=stall)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        buffer = bytearray(10)
        response = http.request("GET", url, refusal=SourceError, headers={})
        assert read_into(response, memoryview(buffer)) <= 5
        released.set()
        thread.join()
        listener.close()

    def test_chunked_body_that_breaks(self, http: Http, server: Answers) -> None:
        """A chunked body without its last chunk is a short one."""
        server.answers["/a"] = answer("200 OK", b"5\r\nabcde\r\n5\r\nfg", Transfer_Encoding="chunked")
        buffer = bytearray(10)
        got = read_into(get(http, server), memoryview(buffer))
        assert got <= 7
        assert buffer[:got] == b"abcdefg"[:got]


class TestRequest:
    """One request, one answer."""

    @pytest.mark.parametrize("refusal", [SourceError, DestinationError])
    @pytest.mark.parametrize("kind", ["refused", "reset", "silence", "garbage", "closed"])
    def test_no_answer_is_a_passing_fault(
        self, http: Http, server: Answers, kind: str, refusal: type[SourceError]
    ) -> None:
        """Refused, reset, closed, silent or talking nonsense: a transient error of the asked kind."""
        server.answers["/a"] = {"garbage": b"\x00\xff nonsense\r\n\r\n", "closed": b""}.get(
            kind, kind.encode()
        )
        url = f"{server.url}/a?signature=secret"
        if kind == "refused":
            with socket.create_server(("127.0.0.1", 0)) as free:
                url = f"http://127.0.0.1:{free.getsockname()[1]}/a?signature=secret"
        with pytest.raises(refusal, match=r"GET http://127\.0\.0\.1:\d+/a got no answer") as caught:
            http.request("GET", url, refusal=refusal, headers={"authorization": "Bearer hf_secret"})
        assert caught.value.transient
        assert "secret" not in f"{caught.value} {caught.value.hint}"

    @pytest.mark.parametrize(
        "status", ["301 Moved", "302 Found", "404 Not Found", "429 Too Many", "503 Busy"]
    )
    def test_every_answer_is_the_caller_s(self, http: Http, server: Answers, status: str) -> None:
        """Nothing is redirected, retried or raised: one request, and its status."""
        server.answers["/a"] = answer(status, Location="/b", Content_Length="0", Retry_After="0")
        assert get(http, server).status == int(status[:3])
        assert len(server.requests) == 1

    def test_sends_what_it_is_given(self, http: Http, server: Answers) -> None:
        """Headers and body go out as they are."""
        server.answers["/a"] = answer("200 OK", Content_Length="0")
        http.request("PUT", server.url + "/a", refusal=DestinationError, headers={"X-A": "b"}, body=b"xyz")
        assert server.requests[0].startswith("PUT /a HTTP/1.1\r\n")
        assert "X-A: b\r\n" in server.requests[0]
        assert "Content-Length: 3\r\n" in server.requests[0]

    @pytest.mark.parametrize("url", ["http://[::1/a", "http://host:99999/a", "http://host:x/a", "ftp://h/a"])
    def test_nonsense_url_is_refused(self, http: Http, url: str) -> None:
        """A URL that a server made up (a redirect's) is an error of ours, not a crash."""
        with pytest.raises(SourceError, match="GET "):
            http.request("GET", url, refusal=SourceError, headers={})

    @pytest.mark.parametrize("token", ["hf_secret\n", "hf_secret\u20ac"])
    def test_malformed_token_is_not_shown(self, http: Http, server: Answers, token: str) -> None:
        """A header that can't be sent is an error that does not quote it."""
        headers = {"authorization": f"Bearer {token}"}
        with pytest.raises(DestinationError, match="malformed") as caught:
            http.request("GET", server.url + "/a", refusal=DestinationError, headers=headers)
        assert "secret" not in "".join(traceback.format_exception(caught.value)[-1:])
        assert caught.value.__suppress_context__
        assert not caught.value.transient

    def test_absent_proxy_is_a_passing_fault(self, http: Http, monkeypatch: pytest.MonkeyPatch) -> None:
        """A proxy that does not answer is a transient error that shows no signature and no password."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{port}")
        monkeypatch.delenv("no_proxy", raising=False)
        with pytest.raises(SourceError, match="got no answer") as caught:
            http.request("GET", "http://model.example/a?s=secret", refusal=SourceError, headers={})
        assert caught.value.transient
        assert "secret" not in str(caught.value)

    def test_proxy_of_the_environment_is_used(
        self, http: Http, server: Answers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`http_proxy` is asked for hosts outside `no_proxy`, and those inside directly."""
        server.answers["http://model.example/a"] = answer("200 OK", Content_Length="0")
        server.answers["/a"] = answer("204 No Content")
        monkeypatch.setenv("http_proxy", server.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        proxied = http.request("GET", "http://model.example/a", refusal=SourceError, headers={})
        assert (proxied.status, get(http, server).status) == (200, 204)


class TestFailure:
    """The table from status to error."""

    @pytest.mark.parametrize(
        ("status", "words"),
        [
            (401, "asks for a valid token"),
            (403, "is forbidden to this account"),
            (404, "is not there"),
            (410, "is gone"),
            (412, "moved meanwhile"),
            (413, "is too large for the other side"),
            (416, "has no such range"),
            (429, "is rate-limited"),
            (507, "has no space left"),
            (418, "was answered with status 418"),
            (500, "was answered with status 500"),
        ],
    )
    @pytest.mark.parametrize("refusal", [SourceError, DestinationError])
    def test_words(self, status: int, words: str, refusal: type[SourceError]) -> None:
        """Each status has its words, with the object and the number."""
        error = failure(status, {}, "`model.safetensors`", refusal)
        assert isinstance(error, refusal)
        assert error.message == f"`model.safetensors` {words} (HTTP {status})"

    @pytest.mark.parametrize("status", range(400, 600))
    def test_what_may_pass(self, status: int) -> None:
        """Time-outs, rate limits, server trouble and a proxy's own 52x may pass; all else stays."""
        passing = {408, 425, 429, 500, 502, 503, 504} | set(range(520, 528))
        assert failure(status, {}, "x", SourceError).transient == (status in passing)
        assert (status in TRANSIENT) == (status in passing)

    @pytest.mark.parametrize(("status", "words"), [(401, "no token was given"), (403, "has no access")])
    def test_gated(self, status: int, words: str) -> None:
        """A gated repository is called so, by the Hub's error code, and the hint says what to do."""
        error = failure(status, {"X-Error-Code": "GatedRepo"}, "`org/m`", SourceError)
        assert "is gated" in error.message
        assert words in error.message
        assert error.hint

    def test_detail_of_the_other_side(self) -> None:
        """The Hub's own words and code are passed on, and its wish to wait."""
        headers = {"X-Error-Code": "Quota", "X-Error-Message": "storage is full", "Retry-After": "12"}
        error = failure(429, headers, "`org/m`", DestinationError)
        assert error.message == "`org/m` is rate-limited (HTTP 429, Quota): storage is full"
        assert error.retry_after == 12


class TestWaitSeconds:
    """How long the other side asks us to wait."""

    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ({}, None),
            ({"Retry-After": "7"}, 7.0),
            ({"Retry-After": " 0 "}, 0.0),
            ({"Retry-After": "soon"}, None),
            ({"Retry-After": "²"}, None),
            ({"Retry-After": ""}, None),
            ({"RateLimit": '"api";r=0;t=55'}, 55.0),
            ({"RateLimit": '"api"; r=0; t=55'}, 55.0),
            ({"RateLimit": '"api";r=3;t=55'}, None),
            ({"RateLimit": '"a";r=9;t=300, "b";r=0;t=5'}, 5.0),
            ({"RateLimit": '"api";r=05;t=55'}, None),
            ({"RateLimit": "nonsense"}, None),
            ({"Retry-After": "3", "RateLimit": '"api";r=0;t=55'}, 55.0),
            ({"Retry-After": "60", "RateLimit": '"api";r=0;t=55'}, 60.0),
        ],
    )
    def test_headers(self, headers: dict[str, str], seconds: float | None) -> None:
        """`Retry-After` in seconds, or `t` of an exhausted `RateLimit`; the longer of both."""
        assert wait_seconds(headers) == seconds

    def test_date(self) -> None:
        """`Retry-After` may be a date."""
        asked = wait_seconds({"Retry-After": formatdate(time() + 100, usegmt=True)})
        assert asked is not None
        assert 95 < asked <= 100

    @given(st.text(st.characters(max_codepoint=255), max_size=40), st.text(max_size=40))
    @settings(max_examples=200, deadline=None)
    def test_any_text(self, after: str, window: str) -> None:
        """Whatever the headers say, the answer is a number or None."""
        asked = wait_seconds({"Retry-After": after, "RateLimit": window})
        assert asked is None or isinstance(asked, float)

    @given(
        st.tuples(st.integers(-5, 10**6), st.integers(0, 10**5), st.integers(0, 99), st.integers(-9999, 9999))
    )
    @settings(max_examples=200, deadline=None)
    def test_any_date(self, numbers: tuple[int, int, int, int]) -> None:
        """Whatever the date says, the answer is a number or None."""
        day, year, hour, zone = numbers
        text = f"Mon, {day} Jan {year} {hour:02d}:00:00 {zone:+05d}"
        asked = wait_seconds({"Retry-After": text})
        assert asked is None or isinstance(asked, float)


class TestPlain:
    """URLs in messages."""

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("https://cdn.example/a/b?X-Amz-Signature=secret&x=1#f", "https://cdn.example/a/b"),
            ("https://user:secret@cdn.example:8443/a", "https://cdn.example:8443/a"),
            ("https://hf_secret@cdn.example", "https://cdn.example"),
            ("http://[::1]:8080/a?secret", "http://[::1]:8080/a"),
            ("http://h:99999/a?secret", "http://h:99999/a"),
            ("http://h:secret/a", "http://h/a"),
            ("http://[::1/a?secret", "a malformed URL"),
            ("", "://"),
        ],
    )
    def test_hides_query_and_credentials(self, url: str, shown: str) -> None:
        """Scheme, host, port and path are shown; signatures, credentials and nonsense are not."""
        assert plain(url) == shown

    @given(st.text(max_size=60))
    @settings(max_examples=200, deadline=None)
    def test_any_text(self, text: str) -> None:
        """Any text gives a text without what follows a question mark."""
        assert "?" not in plain(f"http://host/a?{text}")
        assert isinstance(plain(text), str)
