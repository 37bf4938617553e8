"""The devhub as one object: two listeners and their event loop in a thread of their own.

`DevHub` is what tests and the command line hold. Its methods are called from any thread; they work
on the stores directly, which are thread-safe, and what they change is served at once. The Hub
listens on 127.0.0.1, the CDN on localhost (both loopback addresses where there are two), so that the
two are different origins to every client, as on the Hub.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from aiohttp import web

from tensorport_hub.devhub import seeds
from tensorport_hub.devhub.app import cdn_app, hub_app
from tensorport_hub.devhub.database import RootLock
from tensorport_hub.devhub.deliveries import Deliveries, Delivery
from tensorport_hub.devhub.faults import Faults
from tensorport_hub.devhub.history import Commit
from tensorport_hub.devhub.hub import Hub, Settings
from tensorport_hub.devhub.jobs import AskedJob, all_jobs
from tensorport_hub.devhub.seeds import Content
from tensorport_hub.devhub.traffic import Seen

THREADS = 8
READ_BUFFER = 1 << 20


class DevHub:
    """A Hub on loopback, over one root directory. A context manager; or `start` and `stop`.

    Args:
        drop_above: bytes above which an uploaded LFS object is checked and dropped; None keeps all.
    """

    def __init__(
        self,
        root: Path | str,
        xet: str = "http",
        *,
        port: int = 0,
        cdn_port: int = 0,
        url_seconds: float = 3600.0,
        multipart_above: int = 5_000_000_000,
        part_size: int = 64 << 20,
        tree_page: int = 1000,
        rate_limits: Mapping[str, int] | None = None,
        rate_window: float = 300.0,
        drop_above: int | None = None,
    ) -> None:
        self.root = Path(root)
        self._ports = port, cdn_port
        self._settings = Settings(
            xet,
            url_seconds,
            multipart_above,
            part_size,
            tree_page,
            rate_limits or {},
            rate_window,
            drop_above,
        )
        self._hub: Hub | None = None
        self._serving: _Serving | None = None
        self._deliveries: Deliveries | None = None
        self._lock: RootLock | None = None
        self.token = ""

    # -- life

    def start(self) -> DevHub:
        if self._serving is not None:
            raise RuntimeError("this devhub is running")
        self.root.mkdir(parents=True, exist_ok=True)
        self._lock = RootLock(self.root)
        try:
            self._hub = Hub(self.root, self._settings)
            self._hub.blobs.objects.sweep()
            self.token = seeds.default_token(self._hub)
            self._serving = _Serving(self._hub, *self._ports)
            self._deliveries = Deliveries(self._hub)
        except BaseException:
            self._close()
            raise
        return self

    def stop(self) -> None:
        """Close the listeners and the root; harmless when it is not running."""
        if self._serving is not None:
            self._serving.stop()
            self._serving = None
        self._close()

    def _close(self) -> None:
        if self._deliveries is not None:
            self._deliveries.stop()
            self._deliveries = None
        if self._hub is not None:
            self._hub.close()
            self._hub = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> DevHub:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _running(self) -> Hub:
        if self._hub is None:
            raise RuntimeError("this devhub is not running")
        return self._hub

    @property
    def endpoint(self) -> str:
        """The Hub's origin: what HF_ENDPOINT is set to."""
        return self._running.endpoint

    @property
    def cdn(self) -> str:
        """The CDN's origin."""
        return self._running.cdn

    # -- what it holds

    def add_user(
        self, name: str, orgs: Mapping[str, str] | None = None, can_read_gated: Sequence[str] = ()
    ) -> str:
        """Make a user, or give one more memberships and grants; returns a new write token."""
        accounts = self._running.accounts
        accounts.add_user(name, orgs=orgs, can_read_gated=can_read_gated)
        return accounts.add_token(name)

    def add_token(self, user: str, role: str = "write") -> str:
        return self._running.accounts.add_token(user, role)

    def revoke(self, token: str) -> None:
        self._running.accounts.revoke(token)

    def trust(self, repo_id: str, claims: Mapping[str, str]) -> None:
        """Add a trusted publisher: a CI job with all these claims may write to the repository."""
        self._running.publishers.trust(repo_id, claims)

    def id_token(self, claims: Mapping[str, str], audience: str) -> str:
        """What a CI provider would give to a job with these claims."""
        return self._running.publishers.id_token(claims, audience)

    def add_repo(
        self,
        repo_id: str,
        content: Content,
        *,
        private: bool = False,
        gated: bool | str = False,
        message: str | None = None,
        kind: str = "model",
    ) -> str:
        """Seed a repository, or add a commit to one; `content` is a folder or path -> bytes."""
        return seeds.add_repo(
            self._running, repo_id, content, private=private, gated=gated, message=message, kind=kind
        )

    def read(self, repo_id: str, path: str, revision: str = "main", *, kind: str = "model") -> bytes:
        return seeds.read(self._running, repo_id, path, revision, kind)

    def files(
        self, repo_id: str, revision: str = "main", *, kind: str = "model"
    ) -> dict[str, tuple[int, str | None, str]]:
        """Path -> (size, sha256 of an LFS file, git blob id)."""
        return seeds.files(self._running, repo_id, revision, kind)

    def commits(self, repo_id: str, revision: str = "main", *, kind: str = "model") -> list[Commit]:
        """The history of a revision, newest first."""
        return seeds.commits(self._running, repo_id, revision, kind)

    def add_webhook(
        self, url: str, watched: Sequence[str], secret: str | None = None, *, owner: str = seeds.ME
    ) -> str:
        """Have `url` told of pushes to `watched`: models (`org/name`) or whole namespaces (`org`); its id."""
        return seeds.add_webhook(self._running, url, watched, secret, owner)

    # -- what happens to it

    @property
    def deliveries(self) -> list[Delivery]:
        """What webhooks were sent since the start, oldest first."""
        return self._deliveries.sent() if self._deliveries is not None else []

    @property
    def jobs(self) -> list[AskedJob]:
        """Jobs that were asked for, with their secrets, oldest first; none of them runs."""
        return all_jobs(self._running.db)

    @property
    def faults(self) -> Faults:
        return self._running.faults

    @property
    def seen(self) -> list[Seen]:
        """Every request of both origins since the start or the last `forget`."""
        return self._running.traffic.seen()

    def forget(self) -> None:
        self._running.traffic.seen()
        self._running.traffic.forget()


class _Serving:
    """The thread, its loop and the two listeners."""

    def __init__(self, hub: Hub, port: int, cdn_port: int) -> None:
        self._hub = hub
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._hub_sockets = [_listen(socket.AF_INET, "127.0.0.1", port)]
        try:
            self._cdn_sockets = _listen_on_localhost(cdn_port)
        except OSError:
            self._hub_sockets[0].close()
            raise
        hub.endpoint = f"http://127.0.0.1:{self._hub_sockets[0].getsockname()[1]}"
        hub.cdn = f"http://localhost:{self._cdn_sockets[0].getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, name="devhub", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        pool = ThreadPoolExecutor(THREADS, thread_name_prefix="devhub")
        self._loop.set_default_executor(pool)
        try:
            self._loop.run_until_complete(self._serve())
        except Exception as error:
            self._failure = error
        finally:
            self._ready.set()
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    async def _serve(self) -> None:
        runners = []
        for app, sockets in (
            (hub_app(self._hub), self._hub_sockets),
            (cdn_app(self._hub), self._cdn_sockets),
        ):
            runner = web.AppRunner(
                app, access_log=None, read_bufsize=READ_BUFFER, shutdown_timeout=0.2, handle_signals=False
            )
            await runner.setup()
            for listener in sockets:
                await web.SockSite(runner, listener, backlog=256).start()
            runners.append(runner)
        self._ready.set()
        await self._stop.wait()
        for runner in runners:
            await runner.cleanup()


def _listen(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, port))
        listener.listen(256)
    except OSError as error:
        listener.close()
        words = f"the devhub can't listen at `{host}:{port}`: {error.strerror}"
        raise OSError(error.errno, words) from error
    listener.setblocking(False)
    return listener


def _listen_on_localhost(port: int) -> list[socket.socket]:
    """The same port on both loopback addresses: a client may try either for `localhost`."""
    for _ in range(20):
        first = _listen(socket.AF_INET, "127.0.0.1", port)
        try:
            return [first, _listen(socket.AF_INET6, "::1", first.getsockname()[1])]
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return [first]  # this machine has no second loopback address
            first.close()
            if port:
                raise
    raise OSError(errno.EADDRINUSE, "no port is free on both loopback addresses")


def serve(
    root: Path | str,
    port: int = 0,
    cdn_port: int = 0,
    *,
    xet: str = "http",
    ready: Callable[[DevHub], None] | None = None,
) -> None:
    """Serve in the foreground until SIGINT or SIGTERM; `ready` is called once with the running devhub."""
    over = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: over.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        with DevHub(root, xet, port=port, cdn_port=cdn_port) as hub:
            if ready is not None:
                ready(hub)
            while not over.wait(1.0):
                pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
