"""The plan: everything that will be written, decided before a byte of weight moves.

A safetensors header fixes every offset, and an output's frame every size, so files, parts, names and totals
are data. The plan depends on the source commit, the tool's version and the content options alone; its
fingerprint is the sha256 of its JSON. Workers, limits, transfer and destination are not in it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from tensorport_hub import __version__
from tensorport_hub.core.decode.table import bind
from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.encode.table import DEFAULT
from tensorport_hub.core.layout import OutFile, Part, Piece, cut_parts, entry, is_ordered
from tensorport_hub.core.recipe import Recipe
from tensorport_hub.core.tensor import DTYPES, PRECISIONS, TensorSpec

CHOICES: Mapping[str, tuple[str, ...]] = {
    "precision": ("keep", *PRECISIONS),
    "quantized": ("decode", "keep"),
    "on_overflow": ("error", "inf", "saturate"),
    "on_underflow": ("report", "error"),
    "verify_source": ("auto", "whole", "no"),
    "experts": ("source", "stacked"),
}
"""The words that options may be."""


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
    formats: tuple[str, ...] = (DEFAULT,)
    experts: str = "source"

    def to_json(self) -> dict[str, Any]:
        """As the manifest states them; those that came later only where they are not the default."""
        stated = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}
        later = {"formats": [DEFAULT], "experts": "source"}
        return {key: value for key, value in stated.items() if key not in later or later[key] != value}


@dataclass(frozen=True)
class Plan:
    """Source state, ordered recipes and output files, and the options that made them.

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
    files: tuple[SourceFile, ...]
    recipes: tuple[Recipe, ...]
    outputs: tuple[OutFile, ...]
    options: Options
    skipped: Mapping[str, str] = field(default_factory=dict)
    partial: tuple[str, ...] = ()
    packed: Mapping[str, Any] = field(default_factory=dict)
    version: str = __version__

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) over the plan's JSON, row by row: equal exactly where the same bytes will come out."""
        digest = hashlib.sha256(dumps(self._head()))
        for rows in (self._recipe_rows(), self._output_rows()):
            for row in rows:
                digest.update(b"\n" + dumps(row))
        return digest.hexdigest()

    @cached_property
    def read_whole(self) -> frozenset[str]:
        """Paths of the files that are read from their first byte to their last, so that they are proven."""
        if self.options.verify_source == "no":
            return frozenset()
        partial = self.partial if self.options.verify_source == "auto" else ()
        return frozenset(file.path for file in self.files) - frozenset(partial)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """What is decoded at a time, in order."""
        return cut_parts(self.recipes, self.outputs)

    @cached_property
    def made_of(self) -> Mapping[str, frozenset[int]]:
        """Source file -> the output files that need a byte of it."""
        users: dict[str, set[int]] = {file.path: set() for file in self.files}
        for part in self.parts:
            for tensor in self.recipes[part.recipe].decoder.inputs:
                users[tensor.file].update(target.file for target in part.targets)
        return {path: frozenset(found) for path, found in users.items()}

    @cached_property
    def is_ordered(self) -> bool:
        """Whether parts must be decoded one after another: files hold several tensors."""
        return is_ordered(self.outputs)

    @cached_property
    def files_at_once(self) -> int:
        """Output files that one worker writes at the same time."""
        if self.is_ordered:
            return len(self.options.formats)
        return max((len(part.targets) for part in self.parts), default=1)

    @cached_property
    def bytes_at_once(self) -> int:
        """Most bytes of output files that one worker writes at the same time."""
        sizes = {file.index: file.size for file in self.outputs}
        if not self.is_ordered:
            return max((sum(sizes[t.file] for t in part.targets) for part in self.parts), default=0)
        most: dict[str, int] = {}
        for file in self.outputs:
            most[file.format] = max(most.get(file.format, 0), file.size)
        return sum(most.values())

    @cached_property
    def nbytes_of(self) -> Counter[int]:
        """Recipe number -> bytes of its files, or of its data in files that it shares."""
        sizes: Counter[int] = Counter()
        for file in self.outputs:
            for piece in file.pieces:
                alone = len(file.pieces) == 1
                data = entry(self.recipes[piece.recipe], piece, file.format).nbytes
                sizes[piece.recipe] += file.size if alone else data
        return sizes

    @property
    def bytes_out(self) -> int:
        return sum(file.size for file in self.outputs)

    @property
    def parameters(self) -> int:
        """True logical number of weights."""
        return sum(recipe.parameters for recipe in self.recipes)

    @property
    def shards(self) -> int:
        """Of all formats together."""
        return len({(file.format, file.shard) for file in self.outputs})

    @property
    def decodes(self) -> bool:
        """Whether any quantized weight comes out decoded."""
        return any(recipe.schemes != {"plain"} for recipe in self.recipes)

    def to_json(self) -> dict[str, Any]:
        """JSON values; `Plan.from_json` of them equals this plan."""
        return {**self._head(), "recipes": [*self._recipe_rows()], "outputs": [*self._output_rows()]}

    def _head(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "repo": self.repo,
            "commit": self.commit,
            "options": self.options.to_json(),
            "files": [[f.path, f.size, f.sha256, f.git_oid] for f in self.files],
            "skipped": dict(self.skipped),
            "partial": list(self.partial),
            "packed": dict(self.packed),
        }

    def _recipe_rows(self) -> Iterator[list[Any]]:
        index = {file.path: i for i, file in enumerate(self.files)}
        return (_recipe_json(recipe, index) for recipe in self.recipes)

    def _output_rows(self) -> Iterator[list[Any]]:
        for f in self.outputs:
            yield [f.format, f.shard, f.path, f.size, [[p.recipe, [*p.rows], p.key] for p in f.pieces]]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` wrote."""
        files = tuple(SourceFile(*row) for row in value["files"])
        options: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in value["options"].items()
        }
        outputs = tuple(
            OutFile(i, form, shard, path, size, tuple(Piece(r, (a, b), key) for r, (a, b), key in pieces))
            for i, (form, shard, path, size, pieces) in enumerate(value["outputs"])
        )
        return cls(
            value["repo"],
            value["commit"],
            files,
            tuple(_recipe_from_json(row, files) for row in value["recipes"]),
            outputs,
            Options(**options),
            dict(value["skipped"]),
            tuple(value["partial"]),
            dict(value["packed"]),
            value["version"],
        )


def dumps(value: object) -> bytes:
    """Compact JSON with a fixed key order: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def _recipe_json(recipe: Recipe, index: Mapping[str, int]) -> list[Any]:
    inputs = [
        [t.name, t.dtype.name, [*t.shape], index[t.file], t.start, t.stop] for t in recipe.decoder.inputs
    ]
    decoder = recipe.decoder
    view = [*recipe.every] if recipe.every else None
    return [
        recipe.name,
        recipe.dtype.name,
        decoder.scheme,
        dict(decoder.params),
        inputs,
        view,
        recipe.swapped,
    ]


def _recipe_from_json(row: Sequence[Any], files: Sequence[SourceFile]) -> Recipe:
    name, dtype, scheme, params, inputs, every, swapped = row
    specs = [
        TensorSpec(tensor, DTYPES[kind], tuple(shape), files[file].path, start, stop)
        for tensor, kind, shape, file, start, stop in inputs
    ]
    return Recipe(
        name, bind(scheme, specs, params), DTYPES[dtype], (every[0], every[1]) if every else None, swapped
    )
