"""What `config.json` says of quantization."""

from __future__ import annotations

import json

import pytest

from tensorport_hub.core.detect import Checkpoint
from tensorport_hub.core.model_config import without_quantization

STATING = [
    {"quantization_config": {"quant_method": "mxfp4"}},
    {"compression_config": {"format": "pack-quantized"}},
    {"quantization": {"bits": 4, "group_size": 64}},
    {"text_config": {"quantization_config": {"quant_method": "fp8"}}},
]


def states_quantization(config) -> bool:
    """Whether detection finds a statement in a `config.json`."""
    return bool(Checkpoint({}, configs={"config.json": config}).quantization)


SILENT = [
    {},
    {"quantization_config": None},
    {"text_config": {"quantization_config": None}},
    {"text_config": {"hidden_size": 7}},
    {"text_config": None},
    {"text_config": ["quantization_config"]},
    {"vision_config": {"model_type": "quantization_config"}},
]


@pytest.mark.parametrize("config", STATING)
def test_each_place_of_a_statement_is_seen_and_removed(config):
    """Top level keys of three tools and the text model's own are seen, and gone from the mirror's text."""
    config = {"model_type": "x", **config, "last": 1}
    assert states_quantization(config)
    kept = json.loads(without_quantization(config))
    assert not states_quantization(kept)
    assert kept["model_type"] == "x"
    assert kept["last"] == 1
    assert "quantization_config" not in json.dumps(kept)


@pytest.mark.parametrize("config", SILENT)
def test_a_configuration_without_a_statement(config):
    """Null, other models' keys and values of that name state nothing."""
    assert not states_quantization(config)


def test_all_else_is_kept():
    """Key order, numbers, nulls, text of any script and inner objects stay; JSON ends with a line feed."""
    config = {
        "z": 1,
        "a": None,
        "ünï": "漢字",
        "rope": {"theta": 1e-05, "factors": [1, 2.5]},
        "text_config": {"b": 1, "quantization_config": {}, "a": 2},
        "quantization_config": {"x": 1},
    }
    data = without_quantization(config)
    assert data.endswith(b"}\n")
    assert "漢字".encode() in data
    kept = json.loads(data)
    assert list(kept) == ["z", "a", "ünï", "rope", "text_config"]
    assert kept["text_config"] == {"b": 1, "a": 2}
    assert list(kept["text_config"]) == ["b", "a"]
    assert kept["rope"] == config["rope"]


def test_lone_surrogates_are_written_as_escapes():
    """A configuration with `\\ud800` in a text is written as JSON that reads back the same."""
    config = {"eos": "\ud800x", "quantization": {}}
    assert json.loads(without_quantization(config)) == {"eos": "\ud800x"}


def test_the_given_configuration_is_not_changed():
    """Removing makes a new text and leaves the object as it was."""
    config = {"text_config": {"quantization_config": {}}, "quantization": {}}
    before = json.dumps(config)
    without_quantization(config)
    assert json.dumps(config) == before
