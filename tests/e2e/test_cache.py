"""Snapshots of the Hugging Face cache, made by its own client, as a source and as a mirror."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tensorport_hub import convert, mirror, plan, verify
from tensorport_hub.devhub import DevHub
from tensorport_hub.errors import SourceError
from tests.pushed import push

SOURCE, MIRROR = "me/tiny", "me/tiny-npy"
_TOKENIZER = b'{"model": {}}' + b" " * (11 << 20)
"""So large that the Hub stores it as it stores weights."""


def snapshot(repo_id: str) -> Path:
    """What a process of its own downloads: huggingface_hub reads its variables when it is imported."""
    code = f"from huggingface_hub import snapshot_download; print(snapshot_download({repo_id!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=120
    )
    return Path(done.stdout.strip())


@pytest.fixture
def pushed(hub: DevHub, gptoss: Path) -> DevHub:
    """A devhub that has the tiny gpt-oss, and a large tokenizer, in its Xet storage."""
    (gptoss / "tokenizer.json").write_bytes(_TOKENIZER)
    push(hub, SOURCE, gptoss)
    return hub


def test_a_model_that_came_by_xet(pushed: DevHub, home: Path, tmp_path: Path) -> None:
    """Its tokenizer lies in the store that all models of the cache share, and is carried."""
    found = snapshot(SOURCE)
    assert (found / "tokenizer.json").resolve().is_relative_to(home / "hub" / "blobs")
    convert(str(found), str(tmp_path / "out"))
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == _TOKENIZER


def test_a_mirror_that_came_by_xet(pushed: DevHub) -> None:
    """Every byte of it is proven where the cache has it."""
    mirror(SOURCE, MIRROR, transfer="xet")
    found = snapshot(MIRROR)
    assert verify(str(found), deep=True).ok


def test_links_that_will_not_be_followed(gptoss: Path, tmp_path: Path) -> None:
    """A plan says so already: not one file is made first."""
    (tmp_path / "secret").write_bytes(b"password")
    (gptoss / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(SourceError, match=r"`tokenizer\.json` is a link out of the folder"):
        plan(str(gptoss), str(tmp_path / "out"))
