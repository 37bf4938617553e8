"""manifest.json: what was made, from which bytes, by which decoding; the authority over every name.

`tensorport.manifest/1`; its JSON Schema is `tensorport_hub/manifest.schema.json`. Compact JSON with a fixed
key order. From it alone, together with the source commit, every output byte can be made again: each tensor
names the stored byte ranges (`from`, files by number), the decoder, and the files its rows went to; where a
file holds several tensors, also the byte at which these rows begin. Nothing in it depends on the clock, the
machine, the destination, or how the run went.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tensorport_hub.core.decode.cast import Losses
from tensorport_hub.core.digest import blob_oid, pointer_oid
from tensorport_hub.core.encode.table import ENCODINGS
from tensorport_hub.core.layout import OutFile, Piece, frame, is_swapped
from tensorport_hub.core.plan import Plan, dumps
from tensorport_hub.core.recipe import Recipe
from tensorport_hub.core.tensor import shorten
from tensorport_hub.errors import VerificationError

SCHEMA = "tensorport.manifest/1"
PATH = "manifest.json"
LARGEST = 1 << 29
"""Bytes that a manifest may have: that of 240,000 tensors takes about a third."""


@dataclass(frozen=True)
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
    numbers = {file.path: i for i, file in enumerate(plan.files)}
    stored: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for file, entry in zip(plan.outputs, weights, strict=True):
        for piece, place in _places(plan, file, entry):
            stored[piece.recipe].append(place)
    manifest: dict[str, Any] = {
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
        "tensors": {
            recipe.name: _tensor(recipe, stored[i], numbers, losses.get(i))
            for i, recipe in enumerate(plan.recipes)
        },
        "files": [asdict(entry) for entry in sorted([*weights, *small], key=lambda e: e.path)],
        "skipped": dict(plan.skipped),
    }
    if plan.packed:
        manifest["packed"] = dict(plan.packed)
    if original_config is not None:
        manifest["original_config"] = original_config
    return dumps(manifest) + b"\n"


def _source_file(path: str, size: int, stated: str | None, read: str | None) -> dict[str, Any]:
    verified = "whole" if read else "ranges" if stated else "no"
    return {"path": path, "size": size, "sha256": stated or read, "verified": verified}


def _places(plan: Plan, file: OutFile, entry: FileEntry) -> Iterator[tuple[Piece, dict[str, Any]]]:
    """Where each piece of a file stands in it; a .npy file needs no telling."""
    made = frame(plan.recipes, file)
    for segment, offset in zip(made.segments, made.offsets, strict=True):
        piece = file.pieces[segment.entry]
        rows = [piece.rows[0] + row for row in segment.rows]
        place = {"file": entry.path, "sha256": entry.sha256, "size": entry.size, "rows": rows}
        if ENCODINGS[file.format].container:
            place["offset"] = offset
        if is_swapped(plan.recipes[piece.recipe], file.format):
            place["swapped"] = True
        if len(plan.options.formats) > 1:
            place["format"] = file.format
        yield piece, place


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


def parse(data: bytes) -> dict[str, Any]:
    """A manifest read back.

    Raises:
        VerificationError: it is no manifest, or one of a version that this tool does not know.
    """
    try:
        value = json.loads(data, object_pairs_hook=_unique)
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


def is_mirror(data: bytes) -> bool:
    """Whether a `manifest.json` is one of ours, of any version."""
    schema = _anything(data).get("schema")
    return isinstance(schema, str) and schema.startswith("tensorport.manifest/")


def listed_files(data: bytes) -> frozenset[str] | None:
    """The paths that a manifest of ours lists; None where it is not one of ours."""
    if not is_mirror(data):
        return None
    files = _anything(data).get("files")
    entries = [entry for entry in files if isinstance(entry, dict)] if isinstance(files, list) else []
    return frozenset(entry["path"] for entry in entries if isinstance(entry.get("path"), str))


def _anything(data: bytes) -> dict[str, Any]:
    """A JSON object of unknown origin; empty where it is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
