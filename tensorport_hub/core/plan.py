"""The plan: everything that will be written, decided before a byte of weight moves.

A safetensors header fixes every offset and a .npy header every output size, so parts, shards, names and
totals are data. The plan depends on the source commit, the tool's version and the content options alone;
its fingerprint is the sha256 of its JSON. Workers, limits, transfer and destination are not in it.

Shards: tensors keep source order; a shard is closed before it would pass the shard size or 4,096 files. A
tensor larger than a shard is cut along axis 0 into files of nearly equal row counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Any

from tensorport_hub import __version__
from tensorport_hub.core import npy
from tensorport_hub.core.decode.table import bind
from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.filenames import stems
from tensorport_hub.core.recipe import Recipe
from tensorport_hub.core.safetensors import shorten
from tensorport_hub.core.tensor import DTYPES, TensorSpec
from tensorport_hub.errors import LimitError, gather

SHARD_FILES = 4096
LARGEST_SHARD = 2_000_000_000


@dataclass(frozen=True)
class Options:
    """What the user chose that changes the output's bytes."""

    subfolder: str | None = None
    allow_patterns: tuple[str, ...] = ()
    precision: str = "keep"
    quantized: str = "decode"
    on_overflow: str = "error"
    on_underflow: str = "report"
    shard_size: int = 1_800_000_000
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    verify_source: str = "auto"


@dataclass(frozen=True)
class WeightFile(SourceFile):
    """A file that tensors come from; its data begins at byte `data_start`."""

    data_start: int = 0


@dataclass(frozen=True)
class Part:
    """One output file: rows `rows[0]:rows[1]` of axis 0 of a recipe's output, items `items[0]:items[1]`.

    `shape` is that of the stored items in this file; a 0-d tensor has rows (0, 1).
    """

    index: int
    recipe: int
    shard: int
    path: str
    size: int
    rows: tuple[int, int]
    items: tuple[int, int]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Source state, ordered recipes and parts, and the options that made them.

    Attributes:
        repo: id of the source repository; None for a folder.
        commit: source commit; for a folder, a digest of its headers.
        files: the weight files, in the order that tensors come from them.
        skipped: stored tensors that no recipe uses, by name, with the reason.
        partial: files of which some tensors are not wanted at all.
        packed: under `--quantized keep`, output tensor -> how it decodes from the stored ones.
    """

    repo: str | None
    commit: str
    files: tuple[WeightFile, ...]
    recipes: tuple[Recipe, ...]
    parts: tuple[Part, ...]
    options: Options
    skipped: Mapping[str, str] = field(default_factory=dict)
    partial: tuple[str, ...] = ()
    packed: Mapping[str, Any] = field(default_factory=dict)
    version: str = __version__

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of the plan's JSON: equal exactly where the same bytes will come out."""
        return hashlib.sha256(dumps(self.to_json())).hexdigest()

    @cached_property
    def read_whole(self) -> frozenset[str]:
        """Paths of the files that are read from their first byte to their last, so that they are proven."""
        if self.options.verify_source == "no":
            return frozenset()
        partial = self.partial if self.options.verify_source == "auto" else ()
        return frozenset(file.path for file in self.files) - frozenset(partial)

    @property
    def bytes_out(self) -> int:
        return sum(part.size for part in self.parts)

    @property
    def parameters(self) -> int:
        """True logical number of weights."""
        return sum(recipe.decoder.parameters for recipe in self.recipes)

    @property
    def shards(self) -> int:
        return self.parts[-1].shard + 1 if self.parts else 0

    @property
    def decodes(self) -> bool:
        """Whether any quantized weight comes out decoded."""
        return any(recipe.decoder.scheme != "plain" for recipe in self.recipes)

    def to_json(self) -> dict[str, Any]:
        """JSON values; `Plan.from_json` of them equals this plan."""
        index = {file.path: i for i, file in enumerate(self.files)}
        return {
            "version": self.version,
            "repo": self.repo,
            "commit": self.commit,
            "options": {key: _plain(value) for key, value in asdict(self.options).items()},
            "files": [[f.path, f.size, f.sha256, f.git_oid, f.data_start] for f in self.files],
            "recipes": [_recipe_json(recipe, index) for recipe in self.recipes],
            "parts": [
                [p.recipe, p.shard, p.path, p.size, [*p.rows], [*p.items], [*p.shape]] for p in self.parts
            ],
            "skipped": dict(self.skipped),
            "partial": list(self.partial),
            "packed": dict(self.packed),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` wrote."""
        files = tuple(WeightFile(*row) for row in value["files"])
        options: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in value["options"].items()
        }
        parts = tuple(
            Part(i, recipe, shard, path, size, (rows[0], rows[1]), (items[0], items[1]), tuple(shape))
            for i, (recipe, shard, path, size, rows, items, shape) in enumerate(value["parts"])
        )
        return cls(
            value["repo"],
            value["commit"],
            files,
            tuple(_recipe_from_json(row, files) for row in value["recipes"]),
            parts,
            Options(**options),
            dict(value["skipped"]),
            tuple(value["partial"]),
            dict(value["packed"]),
            value["version"],
        )


def dumps(value: object) -> bytes:
    """Compact JSON with a fixed key order: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _recipe_json(recipe: Recipe, index: Mapping[str, int]) -> list[Any]:
    inputs = [
        [t.name, t.dtype.name, [*t.shape], index[t.file], t.start, t.stop] for t in recipe.decoder.inputs
    ]
    return [recipe.name, recipe.dtype.name, recipe.decoder.scheme, dict(recipe.decoder.params), inputs]


def _recipe_from_json(row: Sequence[Any], files: Sequence[WeightFile]) -> Recipe:
    name, dtype, scheme, params, inputs = row
    specs = [
        TensorSpec(tensor, DTYPES[kind], tuple(shape), files[file].path, start, stop)
        for tensor, kind, shape, file, start, stop in inputs
    ]
    return Recipe(name, bind(scheme, specs, params), DTYPES[dtype])


def lay_out(recipes: Sequence[Recipe], *, shard_size: int) -> tuple[Part, ...]:
    """Cut recipes into parts and parts into shards.

    Raises:
        LimitError: one row of a tensor is larger than a shard; all such tensors are named.
    """
    names = stems(recipe.name for recipe in recipes)
    parts: list[Part] = []
    problems: list[str] = []
    for number, recipe in enumerate(recipes):
        try:
            parts += _cut(recipe, number, names[recipe.name], shard_size)
        except LimitError as error:
            problems.append(error.message)
    if problems:
        raise gather(LimitError, problems, hint="raise `--shard-size`")
    return _fill_shards(parts, shard_size)


def _cut(recipe: Recipe, number: int, stem: str, shard_size: int) -> list[Part]:
    """The parts of one recipe; shard and index are filled in by `_fill_shards`."""
    shape = recipe.stored_shape
    size = npy.nbytes(recipe.dtype, shape)
    rows = shape[0] if shape else 1
    if size <= shard_size:
        return [Part(0, number, 0, f"{stem}.npy", size, (0, rows), (0, prod(shape)), shape)]
    row_items = prod(shape[1:])
    row_nbytes = row_items * recipe.dtype.itemsize
    head = len(npy.header(recipe.dtype, shape))
    most = (shard_size - head) // row_nbytes if shape and row_nbytes else 0
    if most < 1:
        raise LimitError(
            f"one row of `{shorten(recipe.name)}` ({recipe.dtype} {list(recipe.shape)}) is larger than"
            f" a shard: expected at most {shard_size} bytes, got {head + row_nbytes}"
        )
    count = -(-rows // most)
    edges = [rows * i // count for i in range(count + 1)]
    parts = []
    for i, (start, stop) in enumerate(pairwise(edges)):
        piece = (stop - start, *shape[1:])
        parts.append(
            Part(
                index=0,
                recipe=number,
                shard=0,
                path=f"{stem}.part-{i:05d}-of-{count:05d}.npy",
                size=npy.nbytes(recipe.dtype, piece),
                rows=(start, stop),
                items=(start * row_items, stop * row_items),
                shape=piece,
            )
        )
    return parts


def _fill_shards(parts: Sequence[Part], shard_size: int) -> tuple[Part, ...]:
    placed: list[Part] = []
    shard = used = files = 0
    for index, part in enumerate(parts):
        if files and (used + part.size > shard_size or files == SHARD_FILES):
            shard, used, files = shard + 1, 0, 0
        placed.append(replace(part, index=index, shard=shard, path=f"shard_{shard:03d}/{part.path}"))
        used, files = used + part.size, files + 1
    return tuple(placed)
