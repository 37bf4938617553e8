"""A git host on loopback: `git http-backend` and, behind the same address, an LFS server of somebody else's.

It passes requests on, remembers them, asks for a password where it is told to, and disturbs what a fault
names.
Repositories lie at `/st/NAME.git`, as bare ones in its folder.
"""

from __future__ import annotations

import base64
import fnmatch
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

_BLOCK = 1 << 16


@dataclass
class Fault:
    """What happens instead of, or to, the requests that match.

    Attributes:
        status, reason, body: the answer that is given; 0: the request is passed on.
        damage: one byte of the request's body is changed on the way.
        lost: the request is carried out, but its answer never comes.
        seconds: of silence before.
        after: so many matching requests pass before it strikes.
        times: how often; None: always.
    """

    method: str
    path: str
    status: int = 0
    reason: str = "Told so"
    body: str = ""
    damage: bool = False
    lost: bool = False
    seconds: float = 0.0
    after: int = 0
    times: int | None = 1
    struck: int = 0


@dataclass(frozen=True)
class Seen:
    """A request that came, and what was answered."""

    method: str
    path: str
    status: int
    authorization: str | None
    nbytes: int


@dataclass
class Lfs:
    """Where LFS requests go: how to connect, and what a path is there."""

    connect: Callable[[], http.client.HTTPConnection]
    translate: Callable[[str], str]
    headers: Mapping[str, str] = field(default_factory=dict)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a socket in the file system."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._socket_path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._socket_path))


class Front:
    """The host. `with` starts and stops it.

    Attributes:
        password: what it asks for, as `user:password`; None: nothing.
        faults, seen: what is wrong, and what happened.
    """

    def __init__(self, folder: Path, lfs: Lfs) -> None:
        self.folder, self.lfs = folder, lfs
        self.password: str | None = None
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.lock = threading.Lock()
        front = self

        class Handler(_Handler):
            host = front

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Front:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def strikes(self, method: str, path: str) -> Fault | None:
        """The fault that strikes this request."""
        with self.lock:
            for fault in self.faults:
                if fnmatch.fnmatch(method, fault.method) and fnmatch.fnmatch(path, fault.path):
                    if fault.after > 0:
                        fault.after -= 1
                    elif fault.times is None or fault.struck < fault.times:
                        fault.struck += 1
                        return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    host: Front

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = urlsplit(self.path).path
        fault = self.host.strikes(self.command, path)
        if fault is not None and fault.seconds:
            time.sleep(fault.seconds)
        body = self._body(damaged=fault is not None and fault.damage)
        if not self._may():
            headers = {"WWW-Authenticate": 'Basic realm="git"', "LFS-Authenticate": 'Basic realm="git"'}
            self._answer(401, "Who are you", headers, b"{}", len(body))
        elif fault is not None and fault.status:
            kind = "application/vnd.git-lfs+json" if fault.body.startswith("{") else "text/plain"
            self._answer(fault.status, fault.reason, {"Content-Type": kind}, fault.body.encode(), len(body))
        else:
            answer = self._lfs(body) if "/info/lfs/" in path or "/.hg/" in path else self._git(body)
            if fault is not None and fault.lost:
                self.close_connection = True
                return
            self._answer(*answer, len(body))

    def _may(self) -> bool:
        if self.host.password is None:
            return True
        signed = "/objects/storage/" in self.path  # a link that the LFS server made, with a token of its own
        return signed or self._own() in self.headers.get_all("Authorization", [])

    def _own(self) -> str:
        """What a client says that knows the password."""
        return f"Basic {base64.b64encode((self.host.password or '').encode()).decode()}"

    def _body(self, *, damaged: bool) -> bytes:
        body = bytearray()
        for block in self._blocks():
            body += block
        if damaged and body:
            body[len(body) // 2] ^= 0xFF
        return bytes(body)

    def _blocks(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            yield self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, reason: str, headers: Mapping[str, str], body: bytes, nbytes: int) -> None:
        path, authorization = urlsplit(self.path).path, self.headers.get("Authorization")
        with self.host.lock:
            self.host.seen.append(Seen(self.command, path, status, authorization, nbytes))
        self.send_response(status, reason)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "status"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _lfs(self, body: bytes) -> tuple[int, str, Mapping[str, str], bytes]:
        kept = ("accept", "content-type", "authorization")
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() in kept and value != self._own()  # the password ends here
        }
        headers |= {"Host": self.headers["Host"], **self.host.lfs.headers}
        connection = self.host.lfs.connect()
        try:
            connection.request(self.command, self.host.lfs.translate(self.path), body, headers)
            response = connection.getresponse()
            return response.status, response.reason, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def _git(self, body: bytes) -> tuple[int, str, Mapping[str, str], bytes]:
        url = urlsplit(self.path)
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.host.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "REMOTE_USER": "me",
            "REMOTE_ADDR": "127.0.0.1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": url.path,
            "QUERY_STRING": url.query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        ended = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True)
        head, _, content = ended.stdout.partition(b"\r\n\r\n")
        pairs = (line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        headers = dict(pairs)
        status, _, reason = headers.get("Status", "200 OK").partition(" ")
        return int(status), reason, headers, content


@contextmanager
def giftless(folder: Path) -> Iterator[Lfs]:
    """giftless, with its objects below `folder`; it takes any bytes of the right size."""
    configuration = folder / "giftless.yaml"
    configuration.write_text(
        "LEGACY_ENDPOINTS: false\n"
        "AUTH_PROVIDERS:\n  - giftless.auth.allow_anon:read_write\n"
        "TRANSFER_ADAPTERS:\n  basic:\n    factory: giftless.transfer.basic_streaming:factory\n    options:\n"
        "      storage_class: giftless.storage.local_storage:LocalStorage\n"
        f"      storage_options:\n        path: {folder}/storage\n"
    )
    where = folder / "socket"
    words = ["--bind", f"unix:{where}", "--threads", "4", "--log-level", "error"]
    with _serving(
        [sys.executable, "-W", "ignore", "-m", "gunicorn", *words, "giftless.wsgi_entrypoint:app"],
        folder,
        {**os.environ, "TMPDIR": str(folder), "GIFTLESS_CONFIG_FILE": str(configuration)},
    ) as process:
        _until(where.exists, process, folder / "log")
        yield Lfs(lambda: UnixConnection(where), lambda path: path)


@contextmanager
def mercurial(folder: Path) -> Iterator[Lfs]:
    """Mercurial's server with its LFS extension, which compares what it gets with its sha256; one store."""
    environment = {**os.environ, "TMPDIR": str(folder), "HGRCPATH": "", "HGPLAIN": "1"}
    subprocess.run(["hg", "init", "store"], cwd=folder, env=environment, check=True, timeout=60)
    settings = {
        "extensions.lfs": "",
        "web.push_ssl": "false",
        "web.allow-push": "*",
        "lfs.usercache": str(folder / "cache"),
        "experimental.lfs.serve": "true",
    }
    words = [word for key, value in settings.items() for word in ("--config", f"{key}={value}")]
    serve = ["hg", "serve", "-R", "store", *words, "-a", "127.0.0.1", "-p", "0", "--print-url"]
    with _serving(serve, folder, environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        port = urlsplit(line.strip()).port
        assert port is not None, (line, (folder / "log").read_text())

        def translate(path: str) -> str:
            return path if path.startswith("/.hg/") else f"/.git/info/lfs/{path.partition('/info/lfs/')[2]}"

        kind = "application/vnd.git-lfs+json"
        headers = {"Content-Type": kind}  # it takes no `; charset=utf-8`
        yield Lfs(lambda: http.client.HTTPConnection("127.0.0.1", port, timeout=60), translate, headers)


@contextmanager
def _serving(
    words: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _until(met: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while not met():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
