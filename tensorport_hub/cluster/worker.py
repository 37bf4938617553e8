"""What runs in a Dask worker's process: it is mustered, it works, it is dismissed.

Dask loads this module in the worker's event loop, before the version is known; so it imports nothing that
takes long, or that another version might lack. All else is loaded in a thread.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
from typing import TYPE_CHECKING

from tensorport_hub import __version__
from tensorport_hub.errors import DestinationError, TensorportError, UseError

if TYPE_CHECKING:
    from tensorport_hub.cluster.brief import Assignment, Brief, Ended, Told
    from tensorport_hub.cluster.workplace import Workplace

_PLACES: dict[str, Workplace] = {}
"""What the runs that this process was mustered for have here: tasks know nothing but a run's name."""

_LOCK = threading.Lock()


class Secret:
    """A token on its way to a worker; nothing that prints it shows it."""

    def __init__(self, token: str | None) -> None:
        self.token = token

    def __repr__(self) -> str:
        return "Secret()"


def other_version(expected: str) -> UseError:
    """What this process says to a coordinator of another version: equal bytes are promised of equal ones."""
    return UseError(
        f"it has tensorport-hub {__version__}: expected {expected}, as the coordinator has",
        hint="start it with the same version",
    )


class Unknown(DestinationError):
    """This process was not mustered: it is another one than the coordinator thinks."""


async def muster(version: str, token: Secret, brief: bytes) -> TensorportError | None:
    """Make a place for a run in this worker; why there can be none."""
    return await asyncio.to_thread(_muster, version, token, brief)


def _muster(version: str, token: Secret, packed: bytes) -> TensorportError | None:
    if version != __version__:
        return other_version(version)
    from tensorport_hub.cluster.brief import bare
    from tensorport_hub.cluster.workplace import Workplace

    brief: Brief = pickle.loads(packed)
    try:
        place = Workplace(brief, token.token)
    except TensorportError as error:
        return bare(error)
    with _LOCK:
        _PLACES[brief.run] = place
    return None


async def dismiss(run: str) -> None:
    """A run has ended, or must."""
    await asyncio.to_thread(_leave, run)


def _leave(run: str) -> None:
    with _LOCK:
        place = _PLACES.pop(run, None)
    if place is not None:
        place.close()


def work_for(run: str, assignment: Assignment) -> Ended:
    """The task: a share, in a process that was mustered."""
    from distributed import get_worker

    from tensorport_hub.cluster.brief import bare
    from tensorport_hub.cluster.workplace import Dismissed

    worker = get_worker()
    with _LOCK:
        place = _PLACES.get(run)
    if place is None:
        raise Unknown("the worker was started anew")
    key = worker.get_current_task()

    def tell(told: Told) -> None:
        worker.log_event(run, pickle.dumps(told))

    def wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state != "cancelled"

    try:
        return place.carry_out(assignment, tell, wanted)
    except Exception as error:
        failure = bare(error)
    if isinstance(failure, Dismissed):
        _leave(run)
    raise failure
