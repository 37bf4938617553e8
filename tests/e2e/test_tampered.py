"""Mirrors that were tampered with and whose manifest agrees: only the source tells, and `verify` asks it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import CommitOperationDelete, HfApi
from safetensors.numpy import save

from tensorport_hub import mirror, verify
from tensorport_hub.core.digest import blob_oid
from tensorport_hub.devhub import DevHub
from tensorport_hub.errors import VerificationError

Text = dict[str, Any]


@pytest.fixture
def mirrored(hub: DevHub) -> DevHub:
    """Two tensors, files that are carried, and something for each field of the manifest."""
    tensors = {"a": np.ones((20, 10), np.float32), "b": np.full((20, 10), 2, np.float32)}
    carried = {"config.json": b'{"x": 1}', "chat_template.jinja": b"{{ messages }}", "tokenizer.json": b"{}"}
    hub.add_repo("st/m", {"model.safetensors": save(tensors), **carried})
    mirror("st/m", "me/m", transfer="lfs", precision="float16", verify_source="no")
    assert verify("me/m", deep=True, against_source=True).ok
    return hub


def forge(hub: DevHub, change: Callable[[Text], None], files: dict[str, bytes] | None = None) -> list[str]:
    """Commit another manifest, and what `verify` finds: what each fault is about."""
    text = json.loads(hub.read("me/m", "manifest.json"))
    change(text)
    hub.add_repo("me/m", {**(files or {}), "manifest.json": json.dumps(text).encode()}, message="tampered")
    found = verify("me/m", deep=True, against_source=True)
    return [fault.what for fault in found.faults]


@pytest.mark.parametrize("version", [None, "9.9.9"])
def test_swapped_tensors(mirrored: DevHub, version: str | None) -> None:
    """Each name stands for the other's values, and the manifest says that it was made so."""

    def swap(text: Text) -> None:
        a, b = text["tensors"]["a"], text["tensors"]["b"]
        for key in ("from", "stored"):
            a[key], b[key] = b[key], a[key]
        text["generator"]["version"] = version or text["generator"]["version"]

    assert {"a", "b"} <= set(forge(mirrored, swap))


def test_a_dropped_tensor(mirrored: DevHub, client: HfApi) -> None:
    """It is gone from files and manifest alike, which names another version."""
    gone = json.loads(mirrored.read("me/m", "manifest.json"))["tensors"]["b"]["stored"][0]
    client.create_commit("me/m", [CommitOperationDelete(gone["file"])], commit_message="drop")

    def drop(text: Text) -> None:
        del text["tensors"]["b"]
        text["files"] = [file for file in text["files"] if file["path"] != gone["file"]]
        totals = text["totals"]
        totals.update(tensors=1, parameters=200, bytes=totals["bytes"] - gone["size"])
        text["generator"]["version"] = "9.9.9"

    assert forge(mirrored, drop) == ["b"]


@pytest.mark.parametrize(
    "path", ["chat_template.jinja", "config.json", "tokenizer.json", "README.md", "modeling_evil.py"]
)
def test_another_small_file(mirrored: DevHub, path: str) -> None:
    """What is carried must be the source's; the card what a run makes; and nothing besides."""
    evil = b'{"auto_map": {"AutoModel": "modeling_evil.M"}}'
    entry = {
        "path": path,
        "size": len(evil),
        "sha256": hashlib.sha256(evil).hexdigest(),
        "git_oid": blob_oid(evil),
    }

    def replace(text: Text) -> None:
        text["files"] = [file for file in text["files"] if file["path"] != path] + [entry]
        text["files"].sort(key=lambda file: file["path"])

    assert forge(mirrored, replace, {path: evil}) == [path]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("source", lambda text: text["source"]["files"][0].update(verified="whole")),
        ("skipped", lambda text: text.update(skipped={"b": "excluded"})),
        ("original_config", lambda text: text.update(original_config="evil")),
        ("generator", lambda text: text["generator"].update(name="evil")),
    ],
)
def test_another_field(mirrored: DevHub, field: str, change: Callable[[Text], None]) -> None:
    """Everything that the manifest states is what a run states."""
    assert forge(mirrored, change) == ["manifest.json"], field


def test_losses(mirrored: DevHub) -> None:
    """What rounding cost is counted again; the card tells it too."""

    def change(text: Text) -> None:
        text["tensors"]["a"]["losses"] = {"overflow": 5, "underflow": 7}

    assert forge(mirrored, change) == ["manifest.json"]


@pytest.mark.parametrize("source", [None, "st/m"])
def test_a_source_file_of_any_size(mirrored: DevHub, source: str | None) -> None:
    """Nothing is planned by a size that the source does not confirm: the fault is told at once."""
    text = json.loads(mirrored.read("me/m", "manifest.json"))
    text["source"]["files"][0]["size"] = 1 << 62
    mirrored.add_repo("me/m", {"manifest.json": json.dumps(text).encode()}, message="tampered")
    found = verify("me/m", against_source=True, source=source)
    assert [fault.what for fault in found.faults] == ["model.safetensors"]
    assert found.again is not None
    assert found.again.tensors == ()


def test_a_source_that_is_no_repository(mirrored: DevHub, tmp_path: Path) -> None:
    """A manifest can't have a folder of the reader's machine read in place of its source."""
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(mirrored.read("st/m", "model.safetensors"))
    text = json.loads(mirrored.read("me/m", "manifest.json"))
    text["source"].update(repo=f"{tmp_path}/x", revision="/../../m")
    mirrored.add_repo("me/m", {"manifest.json": json.dumps(text).encode()}, message="tampered")
    with pytest.raises(VerificationError, match=r"source\.repo: expected a repository's id"):
        verify("me/m", against_source=True)
