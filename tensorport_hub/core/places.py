"""Where a manifest says that tensors are stored, made into the files of a plan.

In each format all rows of a tensor stand in order, and a file is just as its pieces make it: size and offsets
follow from names, dtypes and shapes, so a manifest that states others is wrong.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from tensorport_hub.core import manifest, stated
from tensorport_hub.core.encode.table import ENCODINGS
from tensorport_hub.core.layout import OutFile, Piece, frame, is_swapped, make_file, part_ending
from tensorport_hub.core.manifest import FileEntry
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.recipe import Recipe
from tensorport_hub.core.tensor import shorten
from tensorport_hub.errors import VerificationError

_SHARD = re.compile(r"(?:^|/)(shard_|model-)(\d+)")


def about(name: str) -> str:
    """A tensor in an error."""
    return f"tensor `{shorten(name)}`"


@dataclass(frozen=True)
class Place:
    """Rows of a recipe in a file, from byte `offset` on; None where the file is theirs alone."""

    form: str
    path: str
    recipe: int
    rows: Range
    offset: int | None


def places_of(
    recipe: Recipe,
    number: int,
    value: Mapping[str, Any],
    listed: Mapping[str, FileEntry],
    formats: Sequence[str],
) -> Iterator[Place]:
    """Where a tensor is stored: in each format all of its rows, in order."""
    where = about(recipe.name)
    at = dict.fromkeys(formats, 0)
    for one in stated.list_(value.get("stored"), f"`stored` of {where}"):
        stored = stated.object_(one, where)
        path = stated.string(stored.get("file"), where)
        rows = stated.shape(stored.get("rows"), where)
        entry = listed.get(path)
        if entry is None or (entry.size, entry.sha256) != (stored.get("size"), stored.get("sha256")):
            raise VerificationError(
                f"`{manifest.PATH}`: `{shorten(path)}` of {where} is not listed so in `files`"
            )
        form = stored.get("format", formats[0] if len(formats) == 1 else None)
        if form not in at:
            raise stated.wrong(f"format of `{shorten(path)}` of {where}", "one of the mirror's", form)
        if len(rows) != 2 or rows[0] != at[form] or rows[1] < at[form]:
            raise stated.wrong(f"rows of `{shorten(path)}` of {where}", f"[{at[form]}, ...]", list(rows))
        if stored.get("swapped", False) is not is_swapped(recipe, form):
            raise stated.wrong(f"`swapped` of {where}", str(is_swapped(recipe, form)), stored.get("swapped"))
        offset = stored.get("offset")
        if (offset is not None) is not ENCODINGS[form].container:
            raise stated.wrong(f"offset of {where}", "one where a file holds several tensors", offset)
        at[form] = rows[1]
        yield Place(
            form, path, number, (rows[0], rows[1]), None if offset is None else stated.size(offset, where)
        )
    rows_of_all = recipe.stored_shape[0] if recipe.stored_shape else 1
    for reached in at.values():
        if reached != rows_of_all:
            raise stated.wrong(f"rows of {where}", f"all {rows_of_all}", reached)


def files_of(
    recipes: Sequence[Recipe],
    places: Sequence[Place],
    listed: Mapping[str, FileEntry],
    formats: Sequence[str],
) -> list[OutFile]:
    """The files of weights; each must be just as its pieces make it."""
    by_path: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        by_path[place.path].append(place)
    cuts: dict[tuple[str, int], list[str]] = defaultdict(list)  # the files that share a tensor
    for place in places:
        files = cuts[place.form, place.recipe]
        files += [place.path] if place.path not in files[-1:] else []
    made = []
    for path, own in by_path.items():
        own.sort(key=lambda place: (place.offset or 0, place.recipe, place.rows))
        number = _shard(path)
        pieces = [*_pieces(recipes, own, cuts)]
        where = about(recipes[own[0].recipe].name)
        if len({place.form for place in own}) > 1 or (own[0].offset is None and len(own) > 1):
            raise VerificationError(f"`{manifest.PATH}`: `{shorten(path)}` of {where} is named twice")
        file = make_file(recipes, 0, own[0].form, number, path, pieces)
        if file.size != listed[path].size:
            raise stated.wrong(f"size of `{shorten(path)}` of {where}", str(file.size), listed[path].size)
        _check_offsets(recipes, file, own)
        made.append(file)
    made.sort(key=lambda f: (formats.index(f.format), f.shard, f.pieces[0].recipe, f.pieces[0].rows))
    return [replace(file, index=index) for index, file in enumerate(made)]


def _shard(path: str) -> int:
    """The number of a shard, by its path; those of safetensors begin with 1."""
    found = _SHARD.search(path)
    return int(found[2]) - (found[1] == "model-") if found else 0


def _pieces(
    recipes: Sequence[Recipe], own: Sequence[Place], cuts: Mapping[tuple[str, int], Sequence[str]]
) -> Iterator[Piece]:
    """What stands in one file; chunks of a tensor are one piece."""
    for number, found in groupby(own, key=lambda place: place.recipe):
        places = [*found]
        files = cuts[places[0].form, number]
        key = recipes[number].name
        if len(files) > 1:
            key += part_ending(files.index(places[0].path), len(files))
        yield Piece(number, (places[0].rows[0], places[-1].rows[1]), key)


def _check_offsets(recipes: Sequence[Recipe], file: OutFile, own: Sequence[Place]) -> None:
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
