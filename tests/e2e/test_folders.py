"""Folders as sources: what is no file of the model, and names that not every place can hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from tensorport_hub import convert
from tensorport_hub.core.digest import pointer
from tensorport_hub.errors import CheckpointError, SourceError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(save({"a": np.ones((2, 3), np.float32)}))
    return folder


def test_a_tokenizer_that_is_only_a_pointer(model: Path, tmp_path: Path) -> None:
    """Of a clone without `git lfs pull`: an error, not a tokenizer of 130 bytes."""
    (model / "tokenizer.model").write_bytes(pointer("0" * 64, 5_000_000))
    with pytest.raises(SourceError, match="only a git-LFS pointer") as caught:
        convert(str(model), str(tmp_path / "out"))
    assert "git lfs pull" in caught.value.hint


def test_names_that_differ_in_case_alone(model: Path, tmp_path: Path) -> None:
    """The first is carried, by name: a folder on macOS or Windows holds one of them."""
    (model / "tokenizer.json").write_bytes(b"{}")
    (model / "Tokenizer.json").write_bytes(b'{"other": 1}')
    (model / "tokenizer.JSON").write_bytes(b'{"third": 1}')
    convert(str(model), str(tmp_path / "out"))
    names = [path.name for path in (tmp_path / "out").iterdir() if path.name.lower() == "tokenizer.json"]
    assert len(names) == 1


def test_texts_that_would_take_minutes(model: Path, tmp_path: Path) -> None:
    """Metadata of half a megabyte is no card's; a configuration of 40 MB is refused by its size."""
    (model / "README.md").write_bytes(b"---\nlicense: 1" + b":59" * 200_000 + b"\n---\n")
    convert(str(model), str(tmp_path / "out"))
    assert b":59" not in (tmp_path / "out" / "README.md").read_bytes()
    (model / "config.json").write_bytes(b'{"a":[' + b",".join([b"{}"] * 14_000_000) + b"]}")
    with pytest.raises(CheckpointError, match="absurdly large"):
        convert(str(model), str(tmp_path / "other"))
