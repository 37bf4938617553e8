"""What the library's verbs return: frozen, typed, nothing to call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tensorport_hub.core.forecast import Forecast
from tensorport_hub.core.manifest import parse
from tensorport_hub.core.plan import Plan
from tensorport_hub.core.proof import Fault
from tensorport_hub.errors import TensorportError


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What a run cost.

    Attributes:
        tensors, parameters: that the mirror has, counted once, however many formats it has.
        parts: files of weights that the mirror has, in `shards` of all formats together.
        parts_kept: those of them that stood at the destination already, made of the same bytes.
        parts_resumed: those that an interrupted run had made.
        bytes_read: of the source, that arrived in this run; what is read again counts again.
        bytes_written: of weights, that were handed to the destination in this run; what is written again
            counts again.
        bytes_published: of all files of weights that the mirror has, made in this run or before.
        retries: how often a file of weights had to be written again.
        files_verified: source files that were read whole and are what the source states.
        seconds: from the call to the publication.
        peak_memory: of this process, in bytes, where the system tells.
        worker_memory: of the largest worker process, where a cluster did the work.
    """

    tensors: int
    parameters: int
    shards: int
    parts: int
    parts_kept: int
    parts_resumed: int
    bytes_read: int
    bytes_written: int
    bytes_published: int
    retries: int
    files_verified: int
    seconds: float
    peak_memory: int | None
    worker_memory: int | None = None


@dataclass(frozen=True, kw_only=True)
class MirrorResult:
    """What a mirror run published.

    Attributes:
        destination: repository id, or the folder's absolute path.
        commit_url: page of the commit; None for a folder.
        commit: what readers see; with `pr_url`, the head of the pull request; None for a folder.
        pr_url: page of the pull request, where one is left open.
        manifest_json: manifest.json, byte for byte.
        losses: tensor name -> (overflows, underflows), where rounding cost anything.
        changed: False where the destination held exactly this already.
    """

    destination: str
    commit: str | None
    commit_url: str | None
    pr_url: str | None
    manifest_json: bytes = field(repr=False)
    losses: Mapping[str, tuple[int, int]]
    warnings: tuple[str, ...]
    stats: Stats
    changed: bool

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """manifest.json, parsed when it is first asked for: that of 240,000 tensors takes a gigabyte."""
        return parse(self.manifest_json)


@dataclass(frozen=True)
class Attempt:
    """One mirror of several: what it published, or why it did not.

    Attributes:
        source: as it was asked for.
        destination: where it went; where it failed, as it was asked for, None if that was left open.
        result: what was published; None where it failed.
        error: why it failed; None where it did not.
    """

    source: str
    destination: str | None
    result: MirrorResult | None
    error: TensorportError | None


@dataclass(frozen=True)
class MirrorsResult:
    """What became of several mirrors, in the order in which they were asked for."""

    attempts: tuple[Attempt, ...]

    @property
    def exit_code(self) -> int:
        """0, or that of the first failure."""
        return next((attempt.error.exit_code for attempt in self.attempts if attempt.error), 0)

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """What a mirror run would do.

    Attributes:
        standing: the destination holds exactly this already.
        checkpoints: about how many a run makes before it publishes; None: one commit does it all.
        bytes_in: source bytes that will be read, those twice included, where no interrupted run is continued.
        bytes_again: the part of it that order forces to be read a second time.
        parts_kept, bytes_kept: what stands at the destination already, and is neither read nor sent.
        shares, largest_share: what a cluster's workers would divide it into (0: they can't send there), and
            the bytes of source files in the largest.
        forecast: limits, requests and time, which `plan` adds.
    """

    plan: Plan = field(repr=False)
    source: str
    destination: str
    exists: bool
    private: bool | None
    standing: bool
    checkpoints: int | None
    files_in: int
    bytes_in: int
    bytes_again: int
    tensors: int
    parameters: int
    parts: int
    parts_kept: int
    shards: int
    bytes_out: int
    bytes_kept: int
    memory: int
    disk: int
    shares: int
    largest_share: int
    warnings: tuple[str, ...]
    forecast: Forecast | None = None


@dataclass(frozen=True)
class Again:
    """Tensors that were made again from the source: their names, the seed of the draw, bytes of output."""

    tensors: tuple[str, ...]
    seed: int | None
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was proven of a mirror, and what is wrong with it.

    Attributes:
        destination: repository id, or the folder's absolute path.
        commit: the state that was looked at; None for a folder.
        source, revision: what the manifest says that it was made from; no source for a folder.
        depth: what was looked at: `listing`, or `sizes` where the other side states no digests; `bytes`;
            `source`.
        files, nbytes, tensors: what the manifest lists.
        again: what was made again from the source.
        faults: everything that is not as it must be; empty where the mirror is proven.
    """

    destination: str
    commit: str | None
    source: str | None
    revision: str
    depth: tuple[str, ...]
    files: int
    nbytes: int
    tensors: int
    again: Again | None
    faults: tuple[Fault, ...]

    @property
    def ok(self) -> bool:
        return not self.faults


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """A tensor as the mirror would hold it.

    Attributes:
        name: its logical name, without the endings of packed tensors.
        scheme: the layout that it is decoded from; `plain` where it is stored as it is.
        stored_dtype: of the packed tensor, in safetensors' words (`U8`).
        dtype, shape: of the decoded one.
        parameters: its elements.
        stored_nbytes: bytes of all stored tensors that it is made from, scales and zero points included.
        nbytes: bytes of the files that would hold it.
    """

    name: str
    scheme: str
    stored_dtype: str
    dtype: str
    shape: tuple[int, ...]
    parameters: int
    stored_nbytes: int
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a source holds, from headers and facts alone.

    Attributes:
        source: repository id, or the folder as it was given.
        revision: the commit; of a folder a digest of its headers.
        files, nbytes: weight files, and their size together.
        parameters: elements of all tensors, decoded.
        schemes: layout -> how many tensors have it.
        tensors: in the order in which they are stored.
        skipped: stored tensor -> why it is left out.
        warnings: what else one should know.
    """

    source: str
    revision: str
    files: int
    nbytes: int
    parameters: int
    schemes: Mapping[str, int]
    tensors: tuple[TensorInfo, ...]
    skipped: Mapping[str, str]
    warnings: tuple[str, ...]
