"""`--experts stacked`: every layer's experts as one tensor a projection, gate and up apart.

gpt-oss packs all experts of a layer as [E, out, in], rows of gate and up interleaved (gate 0::2, up 1::2),
biases too; where its experts are stored dense, they have transformers' orientation [E, in, out], interleaved
on the last axis. Both come out as `gate_proj`, `up_proj` and `down_proj` [E, out, in].

Checkpoints that store experts one by one (`X.experts.N.REST`: Mixtral, Qwen-MoE, DeepSeek, Kimi) give
`X.experts.REST` [E, ...] in expert order. How many there must be is what `config.json` says, and at least as
many as any layer has.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tensorport_hub.core.decode.stacked import Stacked
from tensorport_hub.core.recipe import Recipe
from tensorport_hub.core.tensor import shorten
from tensorport_hub.errors import CheckpointError, gather

_ONE = re.compile(r"(?P<stem>.+\.experts)\.(?P<number>0|[1-9]\d{0,5})\.(?P<rest>.+)", re.DOTALL)
_FUSED = re.compile(r"(?P<stem>.+\.experts)\.(?P<which>gate_up_proj|down_proj)(?P<bias>_bias)?", re.DOTALL)
_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_MOST = 1 << 16
_NAMED = 100
"""Missing experts of one projection that are named: a hostile number would make millions."""

Found = re.Match[str]


def stack_experts(recipes: Sequence[Recipe], config: Mapping[str, Any]) -> tuple[Recipe, ...]:
    """The recipes, with experts stacked; all else as it is.

    Raises:
        CheckpointError: experts are missing or of another shape, or a layout is not known; all are named.
    """
    singles = {recipe.name: one for recipe in recipes if (one := _ONE.fullmatch(recipe.name))}
    fused = {recipe.name: all_ for recipe in recipes if (all_ := _FUSED.fullmatch(recipe.name))}
    groups: dict[tuple[str, str], dict[int, Recipe]] = defaultdict(dict)
    for recipe in recipes:
        if (one := singles.get(recipe.name)) is not None:
            groups[one["stem"], one["rest"]][int(one["number"])] = recipe
    count = max([_stated(config), *(max(found) + 1 for found in groups.values())])
    packed = {fused[r.name]["stem"] for r in recipes if r.name in fused and _is_packed(r)}
    made: list[Recipe] = []
    problems: list[str] = []
    for recipe in recipes:
        try:
            if (one := singles.get(recipe.name)) is not None:
                group = groups[one["stem"], one["rest"]]
                made += [_stacked(one, group, count)] if recipe is group[min(group)] else []
            elif (found := fused.get(recipe.name)) is not None:
                ours = found["stem"] in packed or config.get("model_type") == "gpt_oss"
                made += _apart(recipe, found, config, ours=ours)
            else:
                made.append(recipe)
        except CheckpointError as error:
            problems += error.message.splitlines()
    counts = Counter(recipe.name for recipe in made)
    twice = [name for name, times in counts.items() if times > 1]
    problems += [f"experts would be stacked as `{shorten(n)}`, which is stored too" for n in twice]
    if problems:
        raise gather(CheckpointError, problems, hint="`--experts source` leaves them as they are stored")
    return tuple(made)


def _stated(config: Mapping[str, Any]) -> int:
    """How many experts a configuration says that a layer has; 0 where it says nothing."""
    inner = config.get("text_config")
    places = [config, inner] if isinstance(inner, Mapping) else [config]
    found = [place.get(key) for place in places for key in _COUNTS]
    return max((n for n in found if type(n) is int and 0 < n < _MOST), default=0)


def _stacked(one: Found, group: Mapping[int, Recipe], count: int) -> Recipe:
    """One projection of one layer.

    Raises:
        CheckpointError: experts are missing, or not as the first one is.
    """
    first = group[min(group)]
    stem, rest = one["stem"], one["rest"]
    missing = [number for number in range(count) if number not in group]
    problems = [
        f"expert `{shorten(f'{stem}.{number}.{rest}')}` is missing: expected {count} experts"
        for number in missing[:_NAMED]
    ]
    if missing[_NAMED:]:
        problems.append(
            f"{len(missing) - _NAMED} more experts of `{shorten(f'{stem}.*.{rest}')}` are missing"
        )
    problems += [
        f"expert `{shorten(recipe.name)}` has another shape or dtype: expected {first.dtype}"
        f" {list(first.shape)} as of `{shorten(first.name)}`, got {recipe.dtype} {list(recipe.shape)}"
        for recipe in group.values()
        if (recipe.shape, recipe.dtype) != (first.shape, first.dtype)
    ]
    if problems:
        raise CheckpointError("\n".join(problems))
    return Recipe(
        f"{stem}.{rest}", Stacked(tuple(group[number].decoder for number in range(count))), first.dtype
    )


def _is_packed(recipe: Recipe) -> bool:
    """Whether a tensor is stored as only gpt-oss' are."""
    return recipe.decoder.scheme == "mxfp4" and recipe.decoder.inputs[0].name.endswith("_blocks")


def _apart(recipe: Recipe, fused: Found, config: Mapping[str, Any], *, ours: bool) -> list[Recipe]:
    """Experts that are stored together: gpt-oss', if they are `ours`.

    Raises:
        CheckpointError: it is another layout, or another model's.
    """
    packed = _is_packed(recipe)
    gate_up, bias = fused["which"] == "gate_up_proj", fused["bias"] is not None
    if not ours and not gate_up:
        return [recipe]
    shape = recipe.shape
    dense = recipe.decoder.scheme == "plain" and not recipe.dtype.packed
    known = ours and (len(shape) == 2 if bias else len(shape) == 3) and (packed or dense)
    swapped = known and not packed and not bias
    rows = shape[-1] if swapped or bias else shape[1] if known else 1
    if not known or (gate_up and rows % 2) or (swapped and not _is_transformers(fused, shape, config)):
        raise CheckpointError(
            f"experts `{shorten(recipe.name)}` ({recipe.dtype} {list(shape)}, {recipe.decoder.scheme}): only"
            " gpt-oss' layouts of experts that are stored together are known"
        )
    if not gate_up:
        return [replace(recipe, swapped=swapped)]
    stem = f"{fused['stem']}."
    return [
        replace(recipe, name=f"{stem}{name}{fused['bias'] or ''}", every=(first, 2), swapped=swapped)
        for first, name in enumerate(("gate_proj", "up_proj"))
    ]


def _is_transformers(fused: Found, shape: tuple[int, ...], config: Mapping[str, Any]) -> bool:
    """Whether dense experts have the sizes of [E, in, out]."""
    hidden, inner = config.get("hidden_size"), config.get("intermediate_size")
    if not isinstance(hidden, int) or not isinstance(inner, int):
        return False
    return shape[1:] == ((hidden, 2 * inner) if fused["which"] == "gate_up_proj" else (inner, hidden))
