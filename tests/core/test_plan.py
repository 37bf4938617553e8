"""The plan: parts, shards, names and sizes before any byte; JSON both ways; the fingerprint."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from math import prod

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tensorport_hub.core import npy
from tensorport_hub.core.layout import SHARD_FILES, OutFile, cut_parts, lay_out
from tensorport_hub.core.plan import Options, Plan, dumps
from tensorport_hub.core.tensor import DTYPES
from tensorport_hub.errors import LimitError
from tests.core.samples import COMMIT, Stored, made_from, plan_of, specs

TENSORS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["F32", "BF16", "U8", "F64", "BOOL", "I16"]),
            st.lists(st.integers(0, 9), max_size=3).map(tuple),
        ),
        st.tuples(st.just("F4"), st.tuples(st.integers(0, 9), st.integers(0, 9).map(lambda n: 2 * n))),
        st.tuples(st.just("mxfp4"), st.tuples(st.integers(0, 9), st.integers(1, 4), st.integers(1, 3))),
    ),
    max_size=8,
)


def stored(tensors) -> list[Stored]:
    """Stored tensors by number; F4 becomes bytes beside MXFP4, whose scales would claim it."""
    made: list[Stored] = []
    scaled = any(dtype == "mxfp4" for dtype, _ in tensors)
    for i, (kind, shape) in enumerate(tensors):
        dtype = "U8" if kind == "F4" and scaled else kind
        if dtype == "mxfp4":
            made += [(f"t{i}_blocks", "U8", (*shape, 16)), (f"t{i}_scales", "U8", shape)]
        else:
            made.append((f"t{i}", dtype, shape))
    return made


def file_size(shape: tuple[int, ...], dtype) -> int:
    """The size of the file that numpy itself would find: our header parsed by it, plus the data."""
    file = io.BytesIO(npy.header(dtype, shape))
    np.lib.format.read_magic(file)
    found, _, kind = np.lib.format.read_array_header_1_0(file)
    assert found == shape
    return file.tell() + prod(shape) * kind.itemsize


def pieces_of(files: Iterable[OutFile]) -> list[tuple[str, int, tuple[int, int]]]:
    """Path, size and rows of files that hold one piece each."""
    return [(file.path, file.size, piece.rows) for file in files for piece in file.pieces]


@settings(max_examples=200, deadline=None)
@given(TENSORS, st.integers(150, 1200))
@example([("F32", (9, 9))], 200)
@example([("U8", (3, 100)), ("U8", (2,))], 356)
@example([("U8", (0, 9)), ("U8", (9, 0)), ("U8", ())], 150)
def test_parts_tile_tensors_and_fill_shards(tensors, shard_size):
    """Rows cover axis 0 in order, sizes are exact and fit, shards fill greedily, names are unique."""
    made = made_from(specs(stored(tensors)))
    try:
        files = lay_out(made, shard_size=shard_size)
    except LimitError:
        smallest_row = [128 + prod(r.stored_shape[1:]) * r.dtype.itemsize for r in made]
        assert max(smallest_row) > shard_size
        return
    parts = cut_parts(made, files)
    assert [part.index for part in parts] == list(range(len(parts)))
    assert [part.recipe for part in parts] == sorted(part.recipe for part in parts)
    assert [[target.file for target in part.targets] for part in parts] == [[f.index] for f in files]
    for number, recipe in enumerate(made):
        own = [part for part in parts if part.recipe == number]
        shape = recipe.stored_shape
        rows = shape[0] if shape else 1
        row_items = prod(shape[1:])
        edges = [own[0].rows[0], *(part.rows[1] for part in own)]
        assert [part.rows[0] for part in own] == edges[:-1]
        assert (edges[0], edges[-1]) == (0, rows)
        for part in own:
            assert part.items == (part.rows[0] * row_items, part.rows[1] * row_items)
            assert part.items[0] % recipe.decoder.grain == part.items[1] % recipe.decoder.grain == 0
            piece = (part.rows[1] - part.rows[0], *shape[1:]) if shape else ()
            file = files[part.index]
            assert file.pieces[0].rows == part.rows
            assert file.size == file_size(piece, recipe.dtype) <= shard_size
        if len(own) > 1:
            counts = {part.rows[1] - part.rows[0] for part in own}
            assert max(counts) - min(counts) <= 1
            fewer = -(-rows // (len(own) - 1))
            assert 128 + fewer * row_items * recipe.dtype.itemsize > shard_size
    shards: dict[int, list[OutFile]] = {}
    for file in files:
        shards.setdefault(file.shard, []).append(file)
        assert file.path.startswith(f"shard_{file.shard:03d}/")
    assert list(shards) == list(range(len(shards)))
    sizes = [sum(file.size for file in shard) for shard in shards.values()]
    assert all(size <= shard_size for size in sizes)
    assert all(sizes[i] + shards[i + 1][0].size > shard_size for i in range(len(sizes) - 1))
    assert len({file.path.lower() for file in files}) == len(files)


def sizes_of(stored_tensors: list[Stored], shard_size: int) -> list[tuple[str, int, tuple[int, int]]]:
    return pieces_of(lay_out(made_from(specs(stored_tensors)), shard_size=shard_size))


def test_a_tensor_as_large_as_a_shard_is_not_cut():
    """Exactly the shard size is one file; one row more are two of nearly equal rows."""
    assert sizes_of([("x", "U8", (872,))], 1000) == [("shard_000/x.npy", 1000, (0, 872))]
    assert sizes_of([("x", "U8", (873,))], 1000) == [
        ("shard_000/x.part-00000-of-00002.npy", 128 + 436, (0, 436)),
        ("shard_001/x.part-00001-of-00002.npy", 128 + 437, (436, 873)),
    ]


def test_a_first_tensor_larger_than_the_shard():
    """It starts in shard 0; what follows it fills the last shard up."""
    found = sizes_of([("big", "F32", (5, 100)), ("small", "U8", (8,)), ("late", "U8", (700,))], 1000)
    assert found == [
        ("shard_000/big.part-00000-of-00003.npy", 528, (0, 1)),
        ("shard_001/big.part-00001-of-00003.npy", 928, (1, 3)),
        ("shard_002/big.part-00002-of-00003.npy", 928, (3, 5)),
        ("shard_003/small.npy", 136, (0, 8)),
        ("shard_003/late.npy", 828, (0, 700)),
    ]


def test_small_shapes():
    """A 0-d tensor has rows 0 to 1; empty tensors and single rows are files like others."""
    found = sizes_of(
        [("s", "F64", ()), ("e", "F64", (0, 3)), ("n", "F64", (4, 0)), ("r", "F64", (1, 2))], 1000
    )
    assert found == [
        ("shard_000/s.npy", 136, (0, 1)),
        ("shard_000/e.npy", 128, (0, 0)),
        ("shard_000/n.npy", 128, (0, 4)),
        ("shard_000/r.npy", 144, (0, 1)),
    ]


def test_no_tensors_no_parts():
    """An empty checkpoint lays out to nothing."""
    assert lay_out([], shard_size=1000) == ()


def test_a_shard_holds_4096_files():
    """Many small tensors close a shard by count."""
    parts = lay_out(made_from(specs((f"t{i}", "U8", (1,)) for i in range(10_000))), shard_size=10**9)
    counts = [sum(part.shard == shard for part in parts) for shard in range(3)]
    assert counts == [SHARD_FILES, SHARD_FILES, 10_000 - 2 * SHARD_FILES]
    assert SHARD_FILES == 4096


@pytest.mark.parametrize(
    ("tensor", "shard_size", "got"),
    [
        (("x", "F32", (3, 250)), 1000, 1128),
        (("x", "F32", (1, 250)), 1000, 1128),
        (("x", "F64", ()), 130, 136),
        (("x", "F64", (5, 0)), 100, 128),
        (("x", "F64", (0, 5)), 100, 168),
        (("x", "U8", (7,)), 1, 129),
    ],
)
def test_a_row_larger_than_a_shard_is_an_error(tensor, shard_size, got):
    """What can't be cut small enough is a limit error with expected and got; an empty tensor too."""
    with pytest.raises(LimitError, match=f"row of `x` .*at most {shard_size} bytes, got {got}") as caught:
        lay_out(made_from(specs([tensor])), shard_size=shard_size)
    assert "--shard-size" in caught.value.hint


def test_all_rows_that_are_too_large_are_told():
    """Every tensor that no shard can hold is named in one error."""
    made = made_from(specs([("a", "U8", (2, 900)), ("b", "U8", (2, 9)), ("c", "U8", (900, 900))]))
    with pytest.raises(LimitError, match="2 problems") as caught:
        lay_out(made, shard_size=1000)
    assert "`a`" in caught.value.message
    assert "`c`" in caught.value.message
    assert "`b`" not in caught.value.message


def test_names_that_clash_lie_apart():
    """Names equal but for case, and look-alikes of parts, get files of their own beside a real split."""
    parts = lay_out(
        made_from(
            specs(
                [
                    ("w", "U8", (900,)),
                    ("w.part-00000-of-00002", "U8", (1,)),
                    ("A", "U8", (1,)),
                    ("a", "U8", (1,)),
                ]
            )
        ),
        shard_size=600,
    )
    assert len({part.path.partition("/")[2].lower() for part in parts}) == len(parts) == 5


# --- JSON and fingerprint ---


def example_plan(**options) -> Plan:
    files = {
        "a.safetensors": [
            ("x_blocks", "U8", (2, 3, 2, 16)),
            ("norm.weight", "BF16", (7,)),
            ("ünï", "F64", ()),
            ("big", "F32", (9, 30)),
        ],
        "b.safetensors": [("x_scales", "U8", (2, 3, 2)), ("ids", "I64", (1, 4))],
    }
    return plan_of(files, **{"shard_size": 700, "precision": "float16", "include": ("*",), **options})


def test_a_plan_survives_json():
    """A plan read back from its JSON text equals it, fingerprint, parts and decoders included."""
    plan = example_plan()
    text = dumps(plan.to_json())
    again = Plan.from_json(json.loads(text))
    assert again == plan
    assert again.fingerprint == plan.fingerprint
    assert dumps(again.to_json()) == text
    assert any(part.rows[0] for part in again.parts)
    assert {recipe.decoder.scheme for recipe in again.recipes} == {"plain", "mxfp4"}


@settings(max_examples=60, deadline=None)
@given(TENSORS, st.sampled_from(["keep", "bfloat16", "float16", "float32"]))
def test_any_plan_survives_json(tensors, precision):
    """Whatever was planned equals what its JSON says."""
    tensors = [(d, s) for d, s in tensors if precision == "keep" or d != "F4"]
    plan = plan_of({"m.safetensors": stored(tensors)}, precision=precision)
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    assert again.bytes_out == plan.bytes_out
    assert again.parameters == plan.parameters
    assert again.shards == plan.shards


def test_the_fingerprint_is_the_digest_of_the_json():
    """sha256 over sorted compact JSON, a line for each row; the same in another process with another seed."""
    plan = example_plan()
    head = plan.to_json()
    rows = [head, *head.pop("recipes"), *head.pop("outputs")]
    lines = [json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False) for row in rows]
    assert plan.fingerprint == hashlib.sha256("\n".join(lines).encode()).hexdigest()
    code = "from tests.core.test_plan import example_plan; print(example_plan().fingerprint)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert run.stdout.strip() == plan.fingerprint


OTHER = {
    "subfolder": "unet",
    "allow_patterns": ("x*",),
    "precision": "float32",
    "quantized": "keep",
    "on_overflow": "inf",
    "on_underflow": "error",
    "shard_size": 1_700_000_000,
    "include": ("a",),
    "exclude": ("b",),
    "verify_source": "whole",
    "formats": ("msgpack",),
    "experts": "stacked",
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Options)])
def test_every_content_option_is_in_the_fingerprint(field):
    """Another value of any content option is another plan."""
    plan = example_plan()
    other = dataclasses.replace(plan, options=dataclasses.replace(plan.options, **{field: OTHER[field]}))
    assert other.fingerprint != plan.fingerprint


def test_everything_else_of_a_plan_is_in_the_fingerprint():
    """Source, version, files, tensors, parts and what was skipped each change it; equal plans share it."""
    plan = example_plan()
    file, recipe, out = plan.files[0], plan.recipes[1], plan.outputs[0]
    tensor = dataclasses.replace(recipe.decoder.inputs[0], start=81)
    others = [
        {"repo": None},
        {"commit": COMMIT[::-1]},
        {"version": "9.9"},
        {"skipped": {"x": "excluded"}},
        {"partial": (file.path,)},
        {"packed": {"x": {"scheme": "mxfp4"}}},
        {"files": (dataclasses.replace(file, sha256="f" * 64), *plan.files[1:])},
        {"files": (dataclasses.replace(file, size=file.size + 1), *plan.files[1:])},
        {"files": (dataclasses.replace(file, git_oid="f" * 40), *plan.files[1:])},
        {"recipes": (plan.recipes[0], dataclasses.replace(recipe, dtype=DTYPES["F32"]), *plan.recipes[2:])},
        {
            "recipes": (
                plan.recipes[0],
                dataclasses.replace(recipe, decoder=type(recipe.decoder)(tensor)),
                *plan.recipes[2:],
            )
        },
        {"outputs": (dataclasses.replace(out, path="shard_000/y.npy"), *plan.outputs[1:])},
        {"outputs": plan.outputs[:-1]},
    ]
    prints = [dataclasses.replace(plan, **other).fingerprint for other in others]
    assert len({plan.fingerprint, *prints}) == len(others) + 1
    assert example_plan().fingerprint == plan.fingerprint


def test_totals():
    """Bytes are those of all files, parameters those of the weights, shards those that hold parts."""
    plan = example_plan()
    assert plan.bytes_out == sum(file.size for file in plan.outputs)
    assert plan.parameters == 2 * 3 * 64 + 7 + 1 + 270
    assert plan.shards == len({file.shard for file in plan.outputs})
    assert dataclasses.replace(plan, outputs=()).shards == 0


def test_nothing_of_this_run_is_in_a_plan():
    """The JSON holds neither a clock, nor a path of this machine, nor its name."""
    text = dumps(example_plan().to_json()).decode()
    assert os.getcwd() not in text
    assert os.uname().nodename not in text
    assert set(json.loads(text)) == {
        *("version", "repo", "commit", "options", "files", "recipes", "outputs"),
        *("skipped", "partial", "packed"),
    }
