"""Which rows go to which file, and the units of decoding that fill them.

Shards: tensors keep source order; a shard is closed before one of its files would pass the shard size, or at
4,096 tensors. A tensor larger than a shard is cut along axis 0 into pieces of nearly equal row counts, but in
formats that can't (see `encode`), where it has a file of its own. All formats that cut have the same shards.

A *part* is what is decoded at a time, once for all that becomes of it: its rows lie between neighbouring
cuts of all formats. Containers are appended in plan order, so where there are any, parts are decoded in that
order and each makes rows of one tensor. Else tensors that one decoder makes together (gate and up,
interleaved) come from the same parts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from tensorport_hub.core.encode.frame import Encoding, Entry, Frame
from tensorport_hub.core.encode.safetensors import INDEX, SAFETENSORS, index, is_aligned
from tensorport_hub.core.encode.table import DEFAULT, ENCODINGS
from tensorport_hub.core.filenames import stems
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.recipe import Recipe
from tensorport_hub.core.tensor import shorten
from tensorport_hub.errors import LimitError, gather

SHARD_FILES = 4096
LARGEST_SHARD = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows `rows[0]:rows[1]` of a recipe's output, under the name `key`; a 0-d tensor has rows (0, 1)."""

    recipe: int
    rows: Range
    key: str


@dataclass(frozen=True, slots=True)
class OutFile:
    """One file of weights, and what stands in it, in order."""

    index: int
    format: str
    shard: int
    path: str
    size: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """A file that takes a part's rows, as rows of a recipe's output."""

    file: int
    recipe: int


@dataclass(frozen=True, slots=True)
class Part:
    """Items `items[0]:items[1]` of a recipe's decoder, which are rows `rows[0]:rows[1]` of all `targets`."""

    index: int
    recipe: int
    rows: Range
    items: Range
    targets: tuple[Target, ...]


def stored_in(recipe: Recipe, form: str) -> tuple[int, ...]:
    """Shape of a recipe's stored items in a format: safetensors has transformers' orientation."""
    shape = recipe.stored_shape
    return (*shape[:-2], shape[-1], shape[-2]) if is_swapped(recipe, form) else shape


def is_swapped(recipe: Recipe, form: str) -> bool:
    """Whether the last two axes stand the other way round in a format."""
    return form == SAFETENSORS.name and recipe.is_transposed_in_transformers


def entry(recipe: Recipe, piece: Piece, form: str) -> Entry:
    """A piece as an array of its file."""
    shape = stored_in(recipe, form)
    shape = (piece.rows[1] - piece.rows[0], *shape[1:]) if shape else ()
    return Entry(piece.key, recipe.dtype, shape)


def frame(recipes: Sequence[Recipe], file: OutFile) -> Frame:
    """The literal bytes of a file, and where its tensors stand."""
    return _frame(recipes, file.format, file.pieces)


def _frame(recipes: Sequence[Recipe], form: str, pieces: Sequence[Piece]) -> Frame:
    return ENCODINGS[form].frame([entry(recipes[piece.recipe], piece, form) for piece in pieces])


def lay_out(
    recipes: Sequence[Recipe], *, shard_size: int, formats: Sequence[str] = (DEFAULT,)
) -> tuple[OutFile, ...]:
    """The files of all formats, one format after another.

    Raises:
        LimitError: one row of a tensor is larger than a shard; all such tensors are named.
    """
    encodings = [ENCODINGS[form] for form in formats]
    cutting = [encoding for encoding in encodings if encoding.cuts]
    shards = _fill(recipes, _cut_all(recipes, shard_size, cutting), shard_size, cutting) if cutting else []
    files: list[OutFile] = []
    for encoding in encodings:
        folder = f"{encoding.name}/" if len(encodings) > 1 else ""
        own = shards if encoding.cuts else _fill_uncut(recipes, shard_size, encoding)
        for shard, named in enumerate(own):
            path = folder + encoding.path(shard, len(own))
            held = [(f"{path}{stem}.npy", [piece]) for stem, piece in named]
            if encoding.container:
                held = [(path, [piece for _, piece in named])]
            for name, pieces in held:
                files.append(make_file(recipes, len(files), encoding.name, shard, name, pieces))
    return tuple(files)


Named = tuple[str, Piece]
"""A piece, and the name of a file for it alone."""


def make_file(
    recipes: Sequence[Recipe], index: int, form: str, shard: int, path: str, pieces: Sequence[Piece]
) -> OutFile:
    """A file of these pieces; its size follows."""
    return OutFile(index, form, shard, path, _frame(recipes, form, pieces).size, tuple(pieces))


def _cut_all(recipes: Sequence[Recipe], shard_size: int, encodings: Sequence[Encoding]) -> list[Named]:
    names = stems(recipe.name for recipe in recipes)
    pieces: list[Named] = []
    problems: list[str] = []
    for number, recipe in enumerate(recipes):
        try:
            pieces += _cut(recipe, number, names[recipe.name], shard_size, encodings)
        except LimitError as error:
            problems.append(error.message)
    named = Counter(piece.key for _, piece in pieces if any(e.container for e in encodings))
    problems += [
        f"`{shorten(key)}` is a tensor, and a piece of another one" for key in named if named[key] > 1
    ]
    if problems:
        raise gather(LimitError, problems, hint="raise `--shard-size`")
    return pieces


def _cut(
    recipe: Recipe, number: int, stem: str, shard_size: int, encodings: Sequence[Encoding]
) -> Iterator[Named]:
    """The pieces of one recipe."""
    shape = recipe.stored_shape
    rows = shape[0] if shape else 1
    longest = Entry(recipe.name + part_ending(0, 1), recipe.dtype, shape)
    head = max(e.base + e.overhead(longest) for e in encodings)
    if prod(shape) * recipe.dtype.itemsize + head <= shard_size:
        yield stem, Piece(number, (0, rows), recipe.name)
        return
    row_nbytes = prod(shape[1:]) * recipe.dtype.itemsize
    most = (shard_size - head) // row_nbytes if shape and row_nbytes else 0
    if most < 1:
        raise LimitError(
            f"one row of `{shorten(recipe.name)}` ({recipe.dtype} {list(recipe.shape)}) is larger than"
            f" a shard: expected at most {shard_size} bytes, got {head + row_nbytes}"
        )
    count = -(-rows // most)
    for i, cut in enumerate(pairwise(rows * i // count for i in range(count + 1))):
        ending = part_ending(i, count)
        yield stem + ending, Piece(number, cut, recipe.name + ending)


def part_ending(number: int, count: int) -> str:
    """What the name of one of several pieces of a tensor ends with."""
    return f".part-{number:05d}-of-{count:05d}"


def _fill(
    recipes: Sequence[Recipe], pieces: Sequence[Named], shard_size: int, encodings: Sequence[Encoding]
) -> list[list[Named]]:
    """Shards that no format's file passes."""
    shards: list[list[Named]] = []
    used: list[int] = []
    for stem, piece in pieces:
        array = entry(recipes[piece.recipe], piece, DEFAULT)
        sizes = [array.nbytes + encoding.overhead(array) for encoding in encodings]
        full = any(a + b > shard_size for a, b in zip(used, sizes, strict=False))
        if not shards or full or len(shards[-1]) == SHARD_FILES:
            shards.append([])
            used = [encoding.base for encoding in encodings]
        shards[-1].append((stem, piece))
        used = [a + b for a, b in zip(used, sizes, strict=True)]
    return shards


def _fill_uncut(recipes: Sequence[Recipe], shard_size: int, encoding: Encoding) -> list[list[Named]]:
    """The same of whole tensors; what is larger than a shard stands alone."""
    shards: list[list[Named]] = []
    used = data = 0
    for number, recipe in enumerate(recipes):
        rows = recipe.stored_shape[0] if recipe.stored_shape else 1
        piece = Piece(number, (0, rows), recipe.name)
        array = entry(recipe, piece, encoding.name)
        size = array.nbytes + encoding.overhead(array)
        if not shards or used + size > shard_size or not is_aligned(array, data):
            shards.append([])
            used, data = encoding.base, 0
        shards[-1].append(("", piece))
        used, data = used + size, data + array.nbytes
    return shards


def safetensors_index(recipes: Sequence[Recipe], files: Sequence[OutFile]) -> dict[str, bytes]:
    """The index beside the files of `safetensors`, by its path; nothing where there are none."""
    own = [file for file in files if file.format == SAFETENSORS.name]
    if not own:
        return {}
    folder, slash, _ = own[0].path.rpartition("/")
    named = [
        (file.path.rpartition("/")[2], [entry(recipes[p.recipe], p, file.format) for p in file.pieces])
        for file in own
    ]
    return {folder + slash + INDEX: index(named)}


def cut_parts(recipes: Sequence[Recipe], files: Sequence[OutFile]) -> tuple[Part, ...]:
    """The parts that fill the files, in plan order."""
    takers: dict[int, list[tuple[Range, int]]] = defaultdict(list)
    for file in files:
        for piece in file.pieces:
            takers[piece.recipe].append((piece.rows, file.index))
    parts: list[Part] = []
    ranges: dict[Range, Range] = {}  # equal ones are one object: there are many tensors and few shapes
    for together in _joint(recipes, apart=is_ordered(files)):
        recipe = recipes[together[0]]
        edges = sorted({row for number in together for rows, _ in takers[number] for row in rows})
        row_items = prod(recipe.source_shape[1:])
        for start, stop in [*pairwise(edges)] or [(row, row) for row in edges]:
            targets = [
                Target(file, number)
                for number in together
                for rows, file in takers[number]
                if rows[0] <= start and stop <= rows[1]
            ]
            if targets:
                rows, items = (start, stop), (start * row_items, stop * row_items)
                rows, items = ranges.setdefault(rows, rows), ranges.setdefault(items, items)
                parts.append(Part(len(parts), together[0], rows, items, tuple(targets)))
    return tuple(parts)


def is_ordered(files: Sequence[OutFile]) -> bool:
    """Whether parts must be decoded one after another, in plan order."""
    return any(ENCODINGS[file.format].container for file in files)


def _joint(recipes: Sequence[Recipe], *, apart: bool) -> list[list[int]]:
    """Numbers of recipes that one decoder makes together; each alone where they must stay `apart`."""
    groups: dict[object, list[int]] = defaultdict(list)
    for number, recipe in enumerate(recipes):
        key = number if apart or recipe.every is None else (recipe.decoder.inputs[0].name, recipe.dtype.name)
        groups[key].append(number)
    return list(groups.values())
