"""A mirror as its manifest describes it: read as hostile input, and made into the plan that it was made by.

A manifest says everything that a plan says, so what reads it back is a `Plan`: the same recipes, bound to the
same decoders, and the same parts. An object that exists is consistent: paths stay inside the mirror, rows
follow each other without holes, every size is what dtype and shape give, and each stored file is listed once
with the digest that its tensor names. Anything else is a `VerificationError` that says where.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import Any, TypeVar

from tensorport_hub.core import manifest, npy
from tensorport_hub.core.decode.table import SCHEMES, bind
from tensorport_hub.core.filenames import is_inside
from tensorport_hub.core.manifest import FileEntry
from tensorport_hub.core.plan import Options, Part, Plan, WeightFile
from tensorport_hub.core.recipe import Recipe
from tensorport_hub.core.tensor import DTYPES, DType, TensorSpec, shorten
from tensorport_hub.errors import TensorportError, VerificationError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_OID = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"(?:^|/)shard_(\d+)/")
_LARGEST = 1 << 62

FORMATS = ("numpy-direct",)
"""What this version writes, and reads back."""

T = TypeVar("T")


@dataclass(frozen=True)
class Mirror:
    """What a manifest says.

    Attributes:
        plan: what was made, of what, and how.
        digests: source file -> its sha256, where it is known.
        verified: source file -> `whole`, `ranges` or `no`.
        weights: the file of each part of the plan, in its order.
        files: every file but the manifest, by path.
        losses: tensor -> values that rounding made infinite or saturated, and those that it made 0; only
            where there are any.
        text: the manifest as JSON values.
    """

    plan: Plan
    digests: Mapping[str, str | None]
    verified: Mapping[str, str]
    weights: tuple[FileEntry, ...]
    files: Mapping[str, FileEntry]
    losses: Mapping[str, tuple[int, int]]
    text: Mapping[str, Any]


def read(data: bytes) -> Mirror:
    """A manifest's bytes as what they describe.

    Raises:
        VerificationError: it is no manifest, of an unknown version, or contradicts itself.
    """
    text = manifest.parse(data)
    try:
        return _mirror(text)
    except VerificationError:
        raise
    except TensorportError as error:
        raise VerificationError(f"`{manifest.PATH}`: {error.message}") from None
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        # what a decoder's constructor meets in parameters of a wrong type
        raise VerificationError(
            f"`{manifest.PATH}` makes no sense: {type(error).__name__}: {error}"
        ) from None


def _mirror(text: Mapping[str, Any]) -> Mirror:
    if text.get("format") not in FORMATS:
        raise _wrong("format", f"one of {', '.join(f'`{name}`' for name in FORMATS)}", text.get("format"))
    source = _object(text.get("source"), "source")
    weights, digests, verified = _source_files(source)
    listed = _listed(text)
    recipes: list[Recipe] = []
    parts: list[Part] = []
    entries: list[FileEntry] = []
    losses: dict[str, tuple[int, int]] = {}
    for name, value in _object(text.get("tensors"), "tensors").items():
        where = f"tensor `{shorten(name)}`"
        recipe = _recipe(name, _object(value, where), weights, where)
        recipes.append(recipe)
        if "losses" in value:
            lost = _object(value["losses"], f"losses of {where}")
            losses[name] = _size(lost.get("overflow"), where), _size(lost.get("underflow"), where)
        for part, entry in _parts(recipe, len(recipes) - 1, value, listed, where):
            parts.append(part)
            entries.append(entry)
    revision = _string(source.get("revision"), "source.revision")
    repo = source.get("repo")
    order = sorted(range(len(parts)), key=lambda i: (parts[i].shard, parts[i].recipe, parts[i].rows[0]))
    plan = Plan(
        None if repo is None else _string(repo, "source.repo"),
        revision,
        tuple(weights),
        tuple(recipes),
        tuple(_numbered(parts[i], number) for number, i in enumerate(order)),
        _options(_object(text.get("options"), "options")),
        {key: _string(why, "skipped") for key, why in _object(text.get("skipped"), "skipped").items()},
        tuple(sorted(path for path, how in verified.items() if how != "whole")),
        _object(text.get("packed", {}), "packed"),
        _string(_object(text.get("generator"), "generator").get("version"), "generator.version"),
    )
    return Mirror(plan, digests, verified, tuple(entries[i] for i in order), listed, losses, text)


def _numbered(part: Part, index: int) -> Part:
    return Part(index, part.recipe, part.shard, part.path, part.size, part.rows, part.items, part.shape)


def _source_files(
    source: Mapping[str, Any],
) -> tuple[list[WeightFile], dict[str, str | None], dict[str, str]]:
    found: list[WeightFile] = []
    digests: dict[str, str | None] = {}
    verified: dict[str, str] = {}
    for value in _list(source.get("files"), "source.files"):
        entry = _object(value, "source.files")
        path = _string(entry.get("path"), "source.files")
        sha256 = entry.get("sha256")
        if sha256 is not None:
            sha256 = _matching(_SHA256, sha256, f"sha256 of source file `{shorten(path)}`")
        how = entry.get("verified")
        if how not in ("whole", "ranges", "no") or path in digests:
            raise _wrong(f"source file `{shorten(path)}`", "one entry with `whole`, `ranges` or `no`", how)
        found.append(WeightFile(path, _size(entry.get("size"), "source.files"), sha256))
        digests[path], verified[path] = sha256, how
    return found, digests, verified


def _listed(text: Mapping[str, Any]) -> dict[str, FileEntry]:
    """Every file of the mirror, by path."""
    found: dict[str, FileEntry] = {}
    lower: set[str] = set()
    for value in _list(text.get("files"), "files"):
        entry = _object(value, "files")
        path = _string(entry.get("path"), "files")
        where = f"file `{shorten(path)}`"
        if not is_inside(path) or path == manifest.PATH:
            raise _wrong(where, "a path inside the mirror", path)
        if path.lower() in lower:
            raise VerificationError(f"`{manifest.PATH}` lists {where} twice, or in another case")
        lower.add(path.lower())
        found[path] = FileEntry(
            path,
            _size(entry.get("size"), where),
            _matching(_SHA256, entry.get("sha256"), f"sha256 of {where}"),
            _matching(_OID, entry.get("git_oid"), f"git_oid of {where}"),
        )
    return found


def _recipe(name: str, value: Mapping[str, Any], files: Sequence[WeightFile], where: str) -> Recipe:
    inputs = [
        _input(_object(one, where), files, where) for one in _list(value.get("from"), f"`from` of {where}")
    ]
    decoder = dict(_object(value.get("decoder"), f"decoder of {where}"))
    scheme, _ = decoder.pop("scheme", None), decoder.pop("dtype", None)
    if scheme not in SCHEMES or not inputs:
        raise _wrong(f"decoder of {where}", "a scheme that this tool knows, and its inputs", scheme)
    recipe = Recipe(name, bind(scheme, inputs, decoder), _dtype(value.get("dtype"), where))
    if recipe.shape != _shape(value.get("shape"), where):
        raise _wrong(f"shape of {where}", str(list(recipe.shape)), value.get("shape"))
    return recipe


def _input(value: Mapping[str, Any], files: Sequence[WeightFile], where: str) -> TensorSpec:
    start, stop = _size(value.get("start"), where), _size(value.get("stop"), where)
    number = _size(value.get("file"), where)
    name = _string(value.get("tensor"), where)
    dtype, shape = _dtype(value.get("dtype"), where), _shape(value.get("shape"), where)
    bits = prod(shape) * dtype.nbits
    if number >= len(files) or not start <= stop <= files[number].size or (stop - start) * 8 != bits:
        raise VerificationError(
            f"`{manifest.PATH}`: bytes {start}:{stop} of `{shorten(name)}`, which {where} was made from, are"
            f" not {dtype} {list(shape)} within a source file"
        )
    return TensorSpec(name, dtype, shape, files[number].path, start, stop)


def _parts(
    recipe: Recipe, number: int, value: Mapping[str, Any], listed: Mapping[str, FileEntry], where: str
) -> Iterator[tuple[Part, FileEntry]]:
    shape = recipe.stored_shape
    row_items = prod(shape[1:])
    at = 0
    for one in _list(value.get("stored"), f"`stored` of {where}"):
        stored = _object(one, where)
        path = _string(stored.get("file"), where)
        rows = _shape(stored.get("rows"), where)
        entry = listed.get(path)
        if entry is None or (entry.size, entry.sha256) != (stored.get("size"), stored.get("sha256")):
            raise VerificationError(
                f"`{manifest.PATH}`: `{shorten(path)}` of {where} is not listed so in `files`"
            )
        if len(rows) != 2 or rows[0] != at or rows[1] < at:
            raise _wrong(f"rows of `{shorten(path)}` of {where}", f"[{at}, ...]", list(rows))
        piece = (rows[1] - rows[0], *shape[1:]) if shape else ()
        size = npy.nbytes(recipe.dtype, piece)
        if size != entry.size:
            raise _wrong(f"size of `{shorten(path)}` of {where}", str(size), entry.size)
        shard = _SHARD.search(path)
        items = (rows[0] * row_items, rows[1] * row_items)
        at = rows[1]
        yield (
            Part(
                0, number, int(shard.group(1)) if shard else 0, path, size, (rows[0], rows[1]), items, piece
            ),
            entry,
        )
    if at != (shape[0] if shape else 1):
        raise _wrong(f"rows of {where}", f"all {shape[0] if shape else 1}", at)


def _options(value: Mapping[str, Any]) -> Options:
    given: dict[str, Any] = {
        key: tuple(_string(item, f"options.{key}") for item in v) if isinstance(v, list) else v
        for key, v in value.items()
    }
    if given.keys() != {f.name for f in fields(Options)}:
        raise _wrong("options", "those of this version", sorted(given))
    for key, default in vars(Options()).items():
        wanted = (str, type(None)) if default is None else type(default)
        if not isinstance(given[key], wanted) or isinstance(given[key], bool):
            raise _wrong(f"options.{key}", "its type", given[key])
    return Options(**given)


def _object(value: Any, where: str) -> Mapping[str, Any]:
    return _typed(value, dict, where, "an object")


def _list(value: Any, where: str) -> list[Any]:
    return _typed(value, list, where, "a list")


def _string(value: Any, where: str) -> str:
    return _typed(value, str, where, "a text")


def _typed(value: Any, kind: type[T], where: str, words: str) -> T:
    if not isinstance(value, kind):
        raise _wrong(where, words, value)
    return value


def _size(value: Any, where: str) -> int:
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise _wrong(where, "a size", value)
    return value


def _shape(value: Any, where: str) -> tuple[int, ...]:
    return tuple(_size(length, where) for length in _list(value, where))


def _dtype(value: Any, where: str) -> DType:
    if not isinstance(value, str) or value not in DTYPES:
        raise _wrong(f"dtype of {where}", "one that safetensors knows", value)
    return DTYPES[value]


def _matching(pattern: re.Pattern[str], value: Any, where: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise _wrong(where, "hex digits", value)
    return value


def _wrong(where: str, expected: str, got: object) -> VerificationError:
    shown = shorten(json.dumps(got, default=str), 80)
    return VerificationError(f"`{manifest.PATH}`: {where}: expected {expected}, got {shown}")
