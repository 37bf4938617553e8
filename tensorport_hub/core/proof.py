"""What a mirror must be, held against what is there: every difference, by name.

Nothing is downloaded for it: a Hub states size and sha256 of LFS files and the git blob id of regular ones,
and the manifest knows all three of each. A file that is stored the other way than the manifest expects is
compared by what both sides know.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tensorport_hub.core import manifest
from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.layout import OutFile, Piece
from tensorport_hub.core.manifest import FileEntry
from tensorport_hub.core.mirror import Mirror
from tensorport_hub.core.plan import Plan
from tensorport_hub.core.recipe import Recipe

UNLISTED = frozenset({manifest.PATH, ".gitattributes"})
"""Files of a mirror that its manifest does not list: itself, and what the Hub adds."""


_OF_ALL_VERSIONS = ("shape", "rows of the decoder", "stored tensors")
"""What every version makes of the same source."""


@dataclass(frozen=True)
class Fault:
    """One thing that is not as it must be: what it is about (a file, a tensor), and what is wrong."""

    what: str
    message: str


def check_files(mirror: Mirror, found: Sequence[SourceFile]) -> list[Fault]:
    """Compare the manifest with a listing: sizes and digests, missing and unlisted files."""
    there = {file.path: file for file in found}
    faults = [
        fault
        for path, entry in sorted(mirror.files.items())
        if (fault := check_file(entry, there.get(path))) is not None
    ]
    faults += [
        Fault(path, "is there, but the manifest does not list it")
        for path in sorted(there.keys() - mirror.files.keys() - UNLISTED)
    ]
    return faults


def check_file(entry: FileEntry, found: SourceFile | None) -> Fault | None:
    """Compare one file with what a listing says of it; None where nothing differs."""
    if found is None:
        return Fault(entry.path, "is missing")
    if found.size != entry.size:
        return Fault(entry.path, f"has the wrong size: expected {entry.size} bytes, got {found.size}")
    if found.sha256 is not None and found.sha256 != entry.sha256:
        return Fault(entry.path, f"has the wrong sha256: expected {entry.sha256}, got {found.sha256}")
    if found.sha256 is None and found.git_oid is not None and found.git_oid != entry.git_oid:
        return Fault(entry.path, f"has the wrong git id: expected {entry.git_oid}, got {found.git_oid}")
    return None


def check_totals(mirror: Mirror) -> list[Fault]:
    """Compare the manifest's totals with its tensors."""
    plan = mirror.plan
    true = {
        "tensors": len(plan.recipes),
        "parameters": plan.parameters,
        "bytes": plan.bytes_out,
        "shards": plan.shards,
    }
    stated = mirror.text.get("totals")
    return [
        Fault(manifest.PATH, f"states the wrong total of {key}: expected {value}, got {stated.get(key)}")
        for key, value in true.items()
        if isinstance(stated, dict) and stated.get(key) != value
    ]


def check_sources(mirror: Mirror, found: Sequence[SourceFile]) -> list[Fault]:
    """Compare what the manifest says of the source's files with what the source says itself."""
    there = {file.path: file for file in found}
    faults = []
    for file in mirror.plan.files:
        now, stated = there.get(file.path), mirror.digests[file.path]
        if now is None:
            faults.append(Fault(file.path, "of the source is missing"))
        elif now.size != file.size:
            faults.append(Fault(file.path, f"of the source: expected {file.size} bytes, got {now.size}"))
        elif now.sha256 is not None and now.sha256 != stated:
            faults.append(Fault(file.path, f"of the source: expected sha256 {stated}, got {now.sha256}"))
    return faults


def check_digests(mirror: Mirror, read: Mapping[str, str | None]) -> list[Fault]:
    """Compare the digests of source files that were read whole with the manifest's."""
    return [
        Fault(path, f"of the source holds other bytes: expected sha256 {mirror.digests[path]}, got {sha256}")
        for path, sha256 in sorted(read.items())
        if sha256 is not None and mirror.digests[path] not in (None, sha256)
    ]


def check_state(mirror: Mirror, fresh: Plan) -> list[Fault]:
    """Compare the commit (of a folder: the digest of its headers) with the manifest's."""
    if fresh.commit == mirror.plan.commit:
        return []
    return [Fault("source", f"is at another state: expected {mirror.plan.commit}, got {fresh.commit}")]


def check_plan(mirror: Mirror, fresh: Plan) -> list[Fault]:
    """Compare the manifest with what this tool makes of the same source and options.

    What a tensor is made from is compared whatever version the manifest names, since it says so itself; how
    it is decoded, and into which files it is cut, is another version's own.
    """
    told = {recipe.name: _told(recipe, pieces) for recipe, pieces in _by_recipe(mirror.plan)}
    true = {recipe.name: _told(recipe, pieces) for recipe, pieces in _by_recipe(fresh)}
    same_version = fresh.version == mirror.plan.version
    faults = [
        Fault(name, f"{key}: the manifest says {told[name][key]}, the source makes it {true[name][key]}")
        for name in sorted(told.keys() & true.keys())
        for key in true[name]
        if told[name][key] != true[name][key] and (same_version or key in _OF_ALL_VERSIONS)
    ]
    faults += [
        Fault(name, "is in the manifest, but not in the source") for name in sorted(told.keys() - true)
    ]
    faults += [
        Fault(name, "is in the source, but not in the manifest") for name in sorted(true.keys() - told)
    ]
    return faults


def check_small(mirror: Mirror, small: Mapping[str, bytes], large: Sequence[FileEntry] = ()) -> list[Fault]:
    """Compare the files that are no weights with what they must be: those, and no others."""
    faults = []
    true = {path: hashlib.sha256(data).hexdigest() for path, data in small.items()}
    true |= {entry.path: entry.sha256 for entry in large}
    for path, sha256 in sorted(true.items()):
        entry = mirror.files.get(path)
        if entry is None:
            faults.append(Fault(path, "is missing: the source has it"))
        elif entry.sha256 != sha256:
            faults.append(
                Fault(path, f"is not what the source makes: expected sha256 {sha256}, got {entry.sha256}")
            )
    weights = {file.path for file in mirror.plan.outputs}
    faults += [
        Fault(path, "is in the manifest, but not in the source")
        for path in sorted(mirror.files.keys() - weights - true.keys())
    ]
    return faults


def check_text(mirror: Mirror, built: bytes) -> list[Fault]:
    """Compare the manifest with the one that a run makes, field by field."""
    true: Mapping[str, Any] = json.loads(built)
    return [
        Fault(manifest.PATH, f"states another `{key}` than a run does")
        for key in sorted(true.keys() | mirror.text.keys())
        if true.get(key) != mirror.text.get(key)
    ]


def is_of(mirror: Mirror, plan: Plan) -> bool:
    """Whether a mirror is what `plan` makes, by whatever version of this tool; never of a folder."""
    return plan.repo is not None and is_like(mirror, plan)


def is_like(mirror: Mirror, plan: Plan) -> bool:
    """As `is_of`, but a folder counts as the same one where its headers are the same."""
    there = mirror.plan
    return (there.repo, there.commit, there.options) == (plan.repo, plan.commit, plan.options)


def _by_recipe(plan: Plan) -> Iterator[tuple[Recipe, list[tuple[OutFile, Piece]]]]:
    pieces: dict[int, list[tuple[OutFile, Piece]]] = defaultdict(list)
    for file in plan.outputs:
        for piece in file.pieces:
            pieces[piece.recipe].append((file, piece))
    for number, recipe in enumerate(plan.recipes):
        yield recipe, pieces[number]


def _told(recipe: Recipe, pieces: Sequence[tuple[OutFile, Piece]]) -> Mapping[str, Any]:
    decoder = recipe.decoder
    return {
        "dtype": recipe.dtype.name,
        "shape": list(recipe.shape),
        "decoder": {"scheme": decoder.scheme, **decoder.params},
        "rows of the decoder": (recipe.every, recipe.swapped),
        "stored tensors": [(t.name, t.dtype.name, t.shape, t.file, t.start, t.stop) for t in decoder.inputs],
        "files": [(file.path, file.size, piece.rows) for file, piece in pieces],
    }
