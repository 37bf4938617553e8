"""What a report shows, as data: of a mirror's manifest, or of an inspection."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tensorport_hub.core.size import format_size
from tensorport_hub.core.tensor import DTYPES
from tensorport_hub.report.cells import Tensor, natural
from tensorport_hub.results import Inspection, MirrorResult

Moment = tuple[float, int, int]
"""Seconds since the run began, bytes read and bytes written until then."""


@dataclass(frozen=True)
class Shard:
    """A shard: its name, its bytes, its files."""

    name: str
    nbytes: int
    files: int


@dataclass(frozen=True)
class ProvenFile:
    """A source file and how its digest was verified: `whole`, `ranges` or `no`."""

    path: str
    size: int
    sha256: str | None
    verified: str


@dataclass(frozen=True)
class Facts:
    """All that a page shows. Texts may be anybody's: nothing here is escaped.

    Attributes:
        links: words -> URL, for the head of the page.
        tiles: the few numbers at the top: word -> value.
        options: what the user chose, where it is not the default: name -> value.
        moments: of the run, in order; empty where nothing was read.
        losses: tensor -> (overflows, underflows).
        outputs: (files, bytes) of the mirror; None where nothing was written.
        shard_size: what a shard may hold.
    """

    title: str
    subtitle: str
    version: str
    links: Mapping[str, str]
    tiles: Mapping[str, str]
    tensors: Sequence[Tensor]
    sizes_are: str
    sources: Sequence[ProvenFile] = ()
    shards: Sequence[Shard] = ()
    shard_size: int = 0
    moments: Sequence[Moment] = ()
    losses: Mapping[str, tuple[int, int]] | None = None
    outputs: tuple[int, int] | None = None
    options: Mapping[str, str] | None = None
    skipped: Mapping[str, str] | None = None
    warnings: Sequence[str] = ()


def of_mirror(
    result: MirrorResult, *, endpoint: str, moments: Sequence[Moment], defaults: Mapping[str, Any]
) -> Facts:
    """What was mirrored, from its manifest, and how the run went."""
    manifest, stats = result.manifest, result.stats
    source, totals = manifest["source"], manifest["totals"]
    rate = stats.bytes_read / stats.seconds if stats.seconds and stats.bytes_read else 0.0
    state = "unchanged" if not result.changed else "offered" if result.pr_url else "published"
    there = stats.parts_kept + stats.parts_resumed
    kept = f", {there:,} files were there already" if there else ""
    tiles = {
        "parameters": f"{totals['parameters']:,}",
        "tensors": f"{totals['tensors']:,}",
        "mirror": _short(totals["bytes"]),
        "source": _short(sum(file["size"] for file in source["files"])),
        "read": _short(stats.bytes_read),
        "time": f"{stats.seconds:,.0f} s" if stats.seconds >= 10 else f"{stats.seconds:.2g} s",
        "rate": f"{_short(rate)}/s" if rate else "-",
        "peak memory": _short(stats.peak_memory) if stats.peak_memory else "-",
    }
    name, pin = source["repo"] or "a folder", "commit" if source["repo"] else "headers with digest"
    return Facts(
        title=f"{name} → {result.destination}",
        subtitle=f"{state}, made from {pin} {source['revision']}{kept}",
        version=manifest["generator"]["version"],
        links=_links(endpoint, source["repo"], source["revision"])
        | {
            word: url for word, url in (("commit", result.commit_url), ("pull request", result.pr_url)) if url
        },
        tiles=tiles,
        tensors=[_mirrored(name, tensor) for name, tensor in manifest["tensors"].items()],
        sizes_are="bytes in the mirror",
        sources=[ProvenFile(f["path"], f["size"], f["sha256"], f["verified"]) for f in source["files"]],
        shards=_shards(manifest["tensors"]),
        shard_size=manifest["options"]["shard_size"],
        moments=moments,
        losses=result.losses,
        outputs=(len(manifest["files"]), sum(file["size"] for file in manifest["files"])),
        options={
            key: ", ".join(value) if isinstance(value, list | tuple) else str(value)
            for key, value in manifest["options"].items()
            if value and value != defaults.get(key)
        },
        skipped=manifest["skipped"],
        warnings=result.warnings,
    )


def of_inspection(result: Inspection, *, repo: str | None, endpoint: str) -> Facts:
    """What a source holds, from headers alone."""
    made = sum(tensor.nbytes for tensor in result.tensors)
    return Facts(
        title=result.source,
        subtitle=f"inspected at {'commit' if repo else 'digest'} {result.revision}, from headers alone",
        version="",
        links=_links(endpoint, repo, result.revision),
        tiles={
            "parameters": f"{result.parameters:,}",
            "tensors": f"{len(result.tensors):,}",
            "stored": _short(result.nbytes),
            "files": f"{result.files:,}",
            "decoded": _short(made),
        },
        tensors=[
            Tensor(
                tensor.name,
                _kind(tensor.scheme, tensor.stored_dtype, tensor.dtype),
                tensor.shape,
                tensor.stored_nbytes,
                tensor.parameters,
            )
            for tensor in result.tensors
        ],
        sizes_are="bytes in the source",
        skipped=result.skipped,
        warnings=result.warnings,
    )


def _short(nbytes: float) -> str:
    """A size of three digits."""
    number, unit = format_size(nbytes).split(" ")
    return f"{number[:4].rstrip('.') if '.' in number else number} {unit}"


def _links(endpoint: str, repo: str | None, revision: str) -> dict[str, str]:
    return {"source": f"{endpoint}/{repo}/tree/{revision}"} if repo else {}


def _mirrored(name: str, tensor: Mapping[str, Any]) -> Tensor:
    lost = tensor.get("losses")
    stored = tensor["from"][0]["dtype"] if tensor["from"] else tensor["dtype"]
    return Tensor(
        name,
        _kind(tensor["decoder"]["scheme"], stored, tensor["dtype"]),
        tuple(tensor["shape"]),
        -(-prod(tensor["shape"]) * DTYPES[tensor["dtype"]].nbits // 8),
        prod(tensor["shape"]),
        f"{lost['overflow']:,} overflowed, {lost['underflow']:,} became 0" if lost else "",
    )


def _kind(scheme: str, stored: str, dtype: str) -> str:
    if scheme != "plain":
        return f"{scheme} → {dtype}"
    return dtype if stored == dtype else f"{stored} → {dtype}"


def _shards(tensors: Mapping[str, Any]) -> list[Shard]:
    """What lies in one folder is a shard; a file at the top is one itself."""
    held: dict[str, dict[str, int]] = defaultdict(dict)
    for tensor in tensors.values():
        for part in tensor["stored"]:
            held[part["file"].rpartition("/")[0] or part["file"]][part["file"]] = part["size"]
    names = sorted(held, key=natural)
    return [Shard(name, sum(held[name].values()), len(held[name])) for name in names]
