"""Config groups: which of a configuration's quantization schemes applies to a module.

compressed-tensors writes `config_groups: {name: {targets, weights, format?}}`. A target is an exact module
name, "re:" and a regular expression that matches from the name's start, or a class name such as `Linear`;
the more exact one wins, in this order. Names in a checkpoint may carry another prefix than the model that was
quantized, so a target that matches behind any dot counts too, after those that match as they stand. Class
names can't be seen in a checkpoint: such groups are told apart by shapes. Where no target matches, all groups
are asked. The caller says what a group would mean for its module; readings must come out unique.

Source: compressed-tensors, `quant_config.py` and `utils/match.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tensorport_hub.core.detect.checkpoint import Checkpoint
from tensorport_hub.core.tensor import TensorSpec
from tensorport_hub.errors import CheckpointError

Reading = TypeVar("Reading")


@dataclass(frozen=True)
class Group:
    """One entry of `config_groups`: whom it targets and how their weights are quantized.

    Attributes:
        bits: of a weight; 0 where nothing is said, as for `group_size`.
        kind: "int", "float" or "".
        strategy: "tensor", "channel", "group", "block", ... or "".
        block: rows and columns that share a scale, or ().
        symmetric: None where nothing is said.
        actorder: "group", "weight", "static", ... or "".
    """

    name: str
    targets: tuple[str, ...]
    bits: int
    kind: str
    strategy: str
    group_size: int
    block: tuple[int, ...]
    symmetric: bool | None
    actorder: str
    format: str


def config_groups(checkpoint: Checkpoint) -> tuple[Group, ...]:
    """All groups that quantize weights, in the configuration's order."""
    stated = checkpoint.quantization
    groups = stated.get("config_groups")
    if isinstance(groups, Mapping):
        made = [_group(str(name), group, stated) for name, group in groups.items()]
        return tuple(group for group in made if group is not None)
    if isinstance(stated.get("bits"), int):
        weights = {"num_bits": stated["bits"], "group_size": stated.get("group_size"), "type": "int"}
        flat = _group("", {"targets": (), "weights": weights}, stated)
        return () if flat is None else (flat,)
    return ()


def _group(name: str, group: object, stated: Mapping[str, Any]) -> Group | None:
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(group, Mapping) or not isinstance(weights, Mapping):
        return None
    targets, block = group.get("targets"), weights.get("block_structure")
    if isinstance(block, str):  # "128x128", as early versions write it
        block = [int(n) for n in block.split("x") if n.isdecimal()]
    symmetric = weights.get("symmetric")
    actorder = weights.get("actorder")
    return Group(
        name=name,
        targets=tuple(str(t) for t in targets) if isinstance(targets, (list, tuple)) else (),
        bits=_size(weights.get("num_bits")),
        kind=_word(weights.get("type")),
        strategy=_word(weights.get("strategy")),
        group_size=_size(weights.get("group_size")),
        block=tuple(_size(n) for n in block) if isinstance(block, (list, tuple)) else (),
        symmetric=symmetric if isinstance(symmetric, bool) else None,
        actorder="group" if actorder is True else _word(actorder),
        format=_word(group.get("format")) or _word(stated.get("format")),
    )


def _size(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _word(value: object) -> str:
    return value.lower() if isinstance(value, str) else ""


def resolve(
    module: str,
    checkpoint: Checkpoint,
    read: Callable[[Group], Reading | None],
    *,
    of: TensorSpec,
) -> Reading | None:
    """What the configuration says of `module`.

    Args:
        module: its name, without `.weight`.
        read: what a group would mean for the module's stored tensors; None where it doesn't fit them.
            Readings are compared by equality.
        of: the tensor that errors name.

    Returns:
        The only reading of the closest groups; None where there are no groups.

    Raises:
        CheckpointError: none of the closest groups fits, or they give more than one reading.
    """
    tiers = list(_tiers(module, config_groups(checkpoint)))
    for closest, tier in tiers:
        readings = {reading: group for group in tier if (reading := read(group)) is not None}
        if len(readings) == 1:
            return next(iter(readings))
        if len(readings) > 1:
            names = ", ".join(f"`{group.name}`" for group in readings.values())
            raise CheckpointError(f"{of}: config groups {names} fit it in different ways")
        if closest:
            break
    if tiers:
        said = "; ".join(f"`{g.name}` says {_said(g)}" for _, tier in tiers[:1] for g in tier)
        raise CheckpointError(f"{of}: shapes don't fit what the configuration says: {said}")
    return None


def _said(group: Group) -> str:
    size = f", groups of {group.group_size}" if group.group_size else ""
    shared = f", one scale a {group.strategy}" if group.strategy and not size else ""
    return f"{group.bits or '?'} bits{size}{shared}"


def _tiers(module: str, groups: Sequence[Group]) -> Iterator[tuple[bool, list[Group]]]:
    """Groups that may apply, the closest first; and whether a name said so, which rules out later ones."""
    behind = [module[i + 1 :] for i, char in enumerate(module) if char == "."]
    for names in ([module], behind):
        for tier in (
            [g for g in groups if any(t in names for t in g.targets)],
            [g for g in groups if any(_matches(t, names) for t in g.targets)],
        ):
            if tier:
                yield True, tier
    by_class = [g for g in groups if any("." not in t and not t.startswith("re:") for t in g.targets)]
    if by_class:
        yield False, by_class
    if groups:
        yield False, list(groups)


def _matches(target: str, names: Sequence[str]) -> bool:
    if not target.startswith("re:"):
        return False
    try:
        pattern = re.compile(target.removeprefix("re:"))
    except re.error:
        return False
    return any(pattern.match(name) for name in names)
