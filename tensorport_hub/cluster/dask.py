"""The workers of a Dask cluster, each known by its address.

A worker that is new is *mustered* before it gets anything: by `Client.run`, which belongs to no task and is
kept nowhere, it gets the brief, and the coordinator's token in case that it has none; it looks whether it has
the same version, the source and a token. So plan and token travel once a worker, late joiners' too, and
neither is in a task, a key, a log, or the scheduler's memory. (A `WorkerPlugin` with the token would stay
with the scheduler, and be given to every worker that joins, whoever it belongs to.)

A share is a task with a readable key, bound to its worker: so a process has one at a time, and where a worker
dies, Dask's own retry, which does not know what is finished by now, does not set in. News come as events of
the topic that is named like the run (`Worker.log_event`, `Client.subscribe_topic`).
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import queue
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

from tensorport_hub import __version__
from tensorport_hub.cluster.brief import Assignment, Brief, Ended, Told
from tensorport_hub.cluster.crew import Failed, Lost, News
from tensorport_hub.cluster.worker import Secret, Unknown, dismiss, muster, work_for
from tensorport_hub.errors import DestinationError, TensorportError, UseError, gather
from tensorport_hub.ports import Report, Warned

if TYPE_CHECKING:
    from distributed import Client, Future

_CONNECT_SECONDS = 20
_LOOK_SECONDS = 1.0
"""How often the list of workers is looked at."""
_RESULT_SECONDS = 30
_LOCAL = re.compile(r"local:([1-9]\d{0,3})")
_REMOTE = re.compile(r"(tcp|tls)://\S+")


def check_address(text: str) -> None:
    """Refuse what is no cluster.

    Raises:
        UseError: the address is malformed, or Dask is not installed.
    """
    if not _LOCAL.fullmatch(text) and not _REMOTE.fullmatch(text):
        raise UseError(f"`{text}` is no cluster: expected `tcp://host:port`, `tls://host:port` or `local:N`")
    try:
        import distributed  # noqa: F401 (only whether it is there)
    except ImportError:
        raise UseError(
            "`--cluster` needs Dask", hint="`pip install '.[cluster]'` in a clone of tensorport-hub"
        ) from None


def hush() -> None:
    """For programs that say themselves what is wrong: Dask logs with tracebacks that a scheduler is lost."""
    with suppress(ImportError):
        import distributed  # noqa: F401 (it sets levels when it is loaded)
    for name in ("distributed", "distributed.client", "distributed.gc", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class DaskCrew:
    """The workers of a Dask cluster. Those that are there when it is opened must all be fit.

    Args:
        address: of the scheduler, `local:N` for a cluster of its own on this machine, or a client.
        token: the coordinator's, for workers that have none.
        name: of the tasks, before the share's.

    Raises:
        DestinationError: the scheduler can't be reached.
        TensorportError: a worker is not fit, all that are not are named.
    """

    def __init__(self, address: str | Client, brief: Brief, token: Secret, name: str, report: Report) -> None:
        self._brief, self._token, self._name, self._report = brief, token, name, report
        self._fit: set[str] = set()
        self._unfit: set[str] = set()
        self._running: dict[str, tuple[int, Future[Ended]]] = {}
        self._told: queue.SimpleQueue[Told] = queue.SimpleQueue()
        self._looked = 0.0
        with ExitStack() as opened:
            self._client: Client = _connect(address, opened) if isinstance(address, str) else address
            opened.callback(self._dismiss)
            self._client.subscribe_topic(brief.run, self._hear)
            opened.callback(self._client.unsubscribe_topic, brief.run)
            problems = self._muster(self._workers())
            if problems:
                raise _refused(problems)
            self._opened = opened.pop_all()

    def _hear(self, event: tuple[float, Any]) -> None:
        """In the client's own thread."""
        self._told.put(pickle.loads(event[1]))

    def _workers(self) -> list[str]:
        """Addresses of all workers.

        Raises:
            DestinationError: the scheduler is lost.
        """
        self._looked = monotonic()
        with _reaching():
            if self._client.status != "running":
                raise ConnectionError(self._client.status)
            return [*self._client.nthreads()]

    def _muster(self, workers: Sequence[str]) -> dict[str, TensorportError]:
        """Make new workers fit; those that can't be, and why."""
        if not workers:
            return {}
        packed = pickle.dumps(self._brief)
        with _reaching():
            answers = self._client.run(
                muster, __version__, self._token, packed, workers=[*workers], on_error="return"
            )
        problems = {}
        for worker, answer in answers.items():
            if isinstance(answer, OSError):
                continue  # it has gone meanwhile, or will be asked again
            if answer is None:
                self._fit.add(worker)
                continue
            self._unfit.add(worker)
            problems[worker] = answer if isinstance(answer, TensorportError) else _strange(answer)
        return problems

    @property
    def workers(self) -> frozenset[str]:
        return frozenset(self._fit)

    def free(self) -> Sequence[str]:
        return sorted(self._fit - self._running.keys())

    def give(self, worker: str, assignment: Assignment) -> None:
        key = f"{self._name}-{assignment.name}-{self._brief.run[:6]}-{assignment.number}"
        with _reaching():
            future = self._client.submit(work_for, self._brief.run, assignment, key=key, workers=[worker])
        self._running[worker] = assignment.number, future

    def news(self, seconds: float) -> Sequence[News]:
        found: list[News] = []
        with suppress(queue.Empty):
            found.append(self._told.get(timeout=seconds))
            while True:
                found.append(self._told.get_nowait())
        found += self._ended()
        if monotonic() - self._looked >= _LOOK_SECONDS:
            found += self._look()
        return found

    def _ended(self) -> list[News]:
        done = [worker for worker, (_, future) in self._running.items() if future.status != "pending"]
        return [self._of(worker, *self._running.pop(worker)) for worker in done]

    def _of(self, worker: str, number: int, future: Future[Ended]) -> News:
        from distributed import KilledWorker

        with _reaching():
            if future.status == "cancelled":
                raise ConnectionError("tasks were cancelled")
        try:
            return future.result(timeout=_RESULT_SECONDS)
        except asyncio.CancelledError:
            self._workers()  # raises, if it is the scheduler that went
            return Lost(number, worker)
        except (OSError, KilledWorker, Unknown):  # its result went with it
            self._fit.discard(worker)
            return Lost(number, worker)
        except Exception as error:
            return Failed(number, worker, error)

    def _look(self) -> list[News]:
        """See who went away, and who is new."""
        there = {*self._workers()}
        gone = self._running.keys() - there
        lost: list[News] = []
        for worker in gone:
            number, future = self._running.pop(worker)
            future.cancel()
            lost.append(Lost(number, worker))
        self._fit &= there
        self._unfit &= there
        for worker, error in self._muster(sorted(there - self._fit - self._unfit)).items():
            self._report(Warned(f"worker {worker} gets nothing: {error.message}"))
        return lost

    def _dismiss(self) -> None:
        with suppress(Exception, asyncio.CancelledError):
            if self._client.status == "running":
                self._client.run(dismiss, self._brief.run, on_error="ignore")

    def close(self) -> None:
        for _, future in self._running.values():
            with suppress(Exception):
                future.cancel()
        with suppress(Exception):
            self._opened.close()


@contextmanager
def _reaching() -> Iterator[None]:
    """Calls of the scheduler: whatever they raise, it can't be reached any more.

    Raises:
        DestinationError: that.
    """
    try:
        yield
    except (Exception, asyncio.CancelledError) as error:
        raise DestinationError(
            f"the connection to the scheduler was lost: {error or type(error).__name__}",
            hint="once it is back, the same command continues",
        ) from error


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Processes that are begun here do not hear the terminal's Ctrl-C: they end when we end them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _connect(address: str, opened: ExitStack) -> Client:
    """A client of its own, closed with all else, as is the cluster where it is our own."""
    from distributed import Client, LocalCluster

    local = _LOCAL.fullmatch(address)
    target: Any = address
    if local is not None:
        with _uninterrupted():
            cluster = LocalCluster(
                n_workers=int(local.group(1)),
                threads_per_worker=1,
                memory_limit=0,
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.ERROR,
            )
        target = opened.enter_context(cluster)
    try:
        client: Client = opened.enter_context(Client(target, timeout=_CONNECT_SECONDS, set_as_default=False))
    except (OSError, ValueError, RuntimeError) as error:
        raise DestinationError(f"no scheduler answers at `{address}`: {error}") from None
    return client


def _refused(problems: dict[str, TensorportError]) -> TensorportError:
    """All that is wrong with workers, as the first one's kind of error."""
    first = next(iter(problems.values()))
    told = [f"worker {worker}: {error.message}" for worker, error in problems.items()]
    return gather(type(first), told, hint=first.hint)


def _strange(answer: object) -> TensorportError:
    """What a worker answers that does not even know this module; Dask may wrap what it raised."""
    if re.search(r"\b(ModuleNotFound|Import|Attribute)Error\b", repr(answer)):
        return UseError(
            f"it has no tensorport-hub {__version__}: {answer}", hint="start it with the same version"
        )
    return DestinationError(f"it can't be used: {type(answer).__name__}: {answer}")
