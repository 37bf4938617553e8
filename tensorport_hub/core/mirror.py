"""A mirror as its manifest describes it: read as hostile input, and made into the plan that it was made by.

A manifest says everything that a plan says, so what reads it back is a `Plan`: the same recipes, bound to the
same decoders, and the same parts. An object that exists is consistent: paths stay inside the mirror, rows
follow each other without holes, every size is what dtype and shape give, and each stored file is listed once
with the digest that its tensor names. Anything else is a `VerificationError` that says where.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from math import prod
from typing import Any, TypeVar

from tensorport_hub.core import manifest
from tensorport_hub.core.decode.stacked import Stacked
from tensorport_hub.core.decode.table import SCHEMES, bind
from tensorport_hub.core.encode.table import DEFAULT, ENCODINGS
from tensorport_hub.core.filenames import is_inside
from tensorport_hub.core.layout import OutFile, Piece, frame, is_swapped, make_file, part_ending
from tensorport_hub.core.manifest import FileEntry
from tensorport_hub.core.plan import Options, Plan, WeightFile
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.recipe import Recipe
from tensorport_hub.core.tensor import DTYPES, DType, TensorSpec, shorten
from tensorport_hub.errors import TensorportError, VerificationError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_OID = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"(?:^|/)(?:shard_|model-)(\d+)")
_LARGEST = 1 << 62

T = TypeVar("T")


@dataclass(frozen=True)
class Mirror:
    """What a manifest says.

    Attributes:
        plan: what was made, of what, and how.
        digests: source file -> its sha256, where it is known.
        verified: source file -> `whole`, `ranges` or `no`.
        weights: the entry of each output file of the plan, in its order.
        files: every file but the manifest, by path.
        text: the manifest as JSON values.
    """

    plan: Plan
    digests: Mapping[str, str | None]
    verified: Mapping[str, str]
    weights: tuple[FileEntry, ...]
    files: Mapping[str, FileEntry]
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
    formats = _formats(text.get("format"))
    source = _object(text.get("source"), "source")
    weights, digests, verified = _source_files(source)
    listed = _listed(text)
    tensors = _object(text.get("tensors"), "tensors")
    recipes = [_recipe(name, _object(value, _where(name)), weights) for name, value in tensors.items()]
    numbers = {file.path: i for i, file in enumerate(weights)}
    recipes.sort(key=lambda recipe: _place_in_source(recipe, numbers))
    places = [
        place
        for number, recipe in enumerate(recipes)
        for place in _places(recipe, number, tensors[recipe.name], listed, formats)
    ]
    outputs = _outputs(recipes, places, listed, formats)
    revision = _string(source.get("revision"), "source.revision")
    repo = source.get("repo")
    plan = Plan(
        None if repo is None else _string(repo, "source.repo"),
        revision,
        tuple(weights),
        tuple(recipes),
        tuple(outputs),
        _options(_object(text.get("options"), "options"), formats),
        {key: _string(why, "skipped") for key, why in _object(text.get("skipped"), "skipped").items()},
        tuple(sorted(path for path, how in verified.items() if how != "whole")),
        _object(text.get("packed", {}), "packed"),
        _string(_object(text.get("generator"), "generator").get("version"), "generator.version"),
    )
    return Mirror(plan, digests, verified, tuple(listed[file.path] for file in outputs), listed, text)


def _formats(value: Any) -> tuple[str, ...]:
    """One format, or several in their order."""
    found = tuple(value) if isinstance(value, list) else (value,)
    known = all(isinstance(form, str) and form in ENCODINGS for form in found)
    if (
        not found
        or not known
        or len(set(found)) != len(found)
        or (isinstance(value, list) and len(found) < 2)
    ):
        raise _wrong("format", f"one of {', '.join(f'`{name}`' for name in ENCODINGS)}, or several", value)
    return found


def _where(name: str) -> str:
    return f"tensor `{shorten(name)}`"


def _place_in_source(recipe: Recipe, numbers: Mapping[str, int]) -> tuple[int, int, int, int, str]:
    """What plans are ordered by: where the primary lies."""
    primary = recipe.decoder.inputs[0]
    first = recipe.every[0] if recipe.every else 0
    return numbers[primary.file], primary.start, primary.stop, first, recipe.name


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


def _recipe(name: str, value: Mapping[str, Any], files: Sequence[WeightFile]) -> Recipe:
    where = _where(name)
    inputs = [
        _input(_object(one, where), files, where) for one in _list(value.get("from"), f"`from` of {where}")
    ]
    decoder = dict(_object(value.get("decoder"), f"decoder of {where}"))
    scheme, _ = decoder.pop("scheme", None), decoder.pop("dtype", None)
    if scheme not in (*SCHEMES, Stacked.scheme) or not inputs:
        raise _wrong(f"decoder of {where}", "a scheme that this tool knows, and its inputs", scheme)
    every, swapped = decoder.pop("every", None), decoder.pop("swapped", False)
    bound = bind(scheme, inputs, decoder)
    view = None if every is None else _every(every, bound.shape, where)
    if swapped is not False and (swapped is not True or len(bound.shape) != 3 or bound.dtype.packed):
        raise _wrong(f"decoder of {where}", "`swapped` of three axes", swapped)
    recipe = Recipe(name, bound, _dtype(value.get("dtype"), where), view, swapped)
    if recipe.shape != _shape(value.get("shape"), where):
        raise _wrong(f"shape of {where}", str(list(recipe.shape)), value.get("shape"))
    return recipe


def _every(value: Any, shape: Sequence[int], where: str) -> tuple[int, int]:
    """First and step of the rows that are chosen."""
    first, step = _shape(value, where) if isinstance(value, list) and len(value) == 2 else (0, 0)
    if not 0 <= first < step or len(shape) not in (2, 3) or any(length % step for length in shape[1:2]):
        raise _wrong(f"decoder of {where}", "`every` of rows that it divides", value)
    return first, step


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


@dataclass(frozen=True)
class _Place:
    """Rows of a recipe in a file, from byte `offset` on; None where the file is theirs alone."""

    form: str
    path: str
    recipe: int
    rows: Range
    offset: int | None


def _places(
    recipe: Recipe,
    number: int,
    value: Mapping[str, Any],
    listed: Mapping[str, FileEntry],
    formats: Sequence[str],
) -> Iterator[_Place]:
    """Where a tensor is stored: in each format all of its rows, in order."""
    where = _where(recipe.name)
    at = dict.fromkeys(formats, 0)
    for one in _list(value.get("stored"), f"`stored` of {where}"):
        stored = _object(one, where)
        path = _string(stored.get("file"), where)
        rows = _shape(stored.get("rows"), where)
        entry = listed.get(path)
        if entry is None or (entry.size, entry.sha256) != (stored.get("size"), stored.get("sha256")):
            raise VerificationError(
                f"`{manifest.PATH}`: `{shorten(path)}` of {where} is not listed so in `files`"
            )
        form = stored.get("format", formats[0] if len(formats) == 1 else None)
        if form not in at:
            raise _wrong(f"format of `{shorten(path)}` of {where}", "one of the mirror's", form)
        if len(rows) != 2 or rows[0] != at[form] or rows[1] < at[form]:
            raise _wrong(f"rows of `{shorten(path)}` of {where}", f"[{at[form]}, ...]", list(rows))
        if stored.get("swapped", False) is not is_swapped(recipe, form):
            raise _wrong(f"`swapped` of {where}", str(is_swapped(recipe, form)), stored.get("swapped"))
        offset = stored.get("offset")
        if (offset is not None) is not ENCODINGS[form].container:
            raise _wrong(f"offset of {where}", "one where a file holds several tensors", offset)
        at[form] = rows[1]
        yield _Place(form, path, number, (rows[0], rows[1]), None if offset is None else _size(offset, where))
    rows_of_all = recipe.stored_shape[0] if recipe.stored_shape else 1
    for reached in at.values():
        if reached != rows_of_all:
            raise _wrong(f"rows of {where}", f"all {rows_of_all}", reached)


def _outputs(
    recipes: Sequence[Recipe],
    places: Sequence[_Place],
    listed: Mapping[str, FileEntry],
    formats: Sequence[str],
) -> list[OutFile]:
    """The files of weights; each must be just as its pieces make it."""
    by_path: dict[str, list[_Place]] = defaultdict(list)
    for place in places:
        by_path[place.path].append(place)
    cuts: dict[tuple[str, int], list[str]] = defaultdict(list)  # the files that share a tensor
    for place in places:
        files = cuts[place.form, place.recipe]
        files += [place.path] if place.path not in files[-1:] else []
    made = []
    for path, own in by_path.items():
        own.sort(key=lambda place: (place.offset or 0, place.recipe, place.rows))
        shard = _SHARD.search(path)
        number = int(shard.group(1)) if shard else 0
        pieces = [*_pieces(recipes, own, cuts)]
        where = _where(recipes[own[0].recipe].name)
        if len({place.form for place in own}) > 1 or (own[0].offset is None and len(own) > 1):
            raise VerificationError(f"`{manifest.PATH}`: `{shorten(path)}` of {where} is named twice")
        file = make_file(recipes, 0, own[0].form, number, path, [("", piece) for piece in pieces])
        if file.size != listed[path].size:
            raise _wrong(f"size of `{shorten(path)}` of {where}", str(file.size), listed[path].size)
        _check_offsets(recipes, file, own)
        made.append(file)
    made.sort(key=lambda f: (formats.index(f.format), f.shard, f.pieces[0].recipe, f.pieces[0].rows))
    return [replace(file, index=index) for index, file in enumerate(made)]


def _pieces(
    recipes: Sequence[Recipe], own: Sequence[_Place], cuts: Mapping[tuple[str, int], Sequence[str]]
) -> Iterator[Piece]:
    """What stands in one file; chunks of a tensor are one piece."""
    for number, found in groupby(own, key=lambda place: place.recipe):
        places = [*found]
        files = cuts[places[0].form, number]
        key = recipes[number].name
        if len(files) > 1:
            key += part_ending(files.index(places[0].path), len(files))
        yield Piece(number, (places[0].rows[0], places[-1].rows[1]), key)


def _check_offsets(recipes: Sequence[Recipe], file: OutFile, own: Sequence[_Place]) -> None:
    if own[0].offset is None:
        return
    made = frame(recipes, file)
    starts = [file.pieces[segment.entry].rows[0] for segment in made.segments]
    found = [
        (offset, (start + s.rows[0], start + s.rows[1]))
        for offset, start, s in zip(made.offsets, starts, made.segments, strict=True)
    ]
    if found != [(place.offset, place.rows) for place in own]:
        raise VerificationError(
            f"`{manifest.PATH}`: tensors of `{shorten(file.path)}` stand where a {file.format} file can't"
            " have them"
        )


def _options(value: Mapping[str, Any], formats: tuple[str, ...]) -> Options:
    given: dict[str, Any] = {
        key: tuple(_string(item, f"options.{key}") for item in v) if isinstance(v, list) else v
        for key, v in value.items()
    }
    given = {"formats": (DEFAULT,), "experts": "source"} | given
    if given.keys() != {f.name for f in fields(Options)}:
        raise _wrong("options", "those of this version", sorted(given))
    if given["formats"] != formats:
        raise _wrong("options.formats", str(list(formats)), given["formats"])
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
