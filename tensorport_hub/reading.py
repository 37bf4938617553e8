"""A source and the plan that its headers make: everything that happens before there is a destination."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from types import TracebackType
from typing import Self

from tensorport_hub.core import manifest
from tensorport_hub.core.experts import stack_experts
from tensorport_hub.core.layout import lay_out
from tensorport_hub.core.location import FolderLocation, HubLocation, Location, parse_source
from tensorport_hub.core.plan import Options, Plan
from tensorport_hub.core.recipe import recipes
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.edge.hub_source import HubSource
from tensorport_hub.edge.local import LocalSource, parse_folder
from tensorport_hub.edge.retry import retried
from tensorport_hub.errors import SourceError, UseError
from tensorport_hub.meter import Meter
from tensorport_hub.ports import Source
from tensorport_hub.results import Inspection, TensorInfo
from tensorport_hub.survey import Survey, survey
from tensorport_hub.texts import read_beginning

_LOOKED_AT = 1 << 20
"""Bytes of a manifest in which it says whose it is."""


def read_seconds() -> float:
    """How long a silent server is waited for, by the variable that every Hub tool reads."""
    try:
        return float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT", ""))
    except ValueError:
        return 10.0


def source_location(text: str, revision: str | None) -> Location:
    """What SRC and `--revision` name together.

    Raises:
        UseError: they contradict each other, or SRC names nothing.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "")
    location = parse_source(text, is_folder=os.path.isdir(os.path.expanduser(text)), endpoint=endpoint)
    if revision is None:
        return location
    if isinstance(location, FolderLocation):
        raise UseError(f"folder `{text}` has no revision `{revision}`")
    if location.revision not in (None, revision):
        raise UseError(f"`{text}` names revision `{location.revision}`, `--revision` names `{revision}`")
    return HubLocation(location.repo_id, revision, location.subfolder)


def model_folder(location: Location, subfolder: str | None) -> str | None:
    """The folder that SRC and `--subfolder` name together; None for the top level.

    Raises:
        UseError: they contradict each other.
    """
    named = location.subfolder if isinstance(location, HubLocation) else None
    given = subfolder.strip("/") if subfolder else None
    if named and given and named != given:
        raise UseError(f"the source names subfolder `{named}`, `--subfolder` names `{given}`")
    return given or named


@contextmanager
def _uncollected() -> Iterator[None]:
    """Let Python's collector rest: a plan is a million small objects and no circle, and it would walk all of
    them again and again, for more than half of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Reading:
    """A source and the plan that its headers make."""

    def __init__(
        self,
        source: str | Location,
        revision: str | None,
        token: str | None,
        options: Options,
        meter: Meter,
        *,
        by_xet: bool = False,
    ) -> None:
        self.options, self.meter, self.token, self.by_xet = options, meter, token, by_xet
        self.location = source_location(source, revision) if isinstance(source, str) else source
        subfolder = model_folder(self.location, options.subfolder)
        self.options = Options(**{**vars(options), "subfolder": subfolder})
        self.source = self._open()
        try:
            self._refuse_mirrors()
            with _uncollected():
                self.survey = survey(
                    self.source,
                    subfolder=subfolder,
                    allow_patterns=options.allow_patterns,
                    include=options.include,
                    exclude=options.exclude,
                    report=meter,
                )
                self.plan = self._plan(self.survey)
        except BaseException:
            self.source.close()
            raise

    @property
    def name(self) -> str:
        """The source for people."""
        if isinstance(self.location, HubLocation):
            return self.location.repo_id
        return self.location.path

    @property
    def folder(self) -> str | None:
        """The absolute path of a source that is one."""
        return str(parse_folder(self.location.path)) if isinstance(self.location, FolderLocation) else None

    @property
    def endpoint(self) -> str:
        """The Hub that the source is on; "" for a folder."""
        return self.client.endpoint if isinstance(self.location, HubLocation) else ""

    @cached_property
    def client(self) -> HubClient:
        return HubClient(token=self.token)

    def _open(self) -> Source:
        if isinstance(self.location, FolderLocation):
            if self.by_xet:
                raise UseError("`--read xet` is of the Hub, this source is a folder")
            return LocalSource(parse_folder(self.location.path))
        location = self.location
        state = retried(
            lambda: self.client.repo_state(location.repo_id, location.revision, SourceError), self.meter
        )
        return HubSource(self.client, state, read_seconds=read_seconds(), report=self.meter, xet=self.by_xet)

    def _refuse_mirrors(self) -> None:
        paths = {file.path: file for file in self.source.files}
        if manifest.PATH in paths and manifest.begins_mirror(
            read_beginning(self.source, paths[manifest.PATH], _LOOKED_AT)
        ):
            raise UseError(
                f"`{self.name}` is a mirror made by this tool already", hint=self._hint_of_mirrors()
            )

    def _hint_of_mirrors(self) -> str:
        """What to do with a source that is a mirror."""
        return f"`tensorport-hub verify {self.name}` checks it"

    def _plan(self, seen: Survey) -> Plan:
        options = self.options
        found = recipes(seen.checkpoint, precision=options.precision, quantized=options.quantized)
        made = stack_experts(found.made, seen.config) if options.experts == "stacked" else found.made
        return Plan(
            seen.repo,
            seen.revision,
            seen.files,
            made,
            lay_out(made, shard_size=options.shard_size, formats=options.formats),
            self.options,
            {**seen.skipped, **found.left_out},
            seen.partial,
            found.packed,
        )

    def inspection(self) -> Inspection:
        tensors = tuple(
            TensorInfo(
                name=recipe.name,
                scheme=recipe.decoder.scheme,
                stored_dtype=recipe.decoder.inputs[0].dtype.name,
                dtype=recipe.dtype.name,
                shape=recipe.shape,
                parameters=recipe.parameters,
                stored_nbytes=sum(tensor.nbytes for tensor in recipe.decoder.inputs),
                nbytes=self.plan.nbytes_of[i],
            )
            for i, recipe in enumerate(self.plan.recipes)
        )
        return Inspection(
            source=self.name,
            revision=self.plan.commit,
            files=len(self.plan.files),
            nbytes=sum(file.size for file in self.plan.files),
            parameters=self.plan.parameters,
            schemes=dict(Counter(tensor.scheme for tensor in tensors)),
            tensors=tensors,
            skipped=self.plan.skipped,
            warnings=tuple(self.meter.warnings),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back what is held."""
        self.source.close()
