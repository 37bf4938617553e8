"""A mirror's tensors as nested JAX parameters."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import numpy.typing as npt

from tensorport_hub.checkpoint import Checkpoint, open_checkpoint
from tensorport_hub.core.tensor import DTYPES
from tensorport_hub.errors import UseError
from tensorport_hub.jax.cast import parse_dtype
from tensorport_hub.jax.place import Leaves, place
from tensorport_hub.jax.tree import Shardings, Tree, check_names, nest, spread
from tensorport_hub.lazy import LazyArray

Source = str | os.PathLike[str] | Checkpoint


def load_params(
    source: Source,
    *,
    revision: str | None = None,
    token: str | None = None,
    dtype: npt.DTypeLike | None = None,
    sharding: Shardings = None,
    include: str | Sequence[str] | None = None,
) -> Tree:
    """Load a mirror as a nested dict of `jax.Array`: names split at their dots.

    With a sharding every process reads only what its own devices hold, and holds about 256 MB or one slice
    of it on the host at a time.

    Args:
        source: `org/name`, a folder, or an opened checkpoint (of `verify=True`, each file is proven first).
        revision, token: as of `open_checkpoint`.
        dtype: `bfloat16`, `float16` or `float32`: floats are rounded to it, once; None: as they are stored.
        sharding: one for all, a tree like the result, or a function of name and shape; None: JAX's default
            device.
        include: globs over names.

    Returns:
        What the mirror holds, by name. Packed `F4` and `F6` come as stored bytes. 64-bit types become those
        of 32 bits unless JAX's x64 is on.

    Raises:
        UseError: a sharding that does not fit, names that a tree of them lacks or has too many (all are
            listed), an unknown dtype, nothing included.
        SourceError, VerificationError: the mirror can't be read, or is none.
        CheckpointError: one tensor's name is a part of another's.
        LossError: a finite value that `dtype` (or 32 bits) can't hold.
    """
    target = parse_dtype(dtype)
    with opened(source, revision, token) as checkpoint:
        arrays = [checkpoint[name] for name in _included(checkpoint, include)]
        check_names(array.name for array in arrays)
        shardings = spread(sharding, {array.name: array.shape for array in arrays})
        return nest(place([alone(array) for array in arrays], shardings, target))


def alone(array: LazyArray) -> Leaves:
    """One tensor by itself."""

    def read(index: tuple[slice, ...]) -> tuple[Any]:
        return (array[(*index, ...)],)

    return Leaves((array.name,), DTYPES[array.logical_dtype], array.shape, read, array.requested)


@contextmanager
def opened(source: Source, revision: str | None, token: str | None) -> Iterator[Checkpoint]:
    """A checkpoint that is closed afterwards, unless it was open before."""
    if not isinstance(source, Checkpoint):
        with open_checkpoint(source, revision=revision, token=token) as checkpoint:
            yield checkpoint
    elif revision is not None:
        raise UseError(f"`{source.name}` is open already, at a revision of its own: `revision` says nothing")
    else:
        yield source


def _included(checkpoint: Checkpoint, include: str | Sequence[str] | None) -> list[str]:
    if include is None:
        return list(checkpoint)
    patterns = [include] if isinstance(include, str) else list(include)
    names = [name for name in checkpoint if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if not names:
        said = ", ".join(f"`{pattern}`" for pattern in patterns)
        raise UseError(f"no tensor of `{checkpoint.name}` matches {said or 'an empty `include`'}")
    return names
