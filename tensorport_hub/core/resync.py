"""What a mirror that stands at the destination has in common with the one that a plan makes.

A file need not be made again where the same version of this tool made it of the same bytes by the same rules:
its format and all that stands in it are equal, and of each tensor the decoder and dtype, the offsets of its
inputs in source files with the same sha256, how its rows are cut, and how rounding is treated. What the file
is called does not matter: it can be listed under another name. A source file that was proven whole is proven
as long as its sha256 is the same.

The standing manifest is believed here, as it is by whoever loads the mirror; `verify --against-source` is
what checks it, and `--restart` what does without.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from tensorport_hub.core.encode.table import ENCODINGS
from tensorport_hub.core.layout import OutFile
from tensorport_hub.core.mirror import Mirror
from tensorport_hub.core.plan import Plan
from tensorport_hub.core.progress import MadeFile, Progress
from tensorport_hub.core.recipe import Recipe

_RULES = ("precision", "quantized", "on_overflow", "on_underflow")
"""Options that decide a value, or whether a lost one is accepted."""


def inherited(plan: Plan, standing: Mirror) -> Progress:
    """Files that need not be made, and source files that need not be read, because `standing` has them.

    Whether it really holds them is for the sink to say.
    """
    old = standing.plan
    if old.version != plan.version or any(_rule(plan, name) != _rule(old, name) for name in _RULES):
        return Progress()
    there = {_names(old, file): (what, file) for file, what in _contents(old, standing.digests)}
    digests = {file.path: file.sha256 for file in plan.files}
    found: dict[int, MadeFile] = {}
    for file, what in _contents(plan, digests):
        before, lost = there.get(_names(plan, file)), _lost(plan, file, standing)
        if before is not None and before[0] == what and lost is not None:
            entry = standing.weights[before[1].index]
            found[file.index] = MadeFile(
                file.index, entry.size, entry.sha256, lost if any(map(any, lost)) else ()
            )
    whole = {standing.digests[path] for path, how in standing.verified.items() if how == "whole"}
    files = {path: digest for path, digest in digests.items() if digest in whole and path in plan.read_whole}
    return Progress(found, {path: digest for path, digest in files.items() if digest is not None})


def _lost(plan: Plan, file: OutFile, standing: Mirror) -> tuple[tuple[int, int], ...] | None:
    """What rounding cost each piece of a file; None where that is not known: manifests state it by tensor."""
    lost = []
    for piece in file.pieces:
        recipe = plan.recipes[piece.recipe]
        of_tensor = standing.losses.get(recipe.name, (0, 0))
        if any(of_tensor) and piece.rows != (0, recipe.stored_shape[0] if recipe.stored_shape else 1):
            return None
        lost.append(of_tensor)
    return tuple(lost)


def _rule(plan: Plan, name: str) -> object:
    return getattr(plan.options, name)


def _names(plan: Plan, file: OutFile) -> Hashable:
    """What stands in a file, by name."""
    return file.format, tuple((plan.recipes[piece.recipe].name, piece.rows) for piece in file.pieces)


def _contents(plan: Plan, digests: Mapping[str, str | None]) -> Iterator[tuple[OutFile, Any]]:
    """Everything that decides the bytes of each file; those of which not all is known are left out."""
    cuts: dict[tuple[str, int], list[Any]] = defaultdict(list)
    for file in plan.outputs:
        for piece in file.pieces:
            cuts[file.format, piece.recipe].append(piece.rows)
    made = [_made(recipe, digests) for recipe in plan.recipes]
    for file in plan.outputs:
        named = ENCODINGS[file.format].container
        pieces = [
            (
                piece.key if named else plan.recipes[piece.recipe].name,
                piece.rows,
                cuts[file.format, piece.recipe],
                made[piece.recipe],
            )
            for piece in file.pieces
        ]
        if all(what is not None for *_, what in pieces):
            yield file, (file.format, pieces)


def _made(recipe: Recipe, digests: Mapping[str, str | None]) -> Any:
    """Everything that decides a tensor's bytes; None where its source states no digest."""
    decoder = recipe.decoder
    inputs = [(t.name, t.dtype, t.shape, digests[t.file], t.start, t.stop) for t in decoder.inputs]
    if any(digest is None for _, _, _, digest, _, _ in inputs):
        return None
    view = recipe.every, recipe.swapped
    return recipe.dtype, recipe.shape, view, decoder.scheme, dict(decoder.params), inputs
