"""What a mirror that stands at the destination has in common with the one that a plan makes.

A tensor need not be made again where the same version of this tool made it of the same bytes by the same
rules: its decoder and dtype are equal, its inputs lie at the same offsets of source files with the same
sha256, its rows are cut alike, and rounding is treated alike. What its files are called does not matter: they
can be listed under another name. A source file that was proven whole is proven as long as its sha256 is the
same.

The standing manifest is believed here, as it is by whoever loads the mirror; `verify --against-source` is
what checks it, and `--restart` what does without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tensorport_hub.core.journal import MadePart, Progress
from tensorport_hub.core.mirror import Mirror
from tensorport_hub.core.plan import Part, Plan
from tensorport_hub.core.recipe import Recipe

_RULES = ("precision", "quantized", "on_overflow", "on_underflow")
"""Options that decide a value, or whether a lost one is accepted."""


def inherited(plan: Plan, standing: Mirror) -> Progress:
    """Parts that need not be made, and source files that need not be read, because `standing` has them.

    Whether it really holds them is for the sink to say.
    """
    old = standing.plan
    if old.version != plan.version or any(_rule(plan, name) != _rule(old, name) for name in _RULES):
        return Progress()
    there = {old.recipes[parts[0].recipe].name: parts for parts in _by_recipe(old)}
    digests = {file.path: file.sha256 for file in plan.files}
    found: dict[int, MadePart] = {}
    for parts in _by_recipe(plan):
        recipe = plan.recipes[parts[0].recipe]
        before = there.get(recipe.name)
        if before is None or [part.rows for part in before] != [part.rows for part in parts]:
            continue
        made = _made(recipe, digests)
        if made is None or made != _made(old.recipes[before[0].recipe], standing.digests):
            continue
        losses = standing.losses.get(recipe.name, (0, 0))
        for part, held in zip(parts, before, strict=True):
            found[part.index] = MadePart(part.index, part.size, standing.weights[held.index].sha256, *losses)
            losses = (0, 0)  # a tensor's are counted once, with its first part
    whole = {standing.digests[path] for path, how in standing.verified.items() if how == "whole"}
    files = {path: digest for path, digest in digests.items() if digest in whole and path in plan.read_whole}
    return Progress(found, {path: digest for path, digest in files.items() if digest is not None})


def _rule(plan: Plan, name: str) -> object:
    return getattr(plan.options, name)


def _by_recipe(plan: Plan) -> Sequence[Sequence[Part]]:
    parts: dict[int, list[Part]] = {}
    for part in plan.parts:
        parts.setdefault(part.recipe, []).append(part)
    return list(parts.values())


def _made(recipe: Recipe, digests: Mapping[str, str | None]) -> Any:
    """Everything that decides a tensor's bytes; None where its source states no digest."""
    decoder = recipe.decoder
    inputs = [(t.name, t.dtype, t.shape, digests[t.file], t.start, t.stop) for t in decoder.inputs]
    if any(digest is None for _, _, _, digest, _, _ in inputs):
        return None
    return recipe.dtype, recipe.shape, decoder.scheme, dict(decoder.params), inputs
