"""The wiring of a whole run: a reading gets a destination, an outcome becomes card, manifest and commit.

This is the only module that knows the edges and the engine both.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tensorport_hub.core import card, manifest, model_config
from tensorport_hub.core.location import FolderLocation, HubLocation, Location, parse_destination
from tensorport_hub.core.plan import Options
from tensorport_hub.core.schedule import Schedule
from tensorport_hub.core.selection import QUANTIZATION_CONFIGS
from tensorport_hub.core.size import parse_size
from tensorport_hub.core.tiles import demand
from tensorport_hub.edge.hub_client import RepoState
from tensorport_hub.edge.hub_sink import check_destination, open_hub_sink
from tensorport_hub.edge.hub_source import HubSource
from tensorport_hub.edge.hub_xet import STREAM_NBYTES
from tensorport_hub.edge.local import LocalSink, check_folder, parse_folder
from tensorport_hub.edge.retry import retried
from tensorport_hub.engine import Outcome
from tensorport_hub.engine.budget import Allotment, allot
from tensorport_hub.errors import DestinationError, LimitError, UseError
from tensorport_hub.meter import Meter, peak_memory
from tensorport_hub.ports import Published, Sink
from tensorport_hub.reading import Reading, read_seconds, source_location
from tensorport_hub.results import MirrorResult, PlanResult, Stats
from tensorport_hub.survey import read_small

COMMIT_FILES = 1000
"""Files that one commit to the Hub may hold."""

_XET_STREAMS = 4
_PATIENCE = 6
"""An upload's answer may take so many times as long as a read: the other side checks what it got first."""


@dataclass(frozen=True)
class Limits:
    """What a run may use."""

    workers: int
    max_memory: int
    max_disk: int
    transfer: str

    @classmethod
    def of(
        cls,
        workers: int | None,
        max_memory: str | int,
        max_disk: str | int | None,
        transfer: str,
        shard_size: int,
    ) -> Limits:
        if transfer not in ("auto", "xet", "lfs"):
            raise UseError(f"`{transfer}` is no transfer: expected one of `auto`, `xet`, `lfs`")
        if workers is not None and workers < 1:
            raise UseError(f"workers must be at least 1, got {workers}")
        return cls(
            workers or _processors(),
            parse_size(max_memory),
            2 * shard_size if max_disk is None else parse_size(max_disk),
            transfer,
        )


def _processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class Job(Reading):
    """A reading, and where its result goes."""

    def __init__(
        self,
        source: str,
        destination: str | None,
        revision: str | None,
        token: str | None,
        options: Options,
        limits: Limits,
        meter: Meter,
    ) -> None:
        self.limits = limits
        given = parse_destination(destination) if destination is not None else None
        _refuse_same(source_location(source, revision), given)
        super().__init__(source, revision, token, options, meter)
        try:
            self.destination = given or self._default_destination()
            self._there: RepoState | None = None
            if isinstance(self.destination, HubLocation):
                self._there = check_destination(self.client, self.destination.repo_id, meter)
            else:
                check_folder(parse_folder(self.destination.path))
        except BaseException:
            self.source.close()
            raise

    def _default_destination(self) -> Location:
        me = retried(self.client.whoami, self.meter)
        return HubLocation(f"{me}/{self.name.rstrip('/').rpartition('/')[2]}-npy")

    @property
    def destination_name(self) -> str:
        if isinstance(self.destination, HubLocation):
            return self.destination.repo_id
        return str(parse_folder(self.destination.path))

    def check_rights(self, private: bool | None, i_have_rights: bool) -> bool | None:
        """The visibility of the result; None for a folder.

        Raises:
            DestinationError: something closed would be published openly.
        """
        if not isinstance(self.destination, HubLocation):
            return None
        closed = isinstance(self.source, HubSource) and (self.source.private or self.source.gated)
        wanted = closed if private is None else private
        open_ = not (self._there.private if self._there is not None else wanted)
        if closed and open_ and not i_have_rights:
            raise DestinationError(
                f"`{self.name}` is gated or private, `{self.destination_name}` would be open",
                hint="`--private` keeps it closed; `--i-have-rights` if you may publish it",
            )
        self._private = wanted
        return self._there.private if self._there is not None else wanted

    def check_limits(self) -> None:
        """Refuse what can be known to fail before anything is read."""
        if isinstance(self.destination, HubLocation):
            files = len(self.plan.parts) + len(self.survey.carried) + 2
            if files > COMMIT_FILES:
                raise LimitError(
                    f"the mirror has {files} files, more than one commit to the Hub may hold: {COMMIT_FILES}",
                    hint="`--include` and `--exclude` choose tensors; a local folder has no such limit",
                )
            largest = max((part.size for part in self.plan.parts), default=0)
            if self.limits.transfer == "lfs" and largest > self.limits.max_disk:
                raise LimitError(
                    f"the largest part does not fit the staging space: expected at most"
                    f" {self.limits.max_disk} bytes, got {largest}",
                    hint="raise `--max-disk`, or lower `--shard-size`",
                )
        self.allotment(None)

    def allotment(self, sink: Sink | None) -> Allotment:
        """How the memory cap is used, for a sink that is open or (None) the one that will be."""
        streams = isinstance(self.destination, HubLocation) and (
            getattr(sink, "streams", self.limits.transfer != "lfs")
        )
        return allot(
            self.limits.max_memory,
            workers=min(self.limits.workers, _XET_STREAMS) if streams else self.limits.workers,
            files=len(self.plan.files),
            writer_nbytes=STREAM_NBYTES if streams else 2 << 20,
            demand=demand(self.plan),
        )

    def preview(self, private: bool | None) -> PlanResult:
        plan, allotment = self.plan, self.allotment(None)
        schedule = self._schedule(allotment)
        exists = self._there is not None
        largest = max((part.size for part in plan.parts), default=0)
        lfs = isinstance(self.destination, HubLocation) and self.limits.transfer == "lfs"
        return PlanResult(
            plan,
            self.name,
            self.destination_name,
            exists,
            private,
            len(plan.files),
            schedule.bytes_read(),
            schedule.bytes_again(),
            len(plan.recipes),
            plan.parameters,
            len(plan.parts),
            plan.shards,
            plan.bytes_out,
            self.limits.max_memory,
            min(self.limits.max_disk, allotment.workers * largest) if lfs else 0,
            tuple(self.meter.warnings),
        )

    def _schedule(self, allotment: Allotment) -> Schedule:
        return Schedule(self.plan, block=allotment.block, keep=allotment.keep, room=allotment.room)

    def bytes_in(self) -> int:
        """Source bytes that a run reads."""
        return self._schedule(self.allotment(None)).bytes_read()

    def open_sink(self, private: bool | None, message: str | None) -> Sink:
        """The sink; a missing repository is created here."""
        if isinstance(self.destination, FolderLocation):
            return LocalSink(parse_folder(self.destination.path), key=self.plan.fingerprint[:12])
        allotment = self.allotment(None)
        return open_hub_sink(
            self.client,
            self.destination.repo_id,
            private=self._private,
            transfer=self.limits.transfer,
            writers=allotment.workers,
            max_disk=self.limits.max_disk,
            message=message or f"Mirror {self.plan.repo or 'a local checkpoint'} at {self.plan.commit[:12]}",
            read_seconds=_PATIENCE * read_seconds(),
            report=self.meter,
        )

    def publish(self, sink: Sink, outcome: Outcome) -> tuple[Published, bytes]:
        """Carried files, card and manifest, then the commit."""
        small = [
            manifest.small_entry(path, data, sink.put(path, data).sha256)
            for path, data in self._small(outcome)
        ]
        weights = [manifest.weight_entry(r.path, r.size, r.sha256) for r in outcome.receipts]
        decoded = self.plan.decodes
        built = manifest.build(
            self.plan,
            weights=weights,
            small=small,
            digests=outcome.digests,
            losses=outcome.losses,
            original_config=self.survey.config_text if decoded else None,
        )
        sink.put(manifest.PATH, built)
        return sink.commit(outcome.receipts), built

    def _small(self, outcome: Outcome) -> list[tuple[str, bytes]]:
        decoded = self.plan.decodes
        files: dict[str, bytes] = {}
        for carried in self.survey.carried:
            if decoded and carried.path in QUANTIZATION_CONFIGS:
                continue
            files[carried.path] = read_small(self.source, carried.file)
        if decoded and model_config.PATH in files:
            files[model_config.PATH] = model_config.without_quantization(self.survey.config)
        files[card.PATH] = card.build(self.plan, source_card=self.survey.card, losses=outcome.losses)
        return sorted(files.items())

    def result(self, published: Published, built: bytes, outcome: Outcome, seconds: float) -> MirrorResult:
        meter = self.meter
        losses: Mapping[str, tuple[int, int]] = {
            self.plan.recipes[i].name: (lost.overflow, lost.underflow) for i, lost in outcome.losses.items()
        }
        parsed: dict[str, Any] = manifest.parse(built)
        return MirrorResult(
            published.location,
            published.commit,
            published.url,
            None,
            parsed,
            losses,
            tuple(meter.warnings),
            Stats(
                len(self.plan.recipes),
                self.plan.parameters,
                len(self.plan.parts),
                meter.bytes_read,
                meter.bytes_written,
                self.plan.bytes_out,
                meter.retries,
                meter.verified,
                round(seconds, 3),
                peak_memory(),
            ),
            published.changed,
        )


def _refuse_same(source: Location, destination: Location | None) -> None:
    same = False
    if isinstance(source, HubLocation) and isinstance(destination, HubLocation):
        same = source.repo_id.lower() == destination.repo_id.lower()
    elif isinstance(source, FolderLocation) and isinstance(destination, FolderLocation):
        here, there = parse_folder(source.path).resolve(), parse_folder(destination.path).resolve()
        same = here == there or here in there.parents or there in here.parents
    if same:
        raise UseError("destination and source are the same", hint="choose another name for the mirror")
