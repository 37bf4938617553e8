"""A mirror as its manifest describes it: read as hostile input, and made into the plan that it was made by.

A manifest says everything that a plan says, so what reads it back is a `Plan`: the same recipes, bound to the
same decoders, and the same parts. An object that exists is consistent: paths stay inside the mirror, rows
follow each other without holes, every size is what dtype and shape give, and each stored file is listed once
with the digest that its tensor names. Anything else is a `VerificationError` that says where.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import Any

from tensorport_hub.core import manifest, stated
from tensorport_hub.core.decode.stacked import Stacked
from tensorport_hub.core.decode.table import SCHEMES, bind
from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.encode.table import DEFAULT, ENCODINGS
from tensorport_hub.core.filenames import is_inside
from tensorport_hub.core.location import is_repo_id
from tensorport_hub.core.manifest import FileEntry
from tensorport_hub.core.places import about, files_of, places_of
from tensorport_hub.core.plan import CHOICES, Options, Plan
from tensorport_hub.core.recipe import Recipe
from tensorport_hub.core.tensor import TensorSpec, shorten
from tensorport_hub.errors import TensorportError, VerificationError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_OID = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Mirror:
    """What a manifest says.

    Attributes:
        plan: what was made, of what, and how.
        digests: source file -> its sha256, where it is known.
        verified: source file -> `whole`, `ranges` or `no`.
        weights: the entry of each output file of the plan, in its order.
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
    formats = _formats(text.get("format"))
    source = stated.object_(text.get("source"), "source")
    weights, digests, verified = _source_files(source)
    listed = _listed(text)
    tensors = stated.object_(text.get("tensors"), "tensors")
    recipes = [_recipe(name, stated.object_(value, about(name)), weights) for name, value in tensors.items()]
    numbers = {file.path: i for i, file in enumerate(weights)}
    recipes.sort(key=lambda recipe: _place_in_source(recipe, numbers))
    places = [
        place
        for number, recipe in enumerate(recipes)
        for place in places_of(recipe, number, tensors[recipe.name], listed, formats)
    ]
    losses = {name: lost for name, value in tensors.items() if (lost := _losses(name, value)) is not None}
    outputs = files_of(recipes, places, listed, formats)
    repo = source.get("repo")
    if repo is not None and not is_repo_id(stated.string(repo, "source.repo")):
        raise stated.wrong("source.repo", "a repository's id", repo)
    plan = Plan(
        repo,
        stated.matching(_OID, source.get("revision"), "source.revision"),
        tuple(weights),
        tuple(recipes),
        tuple(outputs),
        _options(stated.object_(text.get("options"), "options"), formats),
        {
            key: stated.string(why, "skipped")
            for key, why in stated.object_(text.get("skipped"), "skipped").items()
        },
        tuple(sorted(path for path, how in verified.items() if how != "whole")),
        stated.object_(text.get("packed", {}), "packed"),
        stated.string(stated.object_(text.get("generator"), "generator").get("version"), "generator.version"),
    )
    weights_in_order = tuple(listed[file.path] for file in outputs)
    return Mirror(plan, digests, verified, weights_in_order, listed, losses, text)


def _losses(name: str, value: Mapping[str, Any]) -> tuple[int, int] | None:
    """What rounding cost a tensor; None where it cost nothing."""
    if "losses" not in value:
        return None
    where = f"losses of {about(name)}"
    lost = stated.object_(value["losses"], where)
    return stated.size(lost.get("overflow"), where), stated.size(lost.get("underflow"), where)


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
        raise stated.wrong(
            "format", f"one of {', '.join(f'`{name}`' for name in ENCODINGS)}, or several", value
        )
    return found


def _place_in_source(recipe: Recipe, numbers: Mapping[str, int]) -> tuple[int, int, int, int, str]:
    """What plans are ordered by: where the primary lies."""
    primary = recipe.decoder.inputs[0]
    first = recipe.every[0] if recipe.every else 0
    return numbers[primary.file], primary.start, primary.stop, first, recipe.name


def _source_files(
    source: Mapping[str, Any],
) -> tuple[list[SourceFile], dict[str, str | None], dict[str, str]]:
    found: list[SourceFile] = []
    digests: dict[str, str | None] = {}
    verified: dict[str, str] = {}
    for value in stated.list_(source.get("files"), "source.files"):
        entry = stated.object_(value, "source.files")
        path = stated.string(entry.get("path"), "source.files")
        sha256 = entry.get("sha256")
        if sha256 is not None:
            sha256 = stated.matching(_SHA256, sha256, f"sha256 of source file `{shorten(path)}`")
        how = entry.get("verified")
        if how not in ("whole", "ranges", "no") or path in digests:
            raise stated.wrong(
                f"source file `{shorten(path)}`", "one entry with `whole`, `ranges` or `no`", how
            )
        found.append(SourceFile(path, stated.size(entry.get("size"), "source.files"), sha256))
        digests[path], verified[path] = sha256, how
    return found, digests, verified


def _listed(text: Mapping[str, Any]) -> dict[str, FileEntry]:
    """Every file of the mirror, by path."""
    found: dict[str, FileEntry] = {}
    lower: set[str] = set()
    for value in stated.list_(text.get("files"), "files"):
        entry = stated.object_(value, "files")
        path = stated.string(entry.get("path"), "files")
        where = f"file `{shorten(path)}`"
        if not is_inside(path) or path == manifest.PATH:
            raise stated.wrong(where, "a path inside the mirror", path)
        if path.lower() in lower:
            raise VerificationError(f"`{manifest.PATH}` lists {where} twice, or in another case")
        lower.add(path.lower())
        found[path] = FileEntry(
            path,
            stated.size(entry.get("size"), where),
            stated.matching(_SHA256, entry.get("sha256"), f"sha256 of {where}"),
            stated.matching(_OID, entry.get("git_oid"), f"git_oid of {where}"),
        )
    return found


def _recipe(name: str, value: Mapping[str, Any], files: Sequence[SourceFile]) -> Recipe:
    where = about(name)
    inputs = [
        _input(stated.object_(one, where), files, where)
        for one in stated.list_(value.get("from"), f"`from` of {where}")
    ]
    decoder = dict(stated.object_(value.get("decoder"), f"decoder of {where}"))
    scheme, _ = decoder.pop("scheme", None), decoder.pop("dtype", None)
    if scheme not in (*SCHEMES, Stacked.scheme) or not inputs:
        raise stated.wrong(f"decoder of {where}", "a scheme that this tool knows, and its inputs", scheme)
    every, swapped = decoder.pop("every", None), decoder.pop("swapped", False)
    bound = bind(scheme, inputs, decoder)
    view = None if every is None else _every(every, bound.shape, where)
    if swapped is not False and (swapped is not True or len(bound.shape) != 3 or bound.dtype.packed):
        raise stated.wrong(f"decoder of {where}", "`swapped` of three axes", swapped)
    recipe = Recipe(name, bound, stated.dtype(value.get("dtype"), where), view, swapped)
    if recipe.shape != stated.shape(value.get("shape"), where):
        raise stated.wrong(f"shape of {where}", str(list(recipe.shape)), value.get("shape"))
    return recipe


def _every(value: Any, shape: Sequence[int], where: str) -> tuple[int, int]:
    """First and step of the rows that are chosen."""
    first, step = stated.shape(value, where) if isinstance(value, list) and len(value) == 2 else (0, 0)
    if not 0 <= first < step or len(shape) not in (2, 3) or any(length % step for length in shape[1:2]):
        raise stated.wrong(f"decoder of {where}", "`every` of rows that it divides", value)
    return first, step


def _input(value: Mapping[str, Any], files: Sequence[SourceFile], where: str) -> TensorSpec:
    start, stop = stated.size(value.get("start"), where), stated.size(value.get("stop"), where)
    number = stated.size(value.get("file"), where)
    name = stated.string(value.get("tensor"), where)
    dtype, shape = stated.dtype(value.get("dtype"), where), stated.shape(value.get("shape"), where)
    bits = prod(shape) * dtype.nbits
    if number >= len(files) or not start <= stop <= files[number].size or (stop - start) * 8 != bits:
        raise VerificationError(
            f"`{manifest.PATH}`: bytes {start}:{stop} of `{shorten(name)}`, which {where} was made from, are"
            f" not {dtype} {list(shape)} within a source file"
        )
    return TensorSpec(name, dtype, shape, files[number].path, start, stop)


def _options(value: Mapping[str, Any], formats: tuple[str, ...]) -> Options:
    given: dict[str, Any] = {
        key: tuple(stated.string(item, f"options.{key}") for item in v) if isinstance(v, list) else v
        for key, v in value.items()
    }
    given = {"formats": (DEFAULT,), "experts": "source"} | given
    if given.keys() != {f.name for f in fields(Options)}:
        raise stated.wrong("options", "those of this version", sorted(given))
    if given["formats"] != formats:
        raise stated.wrong("options.formats", str(list(formats)), given["formats"])
    for key, default in vars(Options()).items():
        wanted = (str, type(None)) if default is None else type(default)
        if not isinstance(given[key], wanted) or isinstance(given[key], bool):
            raise stated.wrong(f"options.{key}", "its type", given[key])
    for key, words in CHOICES.items():
        if given[key] not in words:
            raise stated.wrong(f"options.{key}", f"one of {', '.join(words)}", given[key])
    stated.size(given["shard_size"], "options.shard_size")
    return Options(**given)
