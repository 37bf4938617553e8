"""Files of several formats, and the parts that fill them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.encode.table import ENCODINGS
from tensorport_hub.core.experts import stack_experts
from tensorport_hub.core.layout import cut_parts, entry, frame, lay_out
from tensorport_hub.errors import LimitError
from tests.core.samples import made_from, specs
from tests.core.test_experts import GPT_OSS, PACKED
from tests.core.test_plan import TENSORS, stored

FORMATS = st.lists(st.sampled_from(sorted(ENCODINGS)), min_size=1, unique=True)


@settings(max_examples=250, deadline=None)
@given(TENSORS, st.integers(500, 1500), FORMATS)
def test_every_format_holds_every_row_once(tensors, shard_size, formats):
    """In order, in files that fit a shard but for what can't be cut; sizes are those of their frames."""
    made = made_from(specs(stored(tensors)))
    try:
        files = lay_out(made, shard_size=shard_size, formats=formats)
    except LimitError:
        return
    assert [file.index for file in files] == list(range(len(files)))
    assert len({file.path.lower() for file in files}) == len(files)
    for form in formats:
        own = [file for file in files if file.format == form]
        rows: dict[int, list[tuple[int, int]]] = {}
        for file in own:
            assert file.path.startswith(f"{form}/") is (len(formats) > 1)
            assert file.size == frame(made, file).size
            alone = not ENCODINGS[form].cuts and len(file.pieces) == 1
            assert file.size <= shard_size or alone
            for piece in file.pieces:
                rows.setdefault(piece.recipe, []).append(piece.rows)
        order = [piece.recipe for file in own for piece in file.pieces]
        assert order == sorted(order)
        assert rows.keys() == set(range(len(made)))
        for number, found in rows.items():
            shape = made[number].stored_shape
            assert [start for start, _ in found] == [0, *(stop for _, stop in found[:-1])]
            assert found[-1][1] == (shape[0] if shape else 1)
            assert len(found) == 1 or ENCODINGS[form].cuts
        names = [piece.key for file in own for piece in file.pieces]
        assert len(set(names)) == len(names)
        if form == "safetensors":
            for file in own:
                check_alignment(made, file)


def check_alignment(made, file) -> None:
    """Every tensor stands at a multiple of its element's size, in the file."""
    offsets = frame(made, file).offsets
    for piece, offset in zip(file.pieces, offsets, strict=True):
        assert offset % entry(made[piece.recipe], piece, file.format).dtype.itemsize == 0


@settings(max_examples=250, deadline=None)
@given(TENSORS, st.integers(500, 1500), FORMATS)
def test_parts_fill_all_files(tensors, shard_size, formats):
    """The parts of a file, one after another, are its pieces; each part goes once to each format."""
    made = made_from(specs(stored(tensors)))
    try:
        files = lay_out(made, shard_size=shard_size, formats=formats)
    except LimitError:
        return
    parts = cut_parts(made, files)
    assert [part.index for part in parts] == list(range(len(parts)))
    assert all(a.recipe <= b.recipe for a, b in pairwise(parts))
    for part in parts:
        assert sorted(files[target.file].format for target in part.targets) == sorted(formats)
        assert {target.recipe for target in part.targets} == {part.recipe}
    for file in files:
        found: dict[int, list[tuple[int, int]]] = {}
        for part in parts:
            if any(target.file == file.index for target in part.targets):
                found.setdefault(part.recipe, []).append(part.rows)
        for piece in file.pieces:
            rows = found.pop(piece.recipe)
            assert all(a[1] == b[0] for a, b in pairwise(rows))
            assert (rows[0][0], rows[-1][1]) == piece.rows
        assert not found


def test_all_formats_that_cut_have_the_same_shards():
    """The n-th .msgpack and .pkl hold what the n-th folder of .npy files holds."""
    made = made_from(specs([(f"t{i}", "F32", (100, 3)) for i in range(9)]))
    files = lay_out(made, shard_size=2500, formats=("numpy-direct", "msgpack", "jax-pickle"))
    held = {
        form: [
            sorted(p.key for f in files if (f.format, f.shard) == (form, shard) for p in f.pieces)
            for shard in range(8)
        ]
        for form in ("numpy-direct", "msgpack", "jax-pickle")
    }
    assert held["numpy-direct"] == held["msgpack"] == held["jax-pickle"]
    assert sum(map(bool, held["msgpack"])) > 2


def test_names_of_files():
    """As the formats' own readers look for them."""
    made = made_from(specs([("a", "F32", (100,)), ("b", "F32", (100,))]))
    paths = {
        form: [file.path for file in lay_out(made, shard_size=650, formats=(form,))] for form in ENCODINGS
    }
    assert paths == {
        "numpy-direct": ["shard_000/a.npy", "shard_001/b.npy"],
        "msgpack": ["shard_000.msgpack", "shard_001.msgpack"],
        "jax-pickle": ["shard_000.pkl", "shard_001.pkl"],
        "safetensors": ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
    }


def test_a_cut_tensor_has_a_name_for_each_piece():
    """`NAME.part-00000-of-00002` in msgpack and pickle, as its .npy files are called."""
    made = made_from(specs([("big", "F32", (300,))]))
    for form in ("msgpack", "jax-pickle"):
        files = lay_out(made, shard_size=1000, formats=(form,))
        assert [piece.key for file in files for piece in file.pieces] == [
            "big.part-00000-of-00002",
            "big.part-00001-of-00002",
        ]


@pytest.mark.parametrize("formats", [("numpy-direct",), ("msgpack",), ("numpy-direct", "msgpack")])
def test_gate_and_up(formats):
    """Made from the same parts, unless files are appended in order: then one must come after the other."""
    recipes = stack_experts(made_from(specs(PACKED)), GPT_OSS)
    parts = cut_parts(recipes, lay_out(recipes, shard_size=1 << 20, formats=formats))
    names = [sorted({recipes[target.recipe].name[-9:] for target in part.targets}) for part in parts]
    if formats == ("numpy-direct",):
        assert ["gate_proj", "s.up_proj"] in names
        assert len(parts) == 4
    else:
        assert all(len(found) == 1 for found in names)
        assert len(parts) == 6


def test_transformers_orientation():
    """Only gpt-oss' packed experts are stored the other way round, and only in safetensors."""
    made = made_from(specs([*PACKED, ("x_blocks", "U8", (2, 12, 2, 16)), ("x_scales", "U8", (2, 12, 2))]))
    for form in ENCODINGS:
        shapes = {
            piece.key.rpartition(".")[2]: entry(made[piece.recipe], piece, form).shape
            for file in lay_out(made, shard_size=1 << 20, formats=(form,))
            for piece in file.pieces
        }
        turned = form == "safetensors"
        assert shapes["gate_up_proj"] == ((2, 64, 12) if turned else (2, 12, 64))
        assert shapes["down_proj"] == ((2, 32, 64) if turned else (2, 64, 32))
        assert shapes["x"] == (2, 12, 64)


def test_a_tensor_called_like_a_piece_of_another_one():
    """.npy files tell them apart; in one map of names they would be one: refused, by name."""
    made = made_from(specs([("w", "F32", (300,)), ("w.part-00000-of-00002", "F32", (3,))]))
    assert len(lay_out(made, shard_size=1000)) == 3
    with pytest.raises(LimitError, match=r"`w\.part-00000-of-00002` is a tensor, and a piece"):
        lay_out(made, shard_size=1000, formats=("msgpack",))
