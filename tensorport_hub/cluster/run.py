"""The wiring of a run that is shared out: a job and a cluster make a crew, a crew makes an outcome."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tensorport_hub.cluster.brief import Brief
from tensorport_hub.cluster.crew import Crew, ExecutorCrew
from tensorport_hub.cluster.dask import DaskCrew, check_address
from tensorport_hub.cluster.dispatch import Dispatch
from tensorport_hub.cluster.worker import Secret
from tensorport_hub.core.location import HubLocation, parse_destination
from tensorport_hub.core.progress import Progress, remaining
from tensorport_hub.core.shares import share_out
from tensorport_hub.destination import Opened
from tensorport_hub.edge.hub_windows import windows
from tensorport_hub.engine import Outcome
from tensorport_hub.engine.ledger import Ledger
from tensorport_hub.errors import UseError
from tensorport_hub.job import Job
from tensorport_hub.reading import read_seconds

if TYPE_CHECKING:
    from distributed import Client

    Cluster = str | Executor | Client
    """Where workers are: the address of a Dask scheduler, `local:N`, an executor, or a Dask client."""


def check_cluster(cluster: Cluster, destination: str | None) -> None:
    """Refuse what can't be, before anything is asked of anybody.

    Raises:
        UseError: no cluster, or a destination that workers can't send to.
    """
    if isinstance(cluster, str):
        check_address(cluster)
    elif not isinstance(cluster, Executor) and not hasattr(cluster, "subscribe_topic"):
        raise UseError(
            f"{type(cluster).__name__} is no cluster: expected an address, an executor or a client"
        )
    if destination is not None and not isinstance(parse_destination(destination), HubLocation):
        raise UseError(
            f"`{destination}` is not on the Hub: workers of a cluster send to a repository there",
            hint="leave out `--cluster`, or name `org/model`",
        )


@contextmanager
def crew_of(cluster: Cluster, job: Job) -> Iterator[Crew]:
    """The workers for a job; fit, as far as that can be known beforehand.

    Raises:
        TensorportError: they can't be had.
    """
    crew = _crew_of(cluster, Brief.of(job), job)
    try:
        yield crew
    finally:
        crew.close()


def _crew_of(cluster: Cluster, brief: Brief, job: Job) -> Crew:
    if isinstance(cluster, Executor):
        shares = share_out(job.plan, remaining(job.plan, job.destination.inherited))
        return ExecutorCrew(cluster, brief, shares=len(shares))
    name = f"mirror-{job.plan.fingerprint[:8]}"
    return DaskCrew(cluster, brief, Secret(job.client.token), name, job.meter)


def run_shared(job: Job, opened: Opened, inherited: Progress, crew: Crew) -> Outcome:
    """As `engine.run`, by the workers of a crew.

    Raises:
        TensorportError: the first fault that no other worker could mend.
    """
    ledger = Ledger(job.plan, opened.sink, opened.journal, inherited)
    ledger.tell(job.meter)
    known = windows(job.client, job.plan.repo or job.destination.name, read_seconds=read_seconds())
    Dispatch(job.plan, ledger, crew, known, job.meter).run()
    return ledger.outcome()
