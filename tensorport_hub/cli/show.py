"""Results for people, and as JSON for programs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import click

from tensorport_hub.core import manifest
from tensorport_hub.core.forecast import Forecast
from tensorport_hub.core.size import format_size
from tensorport_hub.core.tensor import shorten
from tensorport_hub.errors import TensorportError
from tensorport_hub.results import Inspection, MirrorResult, PlanResult, Stats, TensorInfo, Verification

_LISTED = 40
_FAULTS = 100
_WHOLE = 1000
"""Characters of a tensor's name that is listed for its own sake."""


def as_json(value: object) -> None:
    """One JSON object on stdout."""
    click.echo(json.dumps(value, ensure_ascii=False, default=_fallback))


def _fallback(value: object) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)


def mirror_json(result: MirrorResult) -> dict[str, Any]:
    """What `mirror --json` prints: the result without the whole manifest."""
    apart, stats = ("manifest_json", "stats"), result.stats
    shown = {f.name: getattr(result, f.name) for f in fields(result) if f.name not in apart}
    totals = {
        "tensors": stats.tensors,
        "parameters": stats.parameters,
        "bytes": stats.bytes_published,
        "shards": stats.shards,
    }
    return {**shown, "manifest": manifest_place(result), "totals": totals, "stats": asdict(stats)}


def error_json(error: TensorportError) -> dict[str, Any]:
    """What programs are told of an error; of classes that only we know, whose fault it is."""
    kind = next(kind for kind in type(error).__mro__ if kind.__module__ == TensorportError.__module__)
    return {
        "error": kind.__name__,
        "message": error.message,
        "hint": error.hint,
        "exit_code": error.exit_code,
    }


def manifest_place(result: MirrorResult) -> str:
    """Where the manifest is to be read: a URL of this very commit, a path, or what `git show` calls it."""
    if result.commit_url is None and result.commit is not None:
        return f"{result.commit}:{manifest.PATH}"
    if result.commit_url is None:
        return str(Path(result.destination, manifest.PATH))
    repository, _, commit = result.commit_url.rpartition("/commit/")
    return f"{repository}/resolve/{commit}/{manifest.PATH}"


def plan_json(result: PlanResult) -> dict[str, Any]:
    """What `plan --json` prints: the numbers, and every file with its size."""
    shown = {f.name: getattr(result, f.name) for f in fields(result) if f.name not in ("plan", "forecast")}
    files = [{"path": file.path, "size": file.size} for file in result.plan.outputs]
    plan = result.plan
    return {
        **shown,
        "forecast": asdict(result.forecast) if result.forecast is not None else None,
        "revision": plan.commit,
        "fingerprint": plan.fingerprint,
        "formats": plan.options.formats,
        "experts": plan.options.experts,
        "files": files,
    }


def mirror_text(result: MirrorResult) -> str:
    """What `mirror` says at the end."""
    stats = result.stats
    memory = f", peak memory {format_size(stats.peak_memory)}" if stats.peak_memory else ""
    if stats.worker_memory:
        memory += f", of the largest worker {format_size(stats.worker_memory)}"
    lines = [
        f"{counted(stats.tensors, 'tensor')}, {counted(stats.parameters, 'parameter')}"
        f" in {counted(stats.parts, 'file')}, {format_size(stats.bytes_published)}",
        f"read {format_size(stats.bytes_read)} in {stats.seconds:.1f} s{memory}{_resumed(stats)};"
        f" {counted(stats.files_verified, 'source file')} verified whole",
    ]
    if result.losses:
        lines.append(f"{rounding(result)}; per tensor in manifest.json")
    word = state(result) + " to" * (state(result) == "written")
    return "\n".join([*lines, f"{word}: {place(result)}"])


def state(result: MirrorResult) -> str:
    """What became of a mirror, in a word."""
    if not result.changed:
        return "unchanged"
    return "offered" if result.pr_url else "written" if is_folder(result.destination) else "published"


def place(result: MirrorResult) -> str:
    """Where to look at a mirror."""
    return result.pr_url or result.commit_url or result.destination


def rounding(result: MirrorResult) -> str:
    """What rounding cost a mirror."""
    over = sum(lost for lost, _ in result.losses.values())
    under = sum(lost for _, lost in result.losses.values())
    return f"rounding: {counted(over, 'value')} overflowed, {under:,} became 0"


def _resumed(stats: Stats) -> str:
    there = stats.parts_kept + stats.parts_resumed
    return f", {counted(there, 'file')} {'was' if there == 1 else 'were'} there" if there else ""


def plan_text(result: PlanResult) -> str:
    """What `plan` says."""
    share = 100 * result.bytes_again / max(result.bytes_in - result.bytes_again, 1)
    again = f"{format_size(result.bytes_again)} ({share:.1f} %), forced by order or by the memory cap"
    kept = f"{format_size(result.bytes_kept)} of it in {counted(result.parts_kept, 'file')} that are there"
    most = f", of at most {format_size(result.largest_share)} of the source"
    written = f"{format_size(result.bytes_out)} in {counted(result.parts, 'file')},"
    written += f" {counted(result.shards, 'shard')}"
    exists = f"{'exists' if result.exists else 'new'}{_visibility(result)}"
    what = [
        ("formats", _formats(result)),
        ("tensors", f"{result.tensors:,} with {counted(result.parameters, 'parameter')}"),
    ]
    if result.standing:
        rows = [("to do", "nothing: the destination holds exactly this already"), ("holds", written), *what]
    else:
        rows = [
            ("reads", f"{format_size(result.bytes_in)} from {counted(result.files_in, 'file')}"),
            *([("read again", again)] if result.bytes_again else []),
            ("writes", written),
            *([("keeps", kept)] if result.parts_kept else []),
            *what,
            ("publishes", _publication(result)),
            ("memory cap", format_size(result.memory)),
            ("disk", f"at most {format_size(result.disk)} of staging" if result.disk else "no staging"),
            *(_forecast(result.forecast) if result.forecast is not None else []),
            *([("in a cluster", counted(result.shares, "share") + most)] if result.shares else []),
        ]
    rows = [
        ("source", f"{result.source} at {result.plan.commit}"),
        ("destination", f"{result.destination} ({exists})"),
        *rows,
        ("fingerprint", result.plan.fingerprint[:16]),
    ]
    return "\n".join(f"{name:12} {text}" for name, text in rows)


def counted(number: int, noun: str) -> str:
    """`1 file`, `2,000 files`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _forecast(seen: Forecast) -> list[tuple[str, str]]:
    """Limits, requests and time."""
    rows = [("files", f"{seen.files:,}, with card, manifest and what is carried over")]
    rows += [
        (
            "limit" if limit.hard else "recommended",
            f"{limit.value:,} of {limit.most:,} {limit.what}{', CROSSED' if limit.crossed else ''}",
        )
        for limit in seen.limits
        if limit.crossed or not limit.what.startswith("bytes")
    ]
    for kind, what in (("api", "to the API"), ("resolvers", "for files")):
        for window in seen.windows:
            if window.kind == kind and seen.requests[kind]:
                source = "" if window.stated else ", as documented for a free account"
                rows.append(
                    (
                        "requests",
                        f"about {seen.requests[kind]:,} {what}; {window.left:,} are left of {window.most:,}"
                        f" in {window.seconds} s{source}",
                    )
                )
    if seen.requests["commits"]:
        rows.append(("commits", f"about {seen.requests['commits']:,}; the Hub takes about 128 an hour"))
    return [*rows, ("time", _time(seen))]


def _time(seen: Forecast) -> str:
    if seen.rate is None or seen.seconds is None:
        said = f"at least {_span(seen.waits)} of waiting for windows; " if seen.waits else ""
        return f"{said}`--probe` measures the source, `--rate` states what is known"
    rate = "/s to ".join(dict.fromkeys(format_size(r) for r in (seen.rate.low, seen.rate.high)))
    waits = f", {_span(seen.waits)} of it waiting for windows" if seen.waits else ""
    return (
        f"{_span(seen.seconds[0])} (publishing keeps up) to {_span(seen.seconds[1])} (reading and"
        f" publishing take turns) at {rate}/s, {seen.rate.how}{waits}"
    )


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _formats(result: PlanResult) -> str:
    options = result.plan.options
    stacked = ", experts stacked" if options.experts == "stacked" else ""
    together = ", decoded and written one tensor after another" if result.plan.is_ordered else ""
    return ", ".join(options.formats) + stacked + together


def _publication(result: PlanResult) -> str:
    if is_folder(result.destination):
        return "when all of it is there; an interrupted run continues"
    if result.checkpoints is None:
        return "in one commit"
    made = counted(result.checkpoints, "checkpoint")
    return f"after about {made}, from which an interrupted run continues"


def is_folder(destination: str) -> bool:
    """Whether a result's destination is a folder, which is called by its absolute path."""
    return Path(destination).is_absolute()


def _visibility(result: PlanResult) -> str:
    return "" if result.private is None else ", private" if result.private else ", public"


def verification_text(result: Verification) -> str:
    """What `verify` says: what was looked at, and everything that is wrong."""
    at = f" at {result.commit}" if result.commit else ""
    made = f"{result.source or 'a folder'} at {result.revision}"
    lines = [
        f"{result.destination}{at}, made from {made}",
        f"{counted(result.files, 'file')} with {format_size(result.nbytes)} and"
        f" {counted(result.tensors, 'tensor')} are listed",
    ]
    said = {
        "sizes": "sizes" if "bytes" in result.depth else "sizes only; `--deep` reads the bytes",
        "listing": "sizes and digests as the other side states them",
        "bytes": "every byte",
        "source": "the source's files and plan",
    }
    lines.append(f"compared: {', '.join(said[depth] for depth in result.depth)}")
    if result.again is not None:
        drawn = f", drawn with seed {result.again.seed}" if result.again.seed is not None else ""
        count = counted(len(result.again.tensors), "tensor")
        lines.append(f"made again: {count}, {format_size(result.again.nbytes)}{drawn}")
    lines += [
        f"FAULT {shorten(fault.what)}: {shorten(fault.message, _WHOLE)}" for fault in result.faults[:_FAULTS]
    ]
    if len(result.faults) > _FAULTS:
        lines.append(f"... and {len(result.faults) - _FAULTS:,} more; `--json` lists all")
    lines.append(counted(len(result.faults), "fault") if result.faults else "verified")
    return "\n".join(lines)


def inspection_text(result: Inspection, *, every: bool) -> str:
    """What `inspect` says: a line for each group of modules, or `every` tensor too."""
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for tensor in result.tensors:
        row = groups[module_group(tensor.name), tensor.scheme, f"{tensor.stored_dtype} → {tensor.dtype}"]
        row[0], row[1], row[2] = row[0] + 1, row[1] + tensor.parameters, row[2] + tensor.stored_nbytes
    lines = [
        f"{result.source} at {result.revision}",
        f"{counted(len(result.tensors), 'tensor')}, {counted(result.parameters, 'parameter')},"
        f" {format_size(result.nbytes)} in {counted(result.files, 'file')}",
        "",
        f"{'modules':52} {'scheme':8} {'dtype':14} {'tensors':>8} {'parameters':>16} {'stored':>10}",
    ]
    for (group, scheme, dtype), (count, parameters, nbytes) in groups.items():
        lines.append(
            f"{shorten(group):52} {scheme:8} {dtype:14} {count:>8,} {parameters:>16,}"
            f" {format_size(nbytes):>10}"
        )
    if every:
        lines += ["", *(_tensor(tensor) for tensor in result.tensors)]
    if result.skipped:
        lines += ["", f"left out: {counted(len(result.skipped), 'stored tensor')}"]
        lines += [
            f"  {shorten(name, _WHOLE)}: {shorten(why, _WHOLE)}"
            for name, why in list(result.skipped.items())[:_LISTED]
        ]
    return "\n".join(lines)


def _tensor(seen: TensorInfo) -> str:
    return f"{shorten(seen.name, _WHOLE)}  {seen.scheme}  {seen.stored_dtype}  {list(seen.shape)}"


def module_group(name: str) -> str:
    """A tensor's name with layer and expert numbers as `*`."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
