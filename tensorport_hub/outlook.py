"""The forecast of a job: what its plan, its destination and, if asked for, a measurement say together."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from tensorport_hub import probe
from tensorport_hub.core import forecast
from tensorport_hub.core.forecast import Forecast, Rate, Window
from tensorport_hub.core.location import HubLocation
from tensorport_hub.core.size import parse_size
from tensorport_hub.destination import Publication
from tensorport_hub.edge.hub_windows import windows
from tensorport_hub.errors import LimitError, UseError, gather
from tensorport_hub.hub_destination import HubDestination
from tensorport_hub.job import Job
from tensorport_hub.reading import read_seconds
from tensorport_hub.results import PlanResult


def parse_rate(given: str | float | None) -> int | None:
    """Bytes a second, written as a size, with or without `/s`.

    Raises:
        UseError: it is no size, or 0.
    """
    if given is None:
        return None
    rate = parse_size(given.removesuffix("/s") if isinstance(given, str) else given, forgotten="MB/s")
    if rate == 0:
        raise UseError("at a rate of 0 no run ends")
    return rate


def outlook(
    job: Job, publication: Publication, *, rate: int | None, measure: bool, strict: bool
) -> PlanResult:
    """What a run of this job would do, and what is to be expected of it.

    Args:
        rate: bytes a second that the user states.
        measure: read some of the source to know the rate.
        strict: refuse what would be warned of.
    """
    result = job.preview()
    found = _rate(job, rate, measure=measure)
    result = replace(result, forecast=_forecast(job, publication, result, found))
    if strict:
        _refuse(result)
    return result


def _forecast(job: Job, publication: Publication, result: PlanResult, rate: Rate | None) -> Forecast:
    paths = job.paths
    small = len(paths) - len(job.plan.outputs)
    largest = max((file.size for file in job.plan.outputs), default=0)
    requests = Counter[str](api=0, resolvers=0, commits=0)
    from_hub = isinstance(job.location, HubLocation)
    to_hub = isinstance(job.destination, HubDestination)
    if from_hub:
        requests.update(forecast.source_requests(len(job.plan.files), len(job.survey.carried)))
        requests["api"] += job.by_xet  # its token
    if to_hub and not result.standing:
        requests.update(
            forecast.destination_requests(
                parts=result.parts - result.parts_kept,
                small=small,
                checkpoints=result.checkpoints,
                pull=publication.create_pr,
                lfs=publication.transfer == "lfs",
            )
        )
    known: tuple[Window, ...] = ()
    if from_hub or (to_hub and job.destination.exists):
        known = windows(
            job.client, job.name if from_hub else job.destination.name, read_seconds=read_seconds()
        )
    waits = forecast.waits(requests, known)
    bytes_in, bytes_out = (
        (0, 0) if result.standing else (result.bytes_in, result.bytes_out - result.bytes_kept)
    )
    return Forecast(
        len(paths),
        forecast.limits(paths, largest) if to_hub else (),
        dict(requests),
        known,
        waits,
        rate,
        None if rate is None else forecast.seconds(rate, bytes_in=bytes_in, bytes_out=bytes_out, waits=waits),
    )


def _rate(job: Job, stated: int | None, *, measure: bool) -> Rate | None:
    if stated is not None:
        return Rate(stated, stated, "as stated")
    return probe.measured(job.source, job.plan.files, job.limits.workers) if measure else None


def _refuse(result: PlanResult) -> None:
    """`--strict`: what is only warned of is an error.

    Raises:
        LimitError: the plan has warnings, or a limit that is only recommended is crossed.
    """
    found = result.forecast
    problems = list(result.warnings) + [
        f"{limit.what}: expected at most {limit.most:,}, got {limit.value:,}"
        for limit in (found.limits if found is not None else ())
        if limit.crossed
    ]
    if problems:
        raise gather(LimitError, problems, hint="without `--strict` these are warnings")
