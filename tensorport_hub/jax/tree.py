"""Names and trees: `model.layers.0.mlp.weight` is `tree["model"]["layers"]["0"]["mlp"]["weight"]`.

And where each parameter goes: one sharding, a tree of them like the parameters, or a function, made into one
sharding a name. Everything that is wrong is told at once, before anything is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jax.sharding import NamedSharding, Sharding

from tensorport_hub.core.tensor import shorten
from tensorport_hub.errors import CheckpointError, UseError, gather

Tree = dict[str, Any]
"""Nested dicts with arrays as leaves."""

Shardings = Sharding | Mapping[str, Any] | Callable[[str, tuple[int, ...]], Sharding | None] | None
"""One for all, a tree like the parameters, or a function of name and shape; None: JAX's default device."""


_LISTED = 1000
"""Names that an error lists: all of a model's, as a rule."""


def nest(flat: Mapping[str, Any]) -> Tree:
    """Names split at their dots."""
    tree: Tree = {}
    for name, leaf in flat.items():
        *way, last = name.split(".")
        branch = tree
        for key in way:
            branch = branch.setdefault(key, {})
        branch[last] = leaf
    return tree


def check_names(names: Iterable[str]) -> None:
    """Refuse names of which one is a leaf where another needs a branch: `a` and `a.b`.

    Raises:
        CheckpointError: there are such; all are named.
    """
    known = set(names)
    clashes = [
        f"`{shorten(name)}` is a tensor, and a part of the name of `{shorten(longer)}`"
        for longer in sorted(known)
        for name in _prefixes(longer)
        if name in known
    ]
    if clashes:
        raise gather(
            CheckpointError, clashes, hint="`open_checkpoint` gives both; `include` chooses among them"
        )


def _prefixes(name: str) -> list[str]:
    keys = name.split(".")
    return [".".join(keys[:count]) for count in range(1, len(keys))]


def compare_names(
    wanted: Iterable[str],
    given: Iterable[str],
    kind: type[UseError] | type[CheckpointError],
    what: str,
    hint: str,
) -> None:
    """Refuse names that do not match exactly and completely.

    Raises:
        UseError, CheckpointError: (`kind`) some are missing in `given` or not in `wanted`; all are named.
    """
    names, there = set(wanted), set(given)
    problems = [f"`{shorten(name)}` is missing in {what}" for name in sorted(names - there)]
    problems += [f"`{shorten(name)}` in {what} is one too many" for name in sorted(there - names)]
    if problems:
        raise gather(kind, problems, hint=hint, most=_LISTED)


def spread(shardings: Shardings, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Sharding | None]:
    """The sharding of each parameter.

    Raises:
        UseError: a tree that is not like the parameters, something that is no sharding, or a sharding that
            does not fit its parameter's shape; all are named.
    """
    found = _spread(shardings, shapes)
    problems = [problem for name, shape in shapes.items() if (problem := _misfit(name, shape, found[name]))]
    if problems:
        raise gather(UseError, problems, hint="a function of name and shape can give each its own sharding")
    return found


def _spread(shardings: Shardings, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    if shardings is None or isinstance(shardings, Sharding):
        return dict.fromkeys(shapes, shardings)
    if isinstance(shardings, Mapping):
        flat = dict(_leaves(shardings))
        compare_names(
            shapes, flat, UseError, "the tree of shardings", "it must be a tree like the parameters"
        )
        return flat
    if callable(shardings):
        return {name: shardings(name, shape) for name, shape in shapes.items()}
    raise UseError(
        "`sharding` is no sharding: expected a `jax.sharding.Sharding`, a tree of them or a function,"
        f" got {type(shardings).__name__}",
        hint="a `PartitionSpec` needs a mesh: `NamedSharding(mesh, spec)`",
    )


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _misfit(name: str, shape: tuple[int, ...], sharding: Any) -> str:
    """What is wrong with a parameter's sharding, or ""."""
    where = f"`{shorten(name)}` {list(shape)}"
    if sharding is None:
        return ""
    if not isinstance(sharding, Sharding):
        return f"{where}: expected a `jax.sharding.Sharding`, got {type(sharding).__name__}"
    if isinstance(sharding, NamedSharding) and len(sharding.spec) > len(shape):
        return f"{where} can't be sharded so: {sharding.spec} names {len(sharding.spec)} axes"
    try:
        sharding.shard_shape(shape)
    except ValueError as error:
        return f"{where} can't be sharded so: {error}"
    return ""
