"""What a mirror holds besides weights: carried files, configuration, index, card and manifest.

All of it follows from the source, the plan, and what the run learned; so it is made here for whoever
publishes it, and again for whoever verifies it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from tensorport_hub.core import card, manifest, model_config
from tensorport_hub.core.decode.cast import Losses
from tensorport_hub.core.layout import safetensors_index
from tensorport_hub.core.plan import Plan
from tensorport_hub.core.selection import QUANTIZATION_CONFIGS, is_licence
from tensorport_hub.ports import Receipt, Source
from tensorport_hub.survey import Survey, read_small


def small_paths(plan: Plan, survey: Survey) -> list[str]:
    """Where every file but the weights will lie."""
    carried = [path for carried in survey.carried for path in _places(plan, carried.path)]
    index = safetensors_index(plan.recipes, plan.outputs)
    return [*carried, *index, card.PATH, manifest.PATH]


def small_files(
    plan: Plan, survey: Survey, source: Source, *, losses: Mapping[int, Losses]
) -> dict[str, bytes]:
    """Every file but the weights and the manifest, by path.

    Args:
        losses: recipe number -> what rounding cost, where it cost anything.
    """
    decoded = plan.decodes
    files: dict[str, bytes] = {}
    for carried in survey.carried:
        if decoded and carried.path in QUANTIZATION_CONFIGS:
            continue
        data = read_small(source, carried.file)
        if decoded and carried.path == model_config.PATH:
            data = model_config.without_quantization(survey.config)
        files |= dict.fromkeys(_places(plan, carried.path), data)
    files |= safetensors_index(plan.recipes, plan.outputs)
    files[card.PATH] = card.build(plan, source_card=survey.card, losses=losses)
    return dict(sorted(files.items()))


def whole_manifest(
    plan: Plan,
    survey: Survey,
    *,
    receipts: Sequence[Receipt],
    small: Mapping[str, bytes],
    digests: Mapping[str, str | None],
    losses: Mapping[int, Losses],
) -> bytes:
    """The manifest of these files.

    Args:
        receipts: one a file of weights, in plan order.
        small: the other files.
        digests: source file -> sha256 where it was read whole, else None.
        losses: as `small_files`.
    """
    return manifest.build(
        plan,
        weights=[manifest.weight_entry(r.path, r.size, r.sha256) for r in receipts],
        small=[
            manifest.small_entry(path, data, hashlib.sha256(data).hexdigest()) for path, data in small.items()
        ],
        digests=digests,
        losses=losses,
        original_config=survey.config_text if plan.decodes else None,
    )


def _places(plan: Plan, path: str) -> list[str]:
    """Where a small file goes: beside the weights of each format; licences stand at the top as well."""
    formats = plan.options.formats
    if len(formats) == 1:
        return [path]
    return [*([path] if is_licence(path) else []), *(f"{form}/{path}" for form in formats)]
