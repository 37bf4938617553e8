"""The sharded index (`*.safetensors.index.json`) as hostile input."""

from __future__ import annotations

import json
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.safetensors import parse_index
from tensorport_hub.errors import CheckpointError

FILE = "model.safetensors.index.json"


def read(value: Any) -> dict[str, str]:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return parse_index(data, file=FILE)


def test_the_weight_map_is_returned_in_order():
    """A plain index gives tensor name -> file name in its own order; other keys don't matter."""
    weight_map = {"b": "model-00002-of-00002.safetensors", "a": "sub/model-00001-of-00002.safetensors"}
    found = read({"metadata": {"total_size": 7}, "weight_map": weight_map, "more": [1]})
    assert list(found.items()) == list(weight_map.items())


@pytest.mark.parametrize(
    "path",
    [
        "../model.safetensors",
        "a/../model.safetensors",
        "a/../../model.safetensors",
        "./model.safetensors",
        "a//model.safetensors",
        "/etc/model.safetensors",
        "//host/model.safetensors",
        "C:/model.safetensors",
        "C:model.safetensors",
        "c:\\model.safetensors",
        "..\\model.safetensors",
        "\\\\host\\share\\model.safetensors",
        "https://example.org/model.safetensors",
        "model.safetensors\0",
        "mo\0del.safetensors",
        "mo\ndel.safetensors",
        "mo\x7fdel.safetensors",
        "mo\ud800del.safetensors",
        "model.safetensors/..",
        "model.bin",
        "model.safetensors.index.json",
        "",
        "x" * 2000 + ".safetensors",
        None,
        7,
        ["model.safetensors"],
        {"file": "model.safetensors"},
    ],
)
def test_files_outside_the_folder_are_refused(path):
    """A file name that leaves the folder, or is none of a weight file, is an error with the tensor."""
    with pytest.raises(CheckpointError, match=f"index `{FILE}` places `the.tensor` in") as caught:
        read({"weight_map": {"the.tensor": path}})
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 500


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "`a` stands twice"),
        (b'{"weight_map": {}, "weight_map": {}}', "`weight_map` stands twice"),
        (b'{"weight_map": NaN}', "`NaN`"),
        ([], "expected a JSON object"),
        ("text", "expected a JSON object"),
        (None, "expected a JSON object"),
        ({}, "no `weight_map`"),
        ({"weight_map": {}}, "no `weight_map`"),
        ({"weight_map": None}, "no `weight_map`"),
        ({"weight_map": ["model.safetensors"]}, "no `weight_map`"),
        ({"weight_map": "model.safetensors"}, "no `weight_map`"),
    ],
)
def test_malformed_indexes_are_refused_in_words(value, words):
    """What is no index is a `CheckpointError` that names the file and says why."""
    with pytest.raises(CheckpointError) as caught:
        read(value)
    assert FILE in caught.value.message
    assert words in caught.value.message


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("a./\\:~ \0é"), max_size=12))
def test_an_accepted_file_lies_below_the_folder(stem):
    """Read as a POSIX or as a Windows path, no accepted name leaves the folder that the index lies in."""
    path = f"{stem}.safetensors"
    try:
        read({"weight_map": {"t": path}})
    except CheckpointError:
        return
    assert "\0" not in path
    for kind in (PurePosixPath, PureWindowsPath):
        parsed = kind("root") / path
        assert parsed.parts[0] == "root"
        assert ".." not in parsed.parts
        assert not kind(path).is_absolute()
        assert not kind(path).drive


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.binary(max_size=40).map(lambda b: b'{"weight_map":{"a":"' + b + b'"}}'))
def test_any_bytes_give_a_map_or_an_error(data):
    """Any bytes are an index or a `CheckpointError`, never anything else."""
    try:
        found = read(data)
    except CheckpointError as error:
        refusal = error.message
    else:
        refusal = FILE
        assert all(isinstance(k, str) and isinstance(v, str) for k, v in found.items())
    assert FILE in refusal
