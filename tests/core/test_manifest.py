"""manifest.json: valid by its schema, complete, equal for equal plans, and read back as hostile input."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from dataclasses import replace
from importlib import resources
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core import manifest
from tensorport_hub.core.decode.cast import Losses
from tensorport_hub.core.decode.table import SCHEMES
from tensorport_hub.core.digest import blob_oid
from tensorport_hub.core.plan import Plan
from tensorport_hub.errors import VerificationError
from tests.core.samples import COMMIT, plan_of

SCHEMA = json.loads(resources.files("tensorport_hub").joinpath("manifest.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
CONFIG = '{"quantization_config": {"quant_method": "mxfp4"}}\n'


def example(**options) -> Plan:
    files = {
        "a.safetensors": [("x_blocks", "U8", (2, 3, 2, 16)), ("ünï|`\n", "F64", ()), ("big", "F32", (9, 30))],
        "b.safetensors": [("x_scales", "U8", (2, 3, 2)), ("ids", "I64", (1, 4)), ("none", "BF16", (0, 3))],
    }
    plan = plan_of(files, **{"shard_size": 900, "precision": "float16", "include": ("*",), **options})
    return replace(plan, skipped={"z": "excluded", "a": "not included"})


def entries(plan: Plan):
    digests = [hashlib.sha256(file.path.encode()).hexdigest() for file in plan.outputs]
    weights = [
        manifest.weight_entry(file.path, file.size, digest)
        for file, digest in zip(plan.outputs, digests, strict=True)
    ]
    small = [
        manifest.small_entry(p, c, hashlib.sha256(c).hexdigest())
        for p, c in (("README.md", b"#"), ("LICENSE", b""))
    ]
    return weights, small


def built(plan: Plan, **how: Any) -> bytes:
    weights, small = entries(plan)
    given_ = {
        "weights": weights,
        "small": small,
        "digests": {"a.safetensors": plan.files[0].sha256, "b.safetensors": None},
        "losses": {0: Losses(3, 0), 2: Losses(0, 5)},
        "original_config": CONFIG,
        **how,
    }
    return manifest.build(plan, **given_)


@pytest.mark.parametrize("precision", ["keep", "bfloat16", "float16", "float32"])
@pytest.mark.parametrize("verify", ["auto", "whole", "no"])
def test_it_is_valid_by_its_schema(precision, verify):
    """Whatever the options, the shipped JSON Schema accepts the manifest."""
    plan = example(precision=precision, verify_source=verify, on_overflow="saturate")
    VALIDATOR.check_schema(SCHEMA)
    VALIDATOR.validate(json.loads(built(plan)))
    VALIDATOR.validate(json.loads(built(plan, original_config=None, losses={}, digests={})))
    local = replace(plan, repo=None, files=tuple(replace(f, sha256=None) for f in plan.files))
    VALIDATOR.validate(json.loads(built(local, digests={})))


def broken() -> list[tuple[str, Any]]:
    """Changes that the schema must refuse: a path into the manifest, and what to put there."""
    return [
        ("schema", "tensorport.manifest/2"),
        ("more", 1),
        ("generator/name", "other"),
        ("source/revision", "main"),
        ("source/files/0/sha256", "0"),
        ("source/files/0/verified", "maybe"),
        ("source/files/0/size", -1),
        ("options/precision", "int4"),
        ("options/workers", 4),
        ("totals/bytes", 1.5),
        ("tensors/big/dtype", "F128"),
        ("tensors/big/shape", [-1]),
        ("tensors/big/stored", []),
        ("tensors/big/stored/0/rows", [0]),
        ("tensors/big/stored/0/sha256", "x" * 64),
        ("tensors/big/from", []),
        ("tensors/big/from/0/file", "a.safetensors"),
        ("tensors/big/decoder", {}),
        ("tensors/big/decoder/scheme", "unknown"),
        ("files/0/git_oid", "f" * 39),
        ("files/0/more", 1),
        ("skipped/z", None),
        ("original_config", {}),
    ]


@pytest.mark.parametrize(("path", "value"), broken())
def test_the_schema_refuses_what_is_wrong(path, value):
    """The schema has teeth: a field of another form, or one that is not known, is not accepted."""
    value_of = json.loads(built(example()))
    at: Any = value_of
    *way, last = path.split("/")
    for step in way:
        at = at[int(step) if isinstance(at, list) else step]
    at[int(last) if isinstance(at, list) else last] = value
    assert not VALIDATOR.is_valid(value_of)


@pytest.mark.parametrize("key", SCHEMA["required"])
def test_nothing_required_may_be_missing(key):
    """Each top-level field but the optional one is required."""
    value = json.loads(built(example()))
    del value[key]
    assert not VALIDATOR.is_valid(value)


def test_it_says_where_every_byte_came_from_and_went():
    """Per tensor: dtype, shape, stored files with rows, source ranges by file number, decoder, losses."""
    plan = example()
    value = json.loads(built(plan))
    x = value["tensors"]["x"]
    assert (x["dtype"], x["shape"]) == ("F16", [2, 3, 64])
    assert x["decoder"] == {"scheme": "mxfp4", "dtype": "BF16"}
    assert x["losses"] == {"overflow": 3, "underflow": 0}
    assert x["from"] == [
        {"tensor": "x_blocks", "file": 0, "start": 80, "stop": 272, "dtype": "U8", "shape": [2, 3, 2, 16]},
        {"tensor": "x_scales", "file": 1, "start": 80, "stop": 92, "dtype": "U8", "shape": [2, 3, 2]},
    ]
    big = value["tensors"]["big"]
    assert [s["rows"] for s in big["stored"]] == [[0, 9]]
    assert value["tensors"]["ids"]["decoder"] == {"scheme": "plain"}
    assert "losses" not in value["tensors"]["ids"]
    assert value["tensors"]["ünï|`\n"]["shape"] == []
    assert value["totals"] == {
        "tensors": 5,
        "parameters": plan.parameters,
        "bytes": plan.bytes_out,
        "shards": plan.shards,
    }
    assert value["skipped"] == {"z": "excluded", "a": "not included"}
    assert value["original_config"] == CONFIG
    assert value["source"]["revision"] == COMMIT


def test_split_tensors_list_their_files_in_row_order():
    """The parts of a tensor that was cut cover its rows from first to last."""
    plan = example(precision="keep")
    stored = json.loads(built(plan))["tensors"]["big"]["stored"]
    assert len(stored) > 1
    assert [s["rows"][0] for s in stored] == [0, *(s["rows"][1] for s in stored[:-1])]
    assert stored[-1]["rows"][1] == 9
    by_path = {file.path: file for file in plan.outputs}
    assert all(by_path[s["file"]].size == s["size"] for s in stored)


def test_every_file_is_listed_as_git_and_the_hub_know_it():
    """Weights carry their pointer's id, small files their own; sorted, without the manifest itself."""
    plan = example()
    files = json.loads(built(plan))["files"]
    assert [f["path"] for f in files] == sorted(["LICENSE", "README.md", *(p.path for p in plan.outputs)])
    for file in files:
        if file["path"] == "README.md":
            assert file["git_oid"] == blob_oid(b"#")
        elif file["path"].endswith(".npy"):
            oid = f"oid sha256:{file['sha256']}\nsize {file['size']}\n"
            assert file["git_oid"] == blob_oid(f"version https://git-lfs.github.com/spec/v1\n{oid}".encode())


@pytest.mark.parametrize(
    ("stated", "read", "sha256", "verified"),
    [
        ("a" * 64, "a" * 64, "a" * 64, "whole"),
        ("a" * 64, None, "a" * 64, "ranges"),
        (None, "b" * 64, "b" * 64, "whole"),
        (None, None, None, "no"),
    ],
)
def test_how_far_a_source_file_was_verified(stated, read, sha256, verified):
    """Whole where its digest was taken, ranges where one is only stated, no where nothing is known."""
    plan = example()
    plan = replace(plan, files=tuple(replace(f, sha256=stated) for f in plan.files))
    file = json.loads(built(plan, digests={"a.safetensors": read}))["source"]["files"][0]
    assert (file["sha256"], file["verified"]) == (sha256, verified)


def test_equal_plans_give_equal_bytes():
    """Compact, keys sorted, one line; order of dictionaries does not matter."""
    plan = example()
    data = built(plan)
    again = built(
        replace(plan, skipped=dict(reversed(plan.skipped.items()))), losses={2: Losses(0, 5), 0: Losses(3, 0)}
    )
    assert again == data
    value = json.loads(data)
    assert (
        data == json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    )
    weights, small = entries(plan)
    assert built(plan, small=small[::-1]) == data
    assert len(weights) == len(plan.outputs)


def test_nothing_of_this_run_is_in_it():
    """No clock, no machine, no user, no path of this machine."""
    text = built(example()).decode()
    assert os.getcwd() not in text
    assert os.uname().nodename not in text
    assert os.path.expanduser("~") not in text
    keys: set[str] = set()

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            keys.update(value)
            value = list(value.values())
        for item in value if isinstance(value, list) else []:
            collect(item)

    collect(json.loads(text))
    assert not {
        key for key in keys if any(w in key for w in ("time", "date", "host", "user", "worker", "token"))
    }


# --- read back ---


def test_it_is_read_back():
    """`parse` returns what was built; it is a mirror's, and lists its files."""
    data = built(example())
    assert manifest.parse(data) == json.loads(data)
    assert manifest.is_mirror(data)
    assert manifest.listed_files(data) == {f["path"] for f in json.loads(data)["files"]}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff\xfe\xfa", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"9" * 5000, "no JSON"),
        (b"[]", "got `NoneType`"),
        (b"{}", "got `NoneType`"),
        (b'{"schema": 1}', "got `int`"),
        (
            b'{"schema": "tensorport.manifest/2"}',
            "expected `tensorport.manifest/1`, got `tensorport.manifest/2`",
        ),
        (b'{"schema": "tensorport.manifest/1 "}', "got `tensorport.manifest/1 `"),
        (b'{"schema": "\\u001b[2J\\n"}', "got `\\x1b[2J\\n`"),
        (b'{"schema": "' + b"x" * 10_000 + b'"}', "10000 characters"),
    ],
)
def test_what_is_no_manifest_is_refused(data, words):
    """Bad JSON and unknown versions are verification errors in short printable words."""
    with pytest.raises(VerificationError) as caught:
        manifest.parse(data)
    assert words in caught.value.message
    assert "`manifest.json`" in caught.value.message
    assert len(caught.value.message) < 400
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_a_nested_version_is_refused_at_any_depth(opening, closing):
    """A version nested as deep as JSON just allows breaks nothing."""
    for depth in [1, 100, *range(850, 1000), 50_000]:
        data = ('{"schema":' + opening * depth + "1" + closing * depth + "}").encode()
        with pytest.raises(VerificationError):
            manifest.parse(data)
        assert not manifest.is_mirror(data)
        assert manifest.listed_files(data) is None


@pytest.mark.parametrize(
    ("text", "mirror"),
    [
        ('{"schema": "tensorport.manifest/1"}', True),
        ('{"schema": "tensorport.manifest/99"}', True),
        ('{"schema": "other/1"}', False),
        ('{"schema": ["tensorport.manifest/1"]}', False),
        ('{"schema": null}', False),
        ('"tensorport.manifest/1"', False),
        ("nothing", False),
    ],
)
def test_a_mirror_of_any_version_is_known(text, mirror):
    """Newer versions of ours are ours; what only looks alike is not."""
    assert manifest.is_mirror(text.encode()) is mirror
    assert (manifest.listed_files(text.encode()) is not None) is mirror


@pytest.mark.parametrize(
    ("files", "listed"),
    [
        ([{"path": "a"}, {"path": "b", "size": 1}], {"a", "b"}),
        (None, set()),
        (5, set()),
        ("text", set()),
        ({"path": "a"}, set()),
        ([1, None, "a", [], {}, {"path": 5}, {"path": ["a"]}, {"path": None}], set()),
    ],
)
def test_a_hostile_list_of_files_lists_nothing(files, listed):
    """Only texts under `path` count, whatever stands in their place."""
    data = json.dumps({"schema": manifest.SCHEMA, "files": files}).encode()
    assert manifest.listed_files(data) == listed


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@settings(max_examples=150, deadline=None)
@given(JSON | st.fixed_dictionaries({"schema": st.just(manifest.SCHEMA) | JSON, "files": JSON}), st.binary())
def test_any_json_is_a_manifest_or_an_error(value, data):
    """Nothing but the documented error comes out, of JSON or of bytes."""
    for raw in (json.dumps(copy.deepcopy(value)).encode(), data):
        manifest.listed_files(raw)
        ours = manifest.is_mirror(raw)
        try:
            parsed = manifest.parse(raw)
        except VerificationError:
            continue
        assert ours
        assert parsed["schema"] == manifest.SCHEMA


def test_the_schema_knows_every_scheme():
    """The schema names exactly the layouts of the table."""
    assert set(SCHEMA["$defs"]["scheme"]["enum"]) == set(SCHEMES)
