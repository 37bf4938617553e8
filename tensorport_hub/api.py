"""The library's verbs.

Every function is synchronous, prints nothing, and may be called from several threads. Keyword names are
those of the command line; names common to Hub libraries (`revision`, `token`, `private`, `allow_patterns`,
`commit_message`) mean what they mean there. Defaults stand here and nowhere else. A size is a number of
bytes, or a text: `1.8GB` is 1.8 * 10^9, `1.5GiB` is 1.5 * 2^30.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from time import monotonic
from typing import TYPE_CHECKING, Any

from tensorport_hub import asked, pages
from tensorport_hub.audit import Audit
from tensorport_hub.cluster.run import check_cluster, crew_of, run_shared
from tensorport_hub.core.progress import Progress
from tensorport_hub.destination import Opened
from tensorport_hub.edge.local import parse_folder
from tensorport_hub.engine import Outcome, run
from tensorport_hub.errors import CheckpointError, LossError, UseError
from tensorport_hub.job import Job, Made
from tensorport_hub.limits import Limits
from tensorport_hub.meter import Meter
from tensorport_hub.outlook import outlook, parse_rate
from tensorport_hub.ports import Committed, Event, Planned, Published
from tensorport_hub.reading import Reading
from tensorport_hub.results import Inspection, MirrorResult, PlanResult, Verification

if TYPE_CHECKING:
    from tensorport_hub.cluster.crew import Crew
    from tensorport_hub.cluster.run import Cluster


def mirror(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    precision: str = "keep",
    quantized: str = "decode",
    on_overflow: str = "error",
    on_underflow: str = "report",
    format: str | Sequence[str] = "numpy-direct",
    experts: str = "source",
    shard_size: str | int = "1.8GB",
    allow_large_shards: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    subfolder: str | None = None,
    allow_patterns: Sequence[str] = (),
    workers: int | None = None,
    max_memory: str | int = "1GB",
    max_disk: str | int | None = None,
    private: bool | None = None,
    i_have_rights: bool = False,
    transfer: str = "auto",
    read: str = "http",
    verify_source: str = "auto",
    checkpoint_every: str | int = "20GB",
    cluster: Cluster | None = None,
    restart: bool = False,
    create_pr: bool = False,
    branch: str | None = None,
    author: str | None = None,
    commit_message: str | None = None,
    report: str | os.PathLike[str] | None = None,
    token: str | None = None,
    on_event: Callable[[Event], object] | None = None,
) -> MirrorResult:
    """Read a checkpoint range by range, decode it, and publish it as plain arrays.

    An interrupted run is continued by the same call: for the Hub on any machine, once a checkpoint was made.

    Args:
        source: `org/model`, `org/model@revision`, `hf://org/model@revision/subfolder`, or a folder.
        destination: `org/name`, a folder, or a git remote (`git+https://host/repo.git`, `git@host:repo`);
            by default `<me>/<model>-npy`.
        revision: branch, tag or commit of the source.
        precision: `keep`, `bfloat16`, `float16` or `float32`; floats only.
        quantized: `decode`, or `keep`: packed tensors are copied as stored, under their stored names.
        on_overflow: `error`, `inf` or `saturate`: a finite value that the precision can't hold.
        on_underflow: `report` or `error`: non-zero values that become 0.
        format: `numpy-direct`, `msgpack`, `jax-pickle` or `safetensors`; of several, each gets its own
            folder, and the source is read once.
        experts: `source`, or `stacked`: every MoE layer's experts as one array a projection.
        shard_size: bytes a shard may hold, as a size: `"1.8GB"` (10^9), `"1.5GiB"` (2^30), or their number.
        allow_large_shards: let `shard_size` pass 2 GB.
        include, exclude: globs over tensor names, one or several.
        subfolder, allow_patterns: which files are the model: their folder, and globs over their names in it.
        workers: parts in flight; by default one a processor, by Xet one more.
        max_memory, max_disk: sizes: caps on peak memory and on staging bytes (by default two shards).
        private: visibility of a new repository, which one that exists must have (by default: as the source).
        i_have_rights: a gated or private source may be published openly.
        transfer: `auto`, `xet` or `lfs`.
        read: `http`, or `xet`: what the source has in Xet storage comes from there; fewer bytes, more work.
        verify_source: `auto`, `whole` or `no`: sha256 of whole source files.
        checkpoint_every: a size: bytes that a crash may cost; a mirror of fewer is published by one commit.
        cluster: workers that do it: the address of a Dask scheduler (`tcp://host:port`, `tls://host:port`),
            `local:N` for as many processes on this machine, a Dask client, or any executor of
            `concurrent.futures`; the caps are each process's own then. The destination must be on the Hub.
        restart: give up what an interrupted run left, and make again what the destination holds already.
        create_pr: leave an open pull request instead of merging it.
        branch: publish there instead of on `main`, or a git remote's default branch; `refs/heads/x` is `x`.
        author: of a git remote's commits, `Name <mail>`; by default as git is configured.
        commit_message: of the commit, and title of the pull request.
        report: write an HTML page about the mirror there; where that fails at the end, it is a warning.
        token: for source and destination; by default the one that you are logged in with.
        on_event: called with every event of `ports`, from any thread; what it raises is only logged.

    Returns:
        Where it was published, its manifest, what rounding cost, and what the run did.

    Raises:
        TensorportError: by whose fault it is; nothing was published.
    """
    begun = monotonic()
    source, destination = asked.place(source, "source"), asked.perhaps_place(destination, "destination")
    if cluster is not None:
        check_cluster(cluster, destination)
    options = asked.options(locals())
    limits, meter = Limits.of(workers, max_memory, large_shards=allow_large_shards), Meter(on_event)
    publication, by_xet = asked.publication(locals(), options), asked.by_xet(read)
    page = asked.page(report)
    with Job(source, destination, revision, token, options, limits, publication, meter, by_xet=by_xet) as job:
        if page is not None:
            pages.refuse_inside(page, job)
        meter(Planned(len(job.plan.outputs), job.schedule.bytes_read(), job.plan.bytes_out))
        made = job.standing() or _carried_out(job, cluster)
        meter(Committed(made[1]))
        result = job.result(*made, monotonic() - begun)
        if page is not None:
            pages.write_mirror(page, result, job)
        return result


def _carried_out(job: Job, cluster: Cluster | None) -> tuple[Made, Published]:
    """Make what is left to make, and publish."""
    with nullcontext() if cluster is None else crew_of(cluster, job) as crew:
        opened = job.open()
        sink, journal = opened.sink, opened.journal
        try:
            if opened.published is not None:
                there, published = opened.published
                return Made.of(there), published
            return job.publish(sink, _outcome(job, opened, crew))
        except (CheckpointError, LossError):
            sink.discard()
            raise
        except BaseException:
            journal.save()
            raise
        finally:
            sink.close()


def _outcome(job: Job, opened: Opened, crew: Crew | None) -> Outcome:
    """What is left to make, made here or by a crew."""
    inherited = Progress() if opened.anew else job.destination.inherited
    if crew is not None:
        return run_shared(job, opened, inherited, crew)
    return run(
        job.plan,
        job.source,
        opened.sink,
        opened.journal,
        inherited=inherited,
        allotment=job.allotment(),
        report=job.meter,
    )


def plan(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    precision: str = "keep",
    quantized: str = "decode",
    on_overflow: str = "error",
    on_underflow: str = "report",
    format: str | Sequence[str] = "numpy-direct",
    experts: str = "source",
    shard_size: str | int = "1.8GB",
    allow_large_shards: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    subfolder: str | None = None,
    allow_patterns: Sequence[str] = (),
    workers: int | None = None,
    max_memory: str | int = "1GB",
    max_disk: str | int | None = None,
    private: bool | None = None,
    i_have_rights: bool = False,
    transfer: str = "auto",
    read: str = "http",
    verify_source: str = "auto",
    checkpoint_every: str | int = "20GB",
    cluster: Cluster | None = None,
    create_pr: bool = False,
    branch: str | None = None,
    author: str | None = None,
    rate: str | int | None = None,
    probe: bool = False,
    strict: bool = False,
    token: str | None = None,
    on_event: Callable[[Event], object] | None = None,
) -> PlanResult:
    """Everything that `mirror` does before it reads weights; writes nothing.

    What an interrupted run left is not counted, though `mirror` continues it. Arguments as there, and:

    Args:
        rate: bytes a second that are to be expected, as a size, for a forecast of the time.
        probe: measure that rate: reads some blocks of the source, 64 MB at most.
        strict: warnings, and limits that are only recommended, are errors.

    Returns:
        The plan, what it reads, writes and holds, what stands already, and a forecast of requests and time.

    Raises:
        TensorportError: what would stop the run.
    """
    source, destination = asked.place(source, "source"), asked.perhaps_place(destination, "destination")
    options = asked.options(locals())
    limits, meter = Limits.of(workers, max_memory, large_shards=allow_large_shards), Meter(on_event)
    publication, by_xet = asked.publication(locals(), options), asked.by_xet(read)
    expected = parse_rate(rate)
    if cluster is not None:
        check_cluster(cluster, destination)
    with Job(source, destination, revision, token, options, limits, publication, meter, by_xet=by_xet) as job:
        return outlook(job, publication, rate=expected, measure=probe, strict=strict)


def convert(
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    **options: Any,
) -> MirrorResult:
    """`mirror` to a folder.

    Args:
        input: what `mirror` takes as its source.
        output: the folder, whatever its name looks like.
        options: keyword arguments of `mirror`.

    Returns:
        What `mirror` returns; its `destination` is the folder's absolute path.
    """
    return mirror(input, parse_folder(asked.place(output, "output")), **options)


def verify(
    destination: str | os.PathLike[str],
    *,
    revision: str | None = None,
    deep: bool = False,
    against_source: bool = False,
    source: str | os.PathLike[str] | None = None,
    sample: int | None = None,
    seed: int | None = None,
    workers: int | None = None,
    max_memory: str | int = "1GB",
    token: str | None = None,
    on_event: Callable[[Event], object] | None = None,
) -> Verification:
    """Prove that a mirror is what its manifest says; nothing of it is downloaded unless asked for.

    Args:
        destination: `org/name`, a folder, a git remote, or a git clone of a mirror.
        revision: branch, tag, commit or pull request (`refs/pr/3`) of the mirror.
        deep: read every byte.
        against_source: compare with the source's own digests, make tensors again from it, and compare them.
        source: where the source is now; by default where the manifest says.
        sample: how many tensors to make again; by default all.
        seed: of the draw; by default a new one, which the result names.
        workers: parts and files read at the same time; by default the number of processors.
        max_memory: a size: cap on what making tensors again holds; the manifest is parsed outside of it.
        token: for mirror and source; by default the one that you are logged in with.
        on_event: as in `mirror`.

    Returns:
        What was looked at, and all faults that were found; it is `ok` where there is none.

    Raises:
        UseError: the arguments contradict each other.
        DestinationError, SourceError: one of the two can't be read.
        VerificationError: there is no manifest, or none that makes sense.
    """
    destination, source = asked.place(destination, "destination"), asked.perhaps_place(source, "source")
    asked.check_texts(locals(), "revision", "token")
    if sample is not None and (type(sample) is not int or sample < 1):
        raise UseError(f"sample must be a whole number and at least 1, got {sample!r}")
    if not against_source and any(given is not None for given in (sample, seed, source)):
        raise UseError("`--sample`, `--seed` and `--source` mean something with `--against-source` only")
    limits, meter = Limits.of(workers, max_memory), Meter(on_event)
    with Audit(destination, revision, token, meter) as audit:
        depth, faults, again = [audit.listing], audit.check_listing(), None
        if deep:
            depth.append("bytes")
            faults += audit.check_bytes(limits.workers)
        if against_source:
            depth.append("source")
            more, again = audit.check_source(
                source,
                sample=sample,
                seed=random.randrange(1 << 32) if seed is None else seed,
                workers=limits.workers,
                max_memory=limits.max_memory,
            )
            faults += more
        return audit.result(faults, depth, again)


def inspect(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    subfolder: str | None = None,
    allow_patterns: Sequence[str] = (),
    report: str | os.PathLike[str] | None = None,
    token: str | None = None,
    on_event: Callable[[Event], object] | None = None,
) -> Inspection:
    """What a source holds: tensors, dtypes, schemes, true parameter counts; from headers alone.

    Args:
        source, revision, include, exclude, subfolder, allow_patterns, token, on_event: as in `mirror`.
        report: write an HTML page about it there.

    Returns:
        Every tensor that a mirror with the default options would hold, and totals.

    Raises:
        TensorportError: it can't be read, or holds what is not supported.
    """
    source = asked.place(source, "source")
    options = asked.options(locals())
    meter, page = Meter(on_event), asked.page(report)
    with Reading(source, revision, token, options, meter) as reading:
        seen = reading.inspection()
        if page is not None:
            pages.write_inspection(page, seen, reading)
        return seen
