"""Manifests read back: the plan that they were made by, or an error for whatever contradicts itself."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from importlib.resources import files as package_files
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core import manifest, mirror
from tensorport_hub.core.digest import pointer
from tensorport_hub.core.filenames import is_inside
from tensorport_hub.core.plan import Plan, dumps
from tensorport_hub.errors import VerificationError
from tests.engine.models import Experts, Tensor, experts, plain, plan_of, stored, write_in_order
from tests.fakes import MemorySource

SHA = "0123456789abcdef" * 4
SCHEMA = json.loads(package_files("tensorport_hub").joinpath("manifest.schema.json").read_text())


def plan(**options: Any) -> Plan:
    """Two files, a split tensor, one that decodes, a 0-d and an empty one."""
    files = {
        "a.safetensors": write_in_order([plain("w", "F32", (9, 40)), plain("scalar", "F16", ())]),
        "b.safetensors": write_in_order([*stored([experts("e", (4, 3, 2))]), plain("none", "I64", (0, 3))]),
    }
    return plan_of(MemorySource(files), shard_size=600, **options)


PLAN = plan()


def made(of: Plan = PLAN) -> bytes:
    """Its manifest."""
    weights = [manifest.weight_entry(file.path, file.size, f"{file.index:064x}") for file in of.outputs]
    small = [manifest.small_entry("config.json", b"{}\n", SHA)]
    digests = {file.path: SHA for file in of.files}
    return manifest.build(of, weights=weights, small=small, digests=digests, losses={}, original_config=None)


GOOD = json.loads(made())


@pytest.mark.parametrize("options", [{}, {"precision": "bfloat16"}, {"include": ("w", "e*")}])
def test_the_plan_comes_back(options: dict[str, Any]) -> None:
    """Recipes, files, parts, options, commit and version are those of the plan that made the manifest."""
    wanted = plan(**options)
    found = mirror.read(made(wanted)).plan
    for key in ("recipes", "outputs", "parts", "repo", "commit", "options", "version", "skipped"):
        assert getattr(found, key) == getattr(wanted, key), key


def test_files_come_back() -> None:
    """Every listed file, and the digest of each part's."""
    found = mirror.read(made())
    assert found.files.keys() == {*(file.path for file in PLAN.outputs), "config.json"}
    assert [entry.path for entry in found.weights] == [file.path for file in found.plan.outputs]
    assert found.digests == {file.path: file.sha256 for file in PLAN.files}


def _edit(change: Callable[[dict[str, Any]], object]) -> bytes:
    value = copy.deepcopy(GOOD)
    change(value)
    return dumps(value)


def _set(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Set what all keys but the last lead to, to the last."""
    *way, key, new = path

    def change(value: Any) -> None:
        for step in way:
            value = value[step]
        value[key] = new

    return change


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "path leads out": _set("files", 0, "path", "../x"),
    "path is absolute": _set("files", 0, "path", "/etc/passwd"),
    "path has a drive": _set("files", 0, "path", "c:/x"),
    "path has a backslash": _set("files", 0, "path", "a\\..\\x"),
    "path has a NUL": _set("files", 0, "path", "a\0b"),
    "path is empty": _set("files", 0, "path", ""),
    "path has an empty piece": _set("files", 0, "path", "a//b"),
    "path is the manifest": _set("files", 0, "path", "manifest.json"),
    "file is listed twice": lambda v: v["files"].append(v["files"][0]),
    "file is listed in another case": lambda v: v["files"].append(
        {**v["files"][0], "path": v["files"][0]["path"].upper()}
    ),
    "size is negative": _set("files", 0, "size", -1),
    "size is huge": _set("files", 0, "size", 1 << 63),
    "size is a bool": _set("files", 0, "size", True),
    "size is a float": _set("files", 0, "size", 1.0),
    "sha256 is short": _set("files", 0, "sha256", "ab"),
    "sha256 is upper case": _set("files", 0, "sha256", SHA.upper()),
    "git_oid is missing": lambda v: v["files"][0].pop("git_oid"),
    "stored file is not listed": _set("tensors", "w", "stored", 0, "file", "x.npy"),
    "stored digest is another": _set("tensors", "w", "stored", 0, "sha256", SHA),
    "rows overlap": _set("tensors", "w", "stored", 0, "rows", [0, 8]),
    "rows leave a hole": lambda v: v["tensors"]["w"]["stored"].pop(0),
    "rows are too few": lambda v: v["tensors"]["e"]["stored"].pop(),
    "rows are three": _set("tensors", "w", "stored", 0, "rows", [0, 1, 2]),
    "shape is another": _set("tensors", "w", "shape", [40, 9]),
    "shape is no list": _set("tensors", "w", "shape", 360),
    "dtype is unknown": _set("tensors", "w", "dtype", "F33"),
    "dtype has another size": _set("tensors", "w", "dtype", "F64"),
    "scheme is unknown": _set("tensors", "w", "decoder", "scheme", "magic"),
    "scheme is a list": _set("tensors", "w", "decoder", "scheme", ["plain"]),
    "scheme needs more tensors": _set("tensors", "w", "decoder", "scheme", "mxfp4"),
    "decoder has a strange parameter": _set("tensors", "w", "decoder", "level", 9),
    "inputs are missing": _set("tensors", "w", "from", []),
    "source file is unknown": _set("tensors", "w", "from", 0, "file", 9),
    "range ends past the file": _set("tensors", "w", "from", 0, "stop", 1 << 40),
    "range is reversed": _set("tensors", "w", "from", 0, "start", 1 << 20),
    "range has another length": _set("tensors", "w", "from", 0, "shape", [9, 41]),
    "source file twice": lambda v: v["source"]["files"].append(v["source"]["files"][0]),
    "source is verified somehow": _set("source", "files", 0, "verified", "surely"),
    "options lack one": lambda v: v["options"].pop("precision"),
    "options have another": _set("options", "quality", "high"),
    "option has a wrong type": _set("options", "shard_size", "1GB"),
    "tensors are a list": _set("tensors", []),
    "tensor is a list": _set("tensors", "w", []),
    "source is missing": lambda v: v.pop("source"),
    "generator is missing": lambda v: v.pop("generator"),
    "skipped is no text": _set("skipped", {"x": 1}),
    "source is a folder": _set("source", "repo", "/some/dir/"),
    "source leads elsewhere": _set("source", "repo", "../m"),
    "revision is a path": _set("source", "revision", "/../m"),
    "revision is a branch": _set("source", "revision", "main"),
    "another version": _set("schema", "tensorport.manifest/2"),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_contradictions_are_refused(change: Callable[[dict[str, Any]], object]) -> None:
    """Whatever is not consistent is exit 6, and the message names the manifest."""
    with pytest.raises(VerificationError, match=r"manifest\.json") as caught:
        mirror.read(_edit(change))
    assert caught.value.exit_code == 6
    assert len(caught.value.message) < 600


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"schema":"tensorport.manifest/1","schema":"tensorport.manifest/1"}',
        b'{"schema":' + b"9" * 10_000 + b"}",
    ],
)
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    """Broken, deep, doubled: exit 6, at once."""
    with pytest.raises(VerificationError):
        mirror.read(data)


def _nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _nodes(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _nodes(inner, (*path, index))


def moe(*formats: str) -> Plan:
    """gpt-oss' experts with gate and up apart, dense ones turned round, and experts that are stacked."""
    stem = "model.layers.{}.mlp.experts"
    tensors: list[Tensor | Experts] = [
        experts(f"{stem.format(0)}.gate_up_proj", (2, 8, 1)),
        experts(f"{stem.format(0)}.down_proj", (2, 8, 1)),
        plain(f"{stem.format(1)}.gate_up_proj", "BF16", (2, 6, 4)),
        plain(f"{stem.format(1)}.gate_up_proj_bias", "BF16", (2, 4)),
        *(plain(f"m.experts.{n}.w.weight", "F32", (40, 4)) for n in range(3)),
        *(experts(f"n.experts.{n}.w", (3, 1)) for n in range(3)),
    ]
    config = b'{"model_type": "gpt_oss", "hidden_size": 6, "intermediate_size": 2}'
    files = {"a.safetensors": write_in_order(stored(tensors)), "config.json": config}
    return plan_of(MemorySource(files), experts="stacked", formats=formats, shard_size=1600)


def packed(*formats: str) -> Plan:
    """The same without stacking, cut tensors too."""
    tensors = [
        experts("model.layers.0.mlp.experts.gate_up_proj", (4, 8, 1)),
        plain("big", "F32", (30, 20)),
        plain("none", "F32", (0, 3)),
        plain("one", "BF16", ()),
    ]
    files = {"a.safetensors": write_in_order(stored(tensors))}
    return plan_of(MemorySource(files), formats=formats, shard_size=1600)


ALL = ("numpy-direct", "msgpack", "jax-pickle", "safetensors")
PLANS: dict[str, Plan] = {
    "numpy-direct": PLAN,
    "stacked": moe("numpy-direct"),
    "stacked in containers": moe("numpy-direct", "msgpack", "jax-pickle"),
    "msgpack": packed("msgpack"),
    "safetensors": packed("safetensors"),
    "all": packed(*ALL),
}


@pytest.mark.parametrize("name", PLANS)
def test_any_plan_comes_back(name: str) -> None:
    """Recipes, files, pieces, parts: of every format, of stacked experts, of chosen rows."""
    wanted = PLANS[name]
    found = mirror.read(made(wanted)).plan
    for key in ("recipes", "outputs", "parts", "repo", "commit", "options", "version"):
        assert getattr(found, key) == getattr(wanted, key), key
    assert Plan.from_json(json.loads(json.dumps(wanted.to_json()))) == wanted


@pytest.mark.parametrize("name", PLANS)
def test_any_manifest_keeps_to_the_schema(name: str) -> None:
    """Whatever the format and the experts."""
    jsonschema.validate(json.loads(made(PLANS[name])), SCHEMA)


CASES = {name: (text, [*_nodes(text)][1:]) for name in PLANS for text in [json.loads(made(PLANS[name]))]}
JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(max_size=20),
        st.sampled_from(
            ["F32", "plain", "gptq", "bnb4", "packed_int", "hqq", "../x", "w", SHA, "msgpack", "stacked"]
        ),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)


@settings(max_examples=600, deadline=None)
@given(name=st.sampled_from(sorted(PLANS)), data=st.data())
def test_any_change_is_a_mirror_or_an_error(name: str, data: st.DataObject) -> None:
    """Values replaced or removed anywhere: a consistent mirror, or a `VerificationError`; nothing else."""
    text, nodes = CASES[name]
    value = copy.deepcopy(text)
    change = st.tuples(st.sampled_from(nodes), st.one_of(st.just(...), JSON))
    for path, new in data.draw(st.lists(change, min_size=1, max_size=3)):
        at: Any = value
        try:
            for step in path[:-1]:
                at = at[step]
            if new is ...:
                del at[path[-1]]
            else:
                at[path[-1]] = new
        except (KeyError, IndexError, TypeError):
            continue
    try:
        found = mirror.read(json.dumps(value).encode())
    except VerificationError:
        return
    assert all(is_inside(path) for path in found.files)
    assert all(entry == found.files[entry.path] for entry in found.weights)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["stacked", *sorted(mirror.SCHEMES)]),
    st.dictionaries(st.text(max_size=10), JSON, max_size=4),
)
def test_any_decoder_is_bound_or_refused(scheme: str, params: dict[str, Any]) -> None:
    """Whatever parameters a manifest gives a layout: a decoder, or a `VerificationError`."""
    value = copy.deepcopy(GOOD)
    value["tensors"]["e"]["decoder"] = {**params, "scheme": scheme}
    try:
        mirror.read(json.dumps(value).encode())
    except VerificationError:
        return


@pytest.mark.parametrize("value", ["Infinity", "NaN", "1e999", "4.0", "true", "null"])
def test_counts_that_are_none(value: str) -> None:
    """JSON's other numbers are refused when a decoder is bound, not when it is used."""
    tensors = [
        Tensor("f.weight", "F8_E4M3", np.zeros((4, 6), np.uint8)),
        plain("f.weight_scale", "F32", (4, 1)),
    ]
    good = made(plan_of(MemorySource({"a.safetensors": write_in_order(tensors)})))
    text = good.replace(b'"cols":6', b'"cols":' + value.encode())
    assert text != good
    with pytest.raises(VerificationError, match=r"whole number|is no number"):
        mirror.read(text)


def test_a_pointer_is_named_as_one() -> None:
    """What git leaves in place of a large manifest that was not pulled."""
    with pytest.raises(VerificationError, match="only a git-LFS pointer") as caught:
        mirror.read(pointer(SHA, 10))
    assert "git lfs pull" in caught.value.hint


def test_absurd_shapes_end_at_once() -> None:
    """A shape of 200,000 axes is refused before anything is multiplied."""
    text = json.loads(json.dumps(GOOD))
    text["tensors"]["w"]["from"][0]["shape"] = [1 << 62] * 200_000
    with pytest.raises(VerificationError, match="at most 64 axes"):
        mirror.read(json.dumps(text).encode())


@pytest.mark.parametrize("key", ["precision", "quantized", "on_overflow", "verify_source"])
def test_options_that_there_are_not(key: str) -> None:
    """A word that is no option of ours is no manifest of ours."""
    text = json.loads(json.dumps(GOOD))
    text["options"][key] = "evil"
    with pytest.raises(VerificationError, match=f"options.{key}"):
        mirror.read(json.dumps(text).encode())
