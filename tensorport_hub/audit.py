"""Proof that a mirror is what its manifest says, and the manifest what its source makes.

Three depths, each with all the faults it finds: the manifest against what the other side states of its files
(nothing is downloaded); every byte of every file; and the source again: its files' digests, the plan that
this tool makes of it, and tensors read by range, decoded once more by the manifest's own recipes, and
compared with the digests of the files that hold them.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import Self, TypeVar

from tensorport_hub.comparison import Comparison
from tensorport_hub.contents import large_entries, small_files, whole_manifest
from tensorport_hub.core import card, manifest, proof
from tensorport_hub.core.decode.cast import Losses
from tensorport_hub.core.demand import demand
from tensorport_hub.core.digest import SourceFile, differing
from tensorport_hub.core.layout import OutFile, frame
from tensorport_hub.core.location import FolderLocation, GitLocation, HubLocation, parse_mirror
from tensorport_hub.core.manifest import FileEntry
from tensorport_hub.core.mirror import Mirror
from tensorport_hub.core.mirror import read as read_mirror
from tensorport_hub.core.progress import Progress
from tensorport_hub.core.proof import Fault
from tensorport_hub.edge.git_source import GitSource
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.edge.hub_source import HubSource
from tensorport_hub.edge.journal import Unkept
from tensorport_hub.edge.local import LocalSource, parse_folder
from tensorport_hub.edge.retry import retried
from tensorport_hub.engine import Outcome, run
from tensorport_hub.engine.budget import allot
from tensorport_hub.errors import (
    CheckpointError,
    DestinationError,
    LimitError,
    SourceError,
    UseError,
    VerificationError,
)
from tensorport_hub.meter import Meter
from tensorport_hub.ports import BytesRead, Planned, Source
from tensorport_hub.reading import Reading, read_seconds
from tensorport_hub.results import Again, Verification

_BLOCK = 8 << 20
_WRITER_NBYTES = 1 << 20

T = TypeVar("T")


class Audit:
    """One mirror at one state.

    Raises:
        DestinationError: it can't be read.
        VerificationError: it has no manifest, or none that this tool understands.
    """

    def __init__(self, destination: str, revision: str | None, token: str | None, meter: Meter) -> None:
        self._token, self._meter = token, meter
        self.name, self._there = self._open(destination, revision)
        self.mirror = self._read_manifest()
        if isinstance(self._there, LocalSource):
            self._there.look_for(self.mirror.files)

    def _open(self, destination: str, revision: str | None) -> tuple[str, Source]:
        location = parse_mirror(destination, is_folder=os.path.isdir(os.path.expanduser(destination)))
        if isinstance(location, FolderLocation):
            if revision is not None:
                raise UseError(f"folder `{destination}` has no revision `{revision}`")
            path = parse_folder(location.path)
            if not os.path.isdir(path):
                raise DestinationError(f"destination `{path}` is no folder")
            return str(path), _theirs(lambda: LocalSource(path, is_mirror=True))
        if isinstance(location, GitLocation):
            return location.url, GitSource(location.url, revision, self._meter)
        client = HubClient(token=self._token)
        state = retried(lambda: client.repo_state(location.repo_id, revision, DestinationError), self._meter)
        return location.repo_id, HubSource(client, state, read_seconds=read_seconds(), report=self._meter)

    @cached_property
    def _listed(self) -> dict[str, SourceFile]:
        return {file.path: file for file in self._there.files}

    def _read_manifest(self) -> Mirror:
        file = next((file for file in self._there.files if file.path == manifest.PATH), None)
        if file is None:
            raise VerificationError(
                f"`{self.name}` has no `{manifest.PATH}`", hint="it is no mirror that this tool made"
            )
        manifest.check_size(file.size)
        data = self._whole(file)
        if (found := differing(file, data)) is not None:
            raise VerificationError(
                f"`{manifest.PATH}` came damaged: expected digest {found[0]}, got {found[1]}"
            )
        return read_mirror(data)

    def _whole(self, file: SourceFile) -> bytes:
        content = bytearray(file.size)
        if file.size:
            _theirs(lambda: self._there.read_into(file.path, 0, memoryview(content)))
        return bytes(content)

    def check_listing(self) -> list[Fault]:
        """The manifest against itself, and against what the other side states of its files."""
        return [
            *proof.check_totals(self.mirror),
            *proof.check_files(self.mirror, self._there.files),
        ]

    @property
    def listing(self) -> str:
        """What the other side's listing lets compare: `sizes` alone where it states no digest, as folders."""
        stated = any(file.sha256 or file.git_oid for file in self._there.files)
        return "listing" if stated else "sizes"

    def check_bytes(self, workers: int) -> list[Fault]:
        """Every byte of every listed file that is there with the right size."""
        entries = [
            entry
            for path, entry in self.mirror.files.items()
            if path in self._listed and self._listed[path].size == entry.size
        ]
        self._meter(Planned(len(entries), sum(entry.size for entry in entries), 0))
        plan = self.mirror.plan
        heads = {file.path: frame(plan.recipes, file).segments[0].before for file in plan.outputs}
        with ThreadPoolExecutor(workers, thread_name_prefix="check") as pool:
            found = list(pool.map(lambda entry: self._check_file(entry, heads.get(entry.path)), entries))
        return [fault for fault in found if fault is not None]

    def _check_file(self, entry: FileEntry, head: bytes | None) -> Fault | None:
        digest = hashlib.sha256()
        first = b""
        for start in range(0, entry.size, _BLOCK):
            buffer = memoryview(bytearray(min(_BLOCK, entry.size - start)))
            try:
                _theirs(lambda at=start, into=buffer: self._there.read_into(entry.path, at, into))  # type: ignore[misc] # a lambda with defaults
            except DestinationError as error:
                if error.transient:
                    raise
                return Fault(entry.path, f"can't be read: {error.message}")
            digest.update(buffer)
            first = first or bytes(buffer[: len(head or b"")])
            self._meter(BytesRead(entry.path, len(buffer)))
        if digest.hexdigest() != entry.sha256:
            return Fault(
                entry.path, f"holds wrong bytes: expected sha256 {entry.sha256}, got {digest.hexdigest()}"
            )
        if head is not None and first != head[: len(first)]:  # a long one may end in a later block
            return Fault(entry.path, "does not begin as its format, names, dtypes and shapes make it")
        return None

    def check_source(
        self, source: str | None, *, sample: int | None, seed: int, workers: int, max_memory: int
    ) -> tuple[list[Fault], Again]:
        """The source's files and plan against the manifest, and tensors made again.

        Args:
            source: where the source is now; None: as the manifest says.
            sample: tensors to make again, drawn with `seed`, and all that stands in the same files; None:
                all.

        Raises:
            SourceError: it can't be read.
        """
        plan = self.mirror.plan
        where: str | HubLocation
        if source is not None:
            where = source
        elif plan.repo is not None:
            where = HubLocation(plan.repo, plan.commit)
        else:
            raise UseError("the mirror was made from a folder", hint="`--source FOLDER` says where it is")
        try:
            reading = Reading(where, None, self._token, plan.options, self._meter)
        except (CheckpointError, LimitError) as error:
            return [Fault("source", error.message)], Again((), seed if sample is not None else None, 0)
        with reading:
            faults = proof.check_sources(self.mirror, reading.source.files)
            if source is None or plan.repo is None:
                faults += proof.check_state(self.mirror, reading.plan)
            faults += proof.check_plan(self.mirror, reading.plan)
            sizes = {file.path: file.size for file in reading.source.files}
            if any(sizes.get(file.path) != file.size for file in plan.files):
                # told above; a walk by sizes that the source does not confirm might never end
                return faults, Again((), seed if sample is not None else None, 0)
            more, again, outcome = self._make_again(reading, sample, seed, workers, max_memory)
            if reading.plan.commit == plan.commit and not [f for f in faults if f.what == "source"]:
                more += self._check_contents(reading, outcome)
        return [*faults, *more], again

    def _check_contents(self, reading: Reading, outcome: Outcome | None) -> list[Fault]:
        """The files that are no weights, and the manifest itself, made again.

        Args:
            outcome: of making all weights again; without it, what rounding cost is believed.
        """
        fresh, numbers = reading.plan, {r.name: i for i, r in enumerate(reading.plan.recipes)}
        names = [recipe.name for recipe in self.mirror.plan.recipes]
        known = {names[i]: lost for i, lost in outcome.losses.items()} if outcome is not None else None
        stated = {name: Losses(*lost) for name, lost in self.mirror.losses.items()}
        losses = {
            numbers[n]: lost for n, lost in (stated if known is None else known).items() if n in numbers
        }
        small = small_files(fresh, reading.survey, reading.source, losses=losses)
        large = large_entries(fresh, reading.survey, reading.source)
        same_version = fresh.version == self.mirror.plan.version
        if not same_version:  # it may word its card in another way
            small[card.PATH] = b""
        faults = [
            f for f in proof.check_small(self.mirror, small, large) if same_version or f.what != card.PATH
        ]
        if faults or outcome is None or not same_version or len(fresh.outputs) != len(outcome.receipts):
            return faults
        built = whole_manifest(
            fresh,
            reading.survey,
            receipts=outcome.receipts,
            small=small,
            large=large,
            digests=outcome.digests,
            losses=losses,
        )
        return proof.check_text(self.mirror, built)

    def _make_again(
        self, reading: Reading, sample: int | None, seed: int, workers: int, max_memory: int
    ) -> tuple[list[Fault], Again, Outcome | None]:
        """Run the manifest's own plan, or a part of it, against the source; the outcome, if it was all."""
        plan = self.mirror.plan
        names = sorted(recipe.name for recipe in plan.recipes)
        chosen = names if sample is None else random.Random(seed).sample(names, min(sample, len(names)))
        wanted = {i for i, recipe in enumerate(plan.recipes) if recipe.name in set(chosen)}
        outputs = tuple(f for f in plan.outputs if any(piece.recipe in wanted for piece in f.pieces))
        outputs = tuple(replace(file, index=i) for i, file in enumerate(outputs))
        made = [plan.recipes[r].name for r in dict.fromkeys(p.recipe for f in outputs for p in f.pieces)]
        options = plan.options if sample is None else replace(plan.options, verify_source="no")
        unstated = tuple(replace(file, sha256=None) for file in plan.files)  # compared below, as a fault
        part_of_it = replace(plan, files=unstated, outputs=outputs, options=options)
        sink = Comparison({e.path: e.sha256 for e in self.mirror.weights}, self._tensor_of(outputs))
        allotment = allot(
            max_memory,
            workers=workers,
            files=len(plan.files),
            writer_nbytes=_WRITER_NBYTES * part_of_it.files_at_once,
            demand=demand(part_of_it),
            ordered=part_of_it.is_ordered,
        )
        self._meter(Planned(len(outputs), 0, part_of_it.bytes_out))
        outcome = None
        try:
            outcome = run(
                part_of_it,
                reading.source,
                sink,
                Unkept(),
                inherited=Progress(),
                allotment=allotment,
                report=self._meter,
            )
            sink.faults += proof.check_digests(self.mirror, outcome.digests)
        except (CheckpointError, VerificationError) as error:
            sink.faults.append(Fault("source", error.message))
        again = Again(tuple(sorted(made)), seed if sample is not None else None, part_of_it.bytes_out)
        return sink.faults, again, outcome if sample is None and not sink.faults else None

    def _tensor_of(self, outputs: Sequence[OutFile]) -> dict[str, str]:
        """What a file is called in a fault: by its tensor, where it holds only one."""
        names = {file.path: file.path for file in outputs}
        recipes = self.mirror.plan.recipes
        return names | {f.path: recipes[f.pieces[0].recipe].name for f in outputs if len(f.pieces) == 1}

    def result(self, faults: Sequence[Fault], depth: Sequence[str], again: Again | None) -> Verification:
        """What was looked at, and everything that is wrong."""
        plan = self.mirror.plan
        return Verification(
            destination=self.name,
            commit=self._there.commit or None,
            source=plan.repo,
            revision=plan.commit,
            depth=tuple(depth),
            files=len(self.mirror.files),
            nbytes=sum(entry.size for entry in self.mirror.files.values()),
            tensors=len(plan.recipes),
            again=again,
            faults=tuple(faults),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._there.close()


def _theirs(call: Callable[[], T]) -> T:
    """A mirror is read as a source, but it is the destination that is at fault."""
    try:
        return call()
    except SourceError as error:
        raise DestinationError(error.message, hint=error.hint, transient=error.transient) from None
