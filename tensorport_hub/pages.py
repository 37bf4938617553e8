"""The pages that a verb leaves behind where it is asked for a report."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from tensorport_hub.core.plan import Options
from tensorport_hub.destination import FolderDestination
from tensorport_hub.edge.page import Page
from tensorport_hub.errors import UseError
from tensorport_hub.job import Job
from tensorport_hub.ports import Warned
from tensorport_hub.reading import Reading
from tensorport_hub.report.facts import of_inspection, of_mirror
from tensorport_hub.report.page import build
from tensorport_hub.results import Inspection, MirrorResult


def refuse_inside(page: Page, job: Job) -> None:
    """Refuse a page inside of the mirror, whose folder holds the mirror alone."""
    if isinstance(job.destination, FolderDestination):
        page.refuse_inside(Path(job.destination.name))


def write_mirror(page: Page, result: MirrorResult, job: Job) -> None:
    """The page about a mirror. It is published by now: what goes wrong here is no failure of it."""
    moments, defaults = job.meter.moments(), asdict(Options())
    facts = of_mirror(result, endpoint=job.endpoint, moments=moments, defaults=defaults)
    try:
        page.write(build(facts))
    except OSError as error:
        job.meter(Warned(f"the report `{page.path}` could not be written: {error.strerror or error}"))


def write_inspection(page: Page, seen: Inspection, reading: Reading) -> None:
    """The page about a source.

    Raises:
        UseError: it can't be written.
    """
    facts = of_inspection(seen, repo=reading.plan.repo, endpoint=reading.endpoint)
    try:
        page.write(build(facts))
    except OSError as error:
        raise UseError(f"the report `{page.path}` could not be written: {error.strerror or error}") from None
