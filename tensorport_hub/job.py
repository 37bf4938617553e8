"""The wiring of a whole run: a reading gets a destination, an outcome becomes card, manifest and commit.

`audit` wires verification in the same way, `cluster.workplace` a worker, `checkpoint` reading.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial

from tensorport_hub.contents import carry, held_nbytes, large_files, small_files, small_paths, whole_manifest
from tensorport_hub.core import manifest
from tensorport_hub.core.card_snippets import PICKLE_WARNING
from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.encode.jax_pickle import JAX_PICKLE
from tensorport_hub.core.location import (
    FolderLocation,
    GitLocation,
    HubLocation,
    Location,
    parse_destination,
)
from tensorport_hub.core.manifest import FileEntry
from tensorport_hub.core.mirror import Mirror
from tensorport_hub.core.plan import Options
from tensorport_hub.core.progress import remaining
from tensorport_hub.core.schedule import Schedule
from tensorport_hub.core.shares import share_out
from tensorport_hub.core.tensor import shorten
from tensorport_hub.destination import Destination, FolderDestination, Opened, Publication
from tensorport_hub.edge.git import require_git
from tensorport_hub.edge.hub_source import HubSource
from tensorport_hub.edge.local import parse_folder
from tensorport_hub.edge.retry import retried
from tensorport_hub.engine import Outcome
from tensorport_hub.engine.budget import Allotment
from tensorport_hub.errors import LimitError, UseError, gather
from tensorport_hub.git_destination import GitDestination
from tensorport_hub.hub_destination import HubDestination
from tensorport_hub.limits import Limits
from tensorport_hub.meter import Meter, peak_memory
from tensorport_hub.ports import Published, Receipt, Sink, Warned
from tensorport_hub.reading import Reading, read_seconds, source_location
from tensorport_hub.results import MirrorResult, PlanResult, Stats

_COMMIT_TIMES = 5
"""How often a commit holds a small file: as it is, and as base64 entry by entry and as one text."""


@dataclass(frozen=True)
class Made:
    """What a run publishes, or finds published: the manifest's bytes, and what rounding cost each tensor."""

    manifest: bytes
    losses: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, mirror: Mirror) -> Made:
        return cls(manifest.text(mirror.text), mirror.losses)


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
        publication: Publication,
        meter: Meter,
        *,
        by_xet: bool,
    ) -> None:
        self.limits, self.publication = limits, publication
        given = parse_destination(destination) if destination is not None else None
        refuse_same(source_location(source, revision), given)
        if isinstance(given, GitLocation):
            require_git()
        super().__init__(source, revision, token, options, meter, by_xet=by_xet)
        with ExitStack() as undo:
            undo.callback(self.source.close)
            self.destination = self._destination(given or self._default_destination())
            undo.callback(self.destination.close)
            self._refuse_large_files()
            paths = [file.path for file in self.plan.outputs]
            self.paths = [*paths, *small_paths(self.plan, self.survey)]
            self.destination.check(self.plan, self.key, self.paths)
            self.allotment()
            if JAX_PICKLE.name in options.formats:
                meter(Warned(PICKLE_WARNING))
            undo.pop_all()

    def close(self) -> None:
        super().close()
        self.destination.close()

    def _hint_of_mirrors(self) -> str:
        return "mirror the model it was made from"

    def _refuse_large_files(self) -> None:
        """What no format cuts may be larger than a shard only if that was asked for."""
        most = self.plan.options.shard_size
        problems = [
            f"`{shorten(self.plan.recipes[file.pieces[0].recipe].name)}` alone fills `{file.path}`, which no"
            f" reader could join if it were cut: expected at most {most} bytes, got {file.size}"
            for file in self.plan.outputs
            if file.size > most
        ]
        if problems and not self.limits.large_shards:
            raise gather(LimitError, problems, hint="`--allow-large-shards`, or a larger `--shard-size`")

    def _default_destination(self) -> Location:
        me = retried(self.client.whoami, self.meter)
        return HubLocation(default_name(me, self.folder or self.name))

    def _destination(self, location: Location | GitLocation) -> Destination:
        closed = isinstance(self.source, HubSource) and (self.source.private or self.source.gated)
        if isinstance(location, GitLocation):
            return GitDestination(
                location.url, self.publication, source=self.name, closed=closed, report=self.meter
            )
        if self.publication.author is not None:
            raise UseError("`--author` is of a git remote's commits, this destination is none")
        if isinstance(location, FolderLocation):
            return FolderDestination(parse_folder(location.path), self.publication)
        return HubDestination(
            self.client,
            location.repo_id,
            self.publication,
            source=self.name,
            closed=closed,
            read_seconds=read_seconds(),
            report=self.meter,
        )

    def allotment(self) -> Allotment:
        """How the memory cap is used.

        Raises:
            LimitError: it is too small.
        """
        times = 1 if isinstance(self.destination, FolderDestination) else _COMMIT_TIMES
        texts = times * held_nbytes(self.plan, self.survey)
        return self.limits.allot(
            self.plan, streams=self.destination.streams, by_xet=self.by_xet, texts_nbytes=texts
        )

    @cached_property
    def schedule(self) -> Schedule:
        """How a run that resumes nothing reads the source."""
        allotment = self.allotment()
        left = remaining(self.plan, self.destination.inherited)
        return Schedule(self.plan, left, block=allotment.block, keep=allotment.keep, room=allotment.room)

    def preview(self) -> PlanResult:
        """What a run would do."""
        plan, allotment, destination = self.plan, self.allotment(), self.destination
        shares = share_out(plan, remaining(plan, destination.inherited))
        staged = allotment.workers * plan.bytes_at_once
        return PlanResult(
            plan=plan,
            source=self.name,
            destination=destination.name,
            exists=destination.exists,
            private=destination.private,
            standing=destination.standing(plan, self.key) is not None,
            checkpoints=destination.checkpoints(plan),
            files_in=len(plan.files),
            bytes_in=self.schedule.bytes_read(),
            bytes_again=self.schedule.bytes_again(),
            tensors=len(plan.recipes),
            parameters=plan.parameters,
            parts=len(plan.outputs),
            parts_kept=len(destination.inherited.made),
            shards=plan.shards,
            bytes_out=plan.bytes_out,
            bytes_kept=sum(made.size for made in destination.inherited.made.values()),
            memory=self.limits.max_memory,
            disk=min(self.publication.max_disk, staged) if destination.stages else 0,
            shares=len(shares) if isinstance(destination, HubDestination) else 0,
            largest_share=max((share.nbytes for share in shares), default=0),
            warnings=tuple(self.meter.warnings),
        )

    @cached_property
    def key(self) -> str:
        """Names the plan, and the state of a source that has no commit: 64 hex digits."""
        fingerprint, stamp = self.plan.fingerprint, self.source.stamp
        return hashlib.sha256(f"{fingerprint}{stamp}".encode()).hexdigest() if stamp else fingerprint

    def standing(self) -> tuple[Made, Published] | None:
        """What the destination holds, where a run would make the same."""
        there = None if self.publication.restart else self.destination.standing(self.plan, self.key)
        return None if there is None else (Made.of(there[0]), there[1])

    def open(self) -> Opened:
        """The sink and the journal; a missing repository is created here."""
        plan, allotment = self.plan, self.allotment()
        writers = allotment.workers * plan.files_at_once
        return self.destination.open(plan, self.key, writers=writers, uploads=allotment.uploads)

    def publish(self, sink: Sink, outcome: Outcome) -> tuple[Made, Published]:
        """Carried files, card and manifest, then the commit."""
        plan, survey = self.plan, self.survey
        large = [
            retried(partial(self._carry, sink, path, file), self.meter)
            for path, file in large_files(plan, survey).items()
        ]
        small = small_files(plan, survey, self.source, losses=outcome.losses)
        for path, data in small.items():
            sink.put(path, data)
        built = whole_manifest(
            plan,
            survey,
            receipts=outcome.receipts,
            small=small,
            large=large,
            digests=outcome.digests,
            losses=outcome.losses,
        )
        sink.put(manifest.PATH, built)
        lost = {plan.recipes[i].name: (of.overflow, of.underflow) for i, of in outcome.losses.items()}
        carried = [Receipt(entry.path, entry.size, entry.sha256) for entry in large]
        return Made(built, lost), sink.commit([*outcome.receipts, *carried])

    def _carry(self, sink: Sink, path: str, file: SourceFile) -> FileEntry:
        writer = sink.open(path, file.size)
        try:
            entry = carry(self.source, file, path, writer.write)
            writer.finish()
            return entry
        finally:
            writer.abort()

    def result(self, made: Made, published: Published, seconds: float) -> MirrorResult:
        meter, plan = self.meter, self.plan
        return MirrorResult(
            destination=published.location,
            commit=published.commit,
            commit_url=published.url,
            pr_url=published.pr_url,
            manifest_json=made.manifest,
            losses=made.losses,
            warnings=tuple(meter.warnings),
            stats=Stats(
                tensors=len(plan.recipes),
                parameters=plan.parameters,
                shards=plan.shards,
                parts=len(plan.outputs),
                parts_kept=meter.kept,
                parts_resumed=meter.resumed,
                bytes_read=meter.bytes_read,
                bytes_written=meter.bytes_written,
                bytes_published=plan.bytes_out,
                retries=meter.retries,
                files_verified=meter.verified,
                seconds=round(seconds, 3),
                peak_memory=peak_memory(),
                worker_memory=meter.worker_memory,
            ),
            changed=published.changed,
        )


def default_name(me: str, source: str) -> str:
    """Where the mirror of a source goes by default: a repository of the account."""
    return f"{me}/{source.rstrip('/').rpartition('/')[2]}-npy"


def refuse_same(source: Location, destination: Location | GitLocation | None) -> None:
    """A mirror never goes where its source is."""
    same = False
    if isinstance(source, HubLocation) and isinstance(destination, HubLocation):
        same = source.repo_id.lower() == destination.repo_id.lower()
    elif isinstance(source, FolderLocation) and isinstance(destination, FolderLocation):
        here, there = parse_folder(source.path).resolve(), parse_folder(destination.path).resolve()
        same = here == there or here in there.parents or there in here.parents
    if same:
        raise UseError("destination and source are the same", hint="choose another name for the mirror")
