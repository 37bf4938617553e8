"""What a mirror holds besides weights: carried files, configuration, index, card and manifest.

All of it follows from the source, the plan, and what the run learned; so it is made here for whoever
publishes it, and again for whoever verifies it.

A carried file of up to `HELD` bytes is held, since a commit takes it in its own text; what is larger is an
LFS file wherever there is one, and passes block by block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from tensorport_hub.core import card, manifest, model_config
from tensorport_hub.core.decode.cast import Losses
from tensorport_hub.core.digest import SourceFile, blob_digest
from tensorport_hub.core.layout import safetensors_index
from tensorport_hub.core.manifest import FileEntry
from tensorport_hub.core.plan import Plan
from tensorport_hub.core.selection import QUANTIZATION_CONFIGS, is_licence
from tensorport_hub.ports import Receipt, Source
from tensorport_hub.survey import Carried, Survey
from tensorport_hub.texts import read_blocks, read_small

HELD = 10_000_000
"""Bytes of the largest file that the Hub takes in a commit itself."""


def small_paths(plan: Plan, survey: Survey) -> list[str]:
    """Where every file but the weights will lie."""
    carried = [path for carried in survey.carried for path in _places(plan, carried.path)]
    index = safetensors_index(plan.recipes, plan.outputs)
    return [*carried, *index, card.PATH, manifest.PATH]


def small_files(
    plan: Plan, survey: Survey, source: Source, *, losses: Mapping[int, Losses]
) -> dict[str, bytes]:
    """Every file but the weights, the manifest and what `large_files` names, by path.

    Args:
        losses: recipe number -> what rounding cost, where it cost anything.
    """
    files: dict[str, bytes] = {}
    for carried in _carried(plan, survey):
        if carried.file.size <= HELD:
            data = read_small(source, carried.file)
            if plan.decodes and carried.path == model_config.PATH:
                data = model_config.without_quantization(survey.config)
            files |= dict.fromkeys(_places(plan, carried.path), data)
    files |= safetensors_index(plan.recipes, plan.outputs)
    files[card.PATH] = card.build(plan, source_card=survey.card, losses=losses)
    return dict(sorted(files.items()))


def large_files(plan: Plan, survey: Survey) -> dict[str, SourceFile]:
    """The carried files that are not held, by path."""
    return {
        path: carried.file
        for carried in _carried(plan, survey)
        if carried.file.size > HELD
        for path in _places(plan, carried.path)
    }


def held_nbytes(plan: Plan, survey: Survey) -> int:
    """Bytes of the carried files that are held, each as often as a commit names it."""
    held = [carried for carried in _carried(plan, survey) if carried.file.size <= HELD]
    return sum(carried.file.size * len(_places(plan, carried.path)) for carried in held)


def carry(source: Source, file: SourceFile, path: str, write: Callable[[memoryview], object]) -> FileEntry:
    """Hand a large carried file on, and what the manifest says of it.

    Raises:
        VerificationError: after the last block: it is not what the source states.
    """
    sha256, blob = hashlib.sha256(), blob_digest(file.size)
    for block in read_blocks(source, file):
        sha256.update(block)
        blob.update(block)
        write(block)
    return FileEntry(path, file.size, sha256.hexdigest(), blob.hexdigest())


def large_entries(plan: Plan, survey: Survey, source: Source) -> list[FileEntry]:
    """What `carry` finds of them."""
    return [carry(source, file, path, len) for path, file in large_files(plan, survey).items()]


def whole_manifest(
    plan: Plan,
    survey: Survey,
    *,
    receipts: Sequence[Receipt],
    small: Mapping[str, bytes],
    large: Sequence[FileEntry],
    digests: Mapping[str, str | None],
    losses: Mapping[int, Losses],
) -> bytes:
    """The manifest of these files.

    Args:
        receipts: one a file of weights, in plan order.
        small: the other files but the large ones.
        large: those, as `carry` found them.
        digests: source file -> sha256 where it was read whole, else None.
        losses: as `small_files`.
    """
    entries = [
        manifest.small_entry(path, data, hashlib.sha256(data).hexdigest()) for path, data in small.items()
    ]
    return manifest.build(
        plan,
        weights=[manifest.weight_entry(r.path, r.size, r.sha256) for r in receipts],
        small=sorted([*entries, *large], key=lambda entry: entry.path),
        digests=digests,
        losses=losses,
        original_config=survey.config_text if plan.decodes else None,
    )


def _carried(plan: Plan, survey: Survey) -> Iterator[Carried]:
    """What travels: where weights were decoded, nothing that says how they were packed."""
    for carried in survey.carried:
        if not (plan.decodes and carried.path in QUANTIZATION_CONFIGS):
            yield carried


def _places(plan: Plan, path: str) -> list[str]:
    """Where a small file goes: beside the weights of each format; licences stand at the top as well."""
    formats = plan.options.formats
    if len(formats) == 1:
        return [path]
    return [*([path] if is_licence(path) else []), *(f"{form}/{path}" for form in formats)]
