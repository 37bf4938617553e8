"""manifest.json: what was made, from which bytes, by which decoding; the authority over every name.

`tensorport.manifest/1`; its JSON Schema is `tensorport_hub/manifest.schema.json`. Compact JSON with a fixed
key order. From it alone, together with the source commit, every output byte can be made again: each tensor
names the stored byte ranges (`from`, files by number), the decoder, and the files its rows went to; where a
file holds several tensors, also the byte at which these rows begin. Nothing in it depends on the clock, the
machine, the destination, or how the run went.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from tensorport_hub.core.decode.cast import Losses
from tensorport_hub.core.digest import blob_oid, parse_pointer, pointer_oid
from tensorport_hub.core.encode.table import ENCODINGS
from tensorport_hub.core.layout import OutFile, Piece, frame, is_swapped
from tensorport_hub.core.plan import Plan, dumps
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.recipe import Recipe
from tensorport_hub.core.tensor import shorten
from tensorport_hub.errors import VerificationError

SCHEMA = "tensorport.manifest/1"
PATH = "manifest.json"
_BEGINS = re.compile(rb'\s*\{\s*"schema"\s*:\s*"tensorport\.manifest/')
LARGEST = 1 << 29
"""Bytes that a manifest may have: that of 240,000 tensors takes about a third."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the mirror. `git_oid` is the blob that git stores: of the content, or of the LFS pointer."""

    path: str
    size: int
    sha256: str
    git_oid: str


def weight_entry(path: str, size: int, sha256: str) -> FileEntry:
    """Weights are always LFS files."""
    return FileEntry(path, size, sha256, pointer_oid(sha256, size))


def small_entry(path: str, content: bytes, sha256: str) -> FileEntry:
    """A file that travels with the commit, entered as a regular one."""
    return FileEntry(path, len(content), sha256, blob_oid(content))


def build(
    plan: Plan,
    *,
    weights: Sequence[FileEntry],
    small: Sequence[FileEntry],
    digests: Mapping[str, str | None],
    losses: Mapping[int, Losses],
    original_config: str | None,
) -> bytes:
    """The manifest's bytes.

    Args:
        plan: what was made.
        weights: one entry an output file, in plan order.
        small: all other files but the manifest itself.
        digests: source file -> its sha256 where it was read whole, else None.
        losses: recipe number -> what rounding cost.
        original_config: text of the source's `config.json` where the mirror's differs.
    """
    head: dict[str, Any] = {
        "schema": SCHEMA,
        "generator": {"name": "tensorport-hub", "version": plan.version},
        "source": {
            "repo": plan.repo,
            "revision": plan.commit,
            "files": [_source_file(f.path, f.size, f.sha256, digests.get(f.path)) for f in plan.files],
        },
        "format": plan.options.formats[0] if len(plan.options.formats) == 1 else [*plan.options.formats],
        "options": plan.options.to_json(),
        "totals": {
            "tensors": len(plan.recipes),
            "parameters": plan.parameters,
            "bytes": plan.bytes_out,
            "shards": plan.shards,
        },
        "skipped": dict(plan.skipped),
    }
    if plan.packed:
        head["packed"] = dict(plan.packed)
    if original_config is not None:
        head["original_config"] = original_config
    files = sorted([*weights, *small], key=lambda entry: entry.path)
    long: dict[str, Iterable[bytes]] = {
        "files": _joined(b"[", (dumps(_file(entry)) for entry in files), b"]"),
        "tensors": _joined(b"{", _tensors(plan, weights, losses), b"}"),
    }
    made = BytesIO()
    for name in sorted([*head, *long]):
        made.write((b"," if made.tell() else b"{") + dumps(name) + b":")
        made.writelines(long.get(name, [dumps(head.get(name))]))
    made.write(b"}\n")
    return made.getvalue()


def _joined(first: bytes, values: Iterable[bytes], last: bytes) -> Iterator[bytes]:
    """JSON of an array or object, value by value: as Python's objects it would take many times the room."""
    yield first
    for number, value in enumerate(values):
        yield b"," + value if number else value
    yield last


def _file(entry: FileEntry) -> dict[str, Any]:
    return {"path": entry.path, "size": entry.size, "sha256": entry.sha256, "git_oid": entry.git_oid}


def _tensors(plan: Plan, weights: Sequence[FileEntry], losses: Mapping[int, Losses]) -> Iterator[bytes]:
    """The members of `tensors`, by name."""
    numbers = {file.path: i for i, file in enumerate(plan.files)}
    stored: dict[int, list[tuple[int, Range, int]]] = defaultdict(list)
    for file in plan.outputs:
        for piece, rows, offset in _places(plan, file):
            stored[piece.recipe].append((file.index, rows, offset))
    for i, recipe in sorted(enumerate(plan.recipes), key=lambda pair: pair[1].name):
        found = stored.pop(i, [])
        places = [_place(plan, recipe, plan.outputs[f], weights[f], rows, at) for f, rows, at in found]
        yield dumps(recipe.name) + b":" + dumps(_tensor(recipe, places, numbers, losses.get(i)))


def _source_file(path: str, size: int, stated: str | None, read: str | None) -> dict[str, Any]:
    verified = "whole" if read else "ranges" if stated else "no"
    return {"path": path, "size": size, "sha256": stated or read, "verified": verified}


def _places(plan: Plan, file: OutFile) -> Iterator[tuple[Piece, Range, int]]:
    """Which rows of each piece of a file stand in it, and where their data begins."""
    made = frame(plan.recipes, file)
    for segment, offset in zip(made.segments, made.offsets, strict=True):
        piece = file.pieces[segment.entry]
        first, last = segment.rows
        yield piece, (piece.rows[0] + first, piece.rows[0] + last), offset


def _place(
    plan: Plan, recipe: Recipe, file: OutFile, entry: FileEntry, rows: Range, offset: int
) -> dict[str, Any]:
    """The same as the manifest says it; a .npy file needs no telling where."""
    place = {"file": entry.path, "sha256": entry.sha256, "size": entry.size, "rows": [*rows]}
    if ENCODINGS[file.format].container:
        place["offset"] = offset
    if is_swapped(recipe, file.format):
        place["swapped"] = True
    if len(plan.options.formats) > 1:
        place["format"] = file.format
    return place


def _tensor(
    recipe: Recipe, stored: Sequence[Mapping[str, Any]], numbers: Mapping[str, int], lost: Losses | None
) -> dict[str, Any]:
    decoder: dict[str, Any] = {"scheme": recipe.decoder.scheme, **recipe.decoder.params}
    if recipe.casts:
        decoder["dtype"] = recipe.decoder.dtype.name
    if recipe.every is not None:
        decoder["every"] = [*recipe.every]
    if recipe.swapped:
        decoder["swapped"] = True
    entry: dict[str, Any] = {
        "dtype": recipe.dtype.name,
        "shape": [*recipe.shape],
        "stored": stored,
        "from": [
            {
                "tensor": t.name,
                "file": numbers[t.file],
                "start": t.start,
                "stop": t.stop,
                "dtype": t.dtype.name,
                "shape": [*t.shape],
            }
            for t in recipe.decoder.inputs
        ],
        "decoder": decoder,
    }
    if lost is not None:
        entry["losses"] = {"overflow": lost.overflow, "underflow": lost.underflow}
    return entry


def text(value: Mapping[str, Any]) -> bytes:
    """A manifest's JSON values as its bytes."""
    return dumps(value) + b"\n"


def check_size(nbytes: int) -> None:
    """To be asked before a manifest is read: all of it comes into memory.

    Raises:
        VerificationError: it is too large to be one.
    """
    if nbytes > LARGEST:
        raise VerificationError(f"`{PATH}` is too large: expected at most {LARGEST} bytes, got {nbytes}")


def parse(data: bytes) -> dict[str, Any]:
    """A manifest read back.

    Raises:
        VerificationError: it is no manifest, or one of a version that this tool does not know.
    """
    if parse_pointer(data) is not None:
        raise VerificationError(f"`{PATH}` is only a git-LFS pointer", hint="`git lfs pull` gets the file")
    try:
        value = json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise VerificationError(f"`{PATH}` is no JSON: {error}") from None
    found = value.get("schema") if isinstance(value, dict) else None
    if found != SCHEMA:
        got = shorten(found) if isinstance(found, str) else type(found).__name__
        raise VerificationError(
            f"`{PATH}` is of a version that this tool does not know: expected `{SCHEMA}`, got `{got}`",
            hint="a newer tensorport-hub may read it",
        )
    assert isinstance(value, dict)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; two readers could choose different ones of two equal keys."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("an object names a key twice")
    return made


def _refuse(word: str) -> None:
    raise ValueError(f"`{word}` is no number")


def is_mirror(data: bytes) -> bool:
    """Whether a `manifest.json` is one of ours, of any version."""
    schema = _anything(data).get("schema")
    return isinstance(schema, str) and schema.startswith("tensorport.manifest/")


def begins_mirror(begins: bytes) -> bool:
    """The same of a `manifest.json` that may be cut: those that we write begin with their schema."""
    return _BEGINS.match(begins) is not None or is_mirror(begins)


def listed_files(data: bytes) -> frozenset[str] | None:
    """The paths that a manifest of ours lists; None where it is not one of ours."""
    if not is_mirror(data):
        return None
    files = _anything(data).get("files")
    entries = [entry for entry in files if isinstance(entry, dict)] if isinstance(files, list) else []
    return frozenset(entry["path"] for entry in entries if isinstance(entry.get("path"), str))


def source_repo(data: bytes) -> str | None:
    """The repository that a manifest of ours, of any version, was made of; "" where that was a folder.

    None where it does not say.
    """
    source = _anything(data).get("source")
    repo = source.get("repo", 0) if isinstance(source, dict) else 0
    return "" if repo is None else repo if isinstance(repo, str) else None


def _anything(data: bytes) -> dict[str, Any]:
    """A JSON object of unknown origin; empty where it is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
