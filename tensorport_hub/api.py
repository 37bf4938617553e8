"""The library's verbs.

Every function is synchronous, prints nothing, and may be called from several threads. Keyword names are
those of the command line; names common to Hub libraries (`revision`, `token`, `private`, `allow_patterns`,
`commit_message`) mean what they mean there. Defaults stand here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any

from tensorport_hub.core.plan import LARGEST_SHARD, Options
from tensorport_hub.core.size import parse_size
from tensorport_hub.core.tensor import PRECISIONS
from tensorport_hub.edge.local import parse_folder
from tensorport_hub.engine import run
from tensorport_hub.errors import UseError
from tensorport_hub.job import Job, Limits
from tensorport_hub.meter import Meter
from tensorport_hub.ports import Committed, Event, Planned
from tensorport_hub.reading import Reading
from tensorport_hub.results import Inspection, MirrorResult, PlanResult


def mirror(
    source: str,
    destination: str | None = None,
    *,
    revision: str | None = None,
    precision: str = "keep",
    quantized: str = "decode",
    on_overflow: str = "error",
    on_underflow: str = "report",
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
    verify_source: str = "auto",
    commit_message: str | None = None,
    token: str | None = None,
    on_event: Callable[[Event], object] | None = None,
) -> MirrorResult:
    """Read a checkpoint range by range, decode it, and publish it as plain arrays.

    Args:
        source: `org/model`, `org/model@revision`, `hf://org/model@revision/subfolder`, or a folder.
        destination: `org/name` or a folder; by default `<me>/<model>-npy`.
        revision: branch, tag or commit of the source.
        precision: `keep`, `bfloat16`, `float16` or `float32`; floats only.
        quantized: `decode`, or `keep`: packed tensors are copied as stored, under their stored names.
        on_overflow: `error`, `inf` or `saturate`: a finite value that the precision can't hold.
        on_underflow: `report` or `error`: non-zero values that become 0.
        shard_size: bytes a shard may hold.
        allow_large_shards: let `shard_size` pass 2 GB.
        include, exclude: globs over tensor names.
        subfolder, allow_patterns: which files are the model.
        workers: parts in flight; by default the number of processors.
        max_memory, max_disk: caps on peak memory and on staging bytes (by default two shards).
        private: visibility of a new repository; by default private where the source is private or gated.
        i_have_rights: a gated or private source may be published openly.
        transfer: `auto`, `xet` or `lfs`.
        verify_source: `auto`, `whole` or `no`: sha256 of whole source files.
        commit_message: of the one commit.
        token: for source and destination; by default the one that you are logged in with.
        on_event: called with every event of `tensorport_hub.ports`, from any thread.

    Raises:
        TensorportError: by whose fault it is; nothing was published.
    """
    begun = monotonic()
    options = _options(locals())
    limits = Limits.of(workers, max_memory, max_disk, transfer, options.shard_size)
    meter = Meter(on_event)
    with Job(source, destination, revision, token, options, limits, meter) as job:
        job.check_rights(private, i_have_rights)
        job.check_limits()
        meter(Planned(len(job.plan.parts), job.bytes_in(), job.plan.bytes_out))
        sink = job.open_sink(private, commit_message)
        try:
            outcome = run(job.plan, job.source, sink, allotment=job.allotment(sink), report=meter)
            published, built = job.publish(sink, outcome)
        finally:
            sink.close()
        meter(Committed(published))
        return job.result(published, built, outcome, monotonic() - begun)


def plan(
    source: str,
    destination: str | None = None,
    *,
    revision: str | None = None,
    precision: str = "keep",
    quantized: str = "decode",
    on_overflow: str = "error",
    on_underflow: str = "report",
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
    verify_source: str = "auto",
    token: str | None = None,
    on_event: Callable[[Event], object] | None = None,
) -> PlanResult:
    """Everything that `mirror` does before it reads weights; writes nothing. Arguments as there.

    Raises:
        TensorportError: what would stop the run.
    """
    options = _options(locals())
    limits = Limits.of(workers, max_memory, max_disk, transfer, options.shard_size)
    meter = Meter(on_event)
    with Job(source, destination, revision, token, options, limits, meter) as job:
        visible = job.check_rights(private, i_have_rights)
        job.check_limits()
        return job.preview(visible)


def convert(
    input: str,
    output: str,
    **options: Any,
) -> MirrorResult:
    """`mirror` to a folder; `options` are the keyword arguments of `mirror`."""
    return mirror(input, str(parse_folder(output)), **options)


def inspect(
    source: str,
    *,
    revision: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    subfolder: str | None = None,
    allow_patterns: Sequence[str] = (),
    token: str | None = None,
    on_event: Callable[[Event], object] | None = None,
) -> Inspection:
    """What a source holds: tensors, dtypes, schemes, true parameter counts; from headers alone.

    Raises:
        TensorportError: it can't be read, or holds what is not supported.
    """
    options = _options(locals())
    meter = Meter(on_event)
    with Reading(source, revision, token, options, meter) as reading:
        return reading.inspection()


def _options(given: Mapping[str, Any]) -> Options:
    """The content options among a verb's arguments, checked."""
    size = parse_size(given.get("shard_size", Options.shard_size))
    if size >= LARGEST_SHARD and not given.get("allow_large_shards"):
        raise UseError(
            f"shard size {size} is too large: expected less than {LARGEST_SHARD} bytes",
            hint="`--allow-large-shards` lifts this; git-LFS hosts often refuse 2 GB and more",
        )
    if size < 1:
        raise UseError("shard size must be positive")
    options = Options(
        subfolder=given["subfolder"],
        allow_patterns=_globs(given["allow_patterns"]),
        precision=given.get("precision", "keep"),
        quantized=given.get("quantized", "decode"),
        on_overflow=given.get("on_overflow", "error"),
        on_underflow=given.get("on_underflow", "report"),
        shard_size=size,
        include=_globs(given["include"]),
        exclude=_globs(given["exclude"]),
        verify_source=given.get("verify_source", "auto"),
    )
    for key, words in _CHOICES.items():
        if getattr(options, key) not in words:
            raise UseError(
                f"`{getattr(options, key)}` is no {key.replace('_', '-')}: expected one of {_or(words)}"
            )
    return options


_CHOICES: Mapping[str, tuple[str, ...]] = {
    "precision": ("keep", *PRECISIONS),
    "quantized": ("decode", "keep"),
    "on_overflow": ("error", "inf", "saturate"),
    "on_underflow": ("report", "error"),
    "verify_source": ("auto", "whole", "no"),
}


def _or(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _globs(given: Sequence[str] | str) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
