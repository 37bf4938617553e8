"""A mirror held against a listing, its source and a fresh plan: every difference is a fault with a name."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tensorport_hub.core import mirror, proof
from tensorport_hub.core.digest import SourceFile
from tests.core.test_mirror import GOOD, PLAN, SHA, made, plan

MIRROR = mirror.read(made())
LISTED = [SourceFile(e.path, e.size, e.sha256, None) for e in MIRROR.weights]
LISTED += [SourceFile("config.json", 3, None, MIRROR.files["config.json"].git_oid)]
EXTRA = [SourceFile("manifest.json", 9), SourceFile(".gitattributes", 9)]


def faults(found: list[SourceFile]) -> list[tuple[str, str]]:
    return [(fault.what, fault.message.split(":")[0]) for fault in proof.check_files(MIRROR, found)]


def test_a_complete_listing_has_no_fault() -> None:
    """Weights by sha256, regular files by git id; the manifest and `.gitattributes` are not listed."""
    assert faults([*LISTED, *EXTRA]) == []


def test_a_folder_states_sizes_only() -> None:
    """Where no digest is stated sizes are compared."""
    sizes = [SourceFile(f.path, f.size) for f in LISTED]
    assert faults(sizes) == []
    assert faults([replace(sizes[0], size=1), *sizes[1:]]) == [(LISTED[0].path, "has the wrong size")]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (replace(LISTED[0], size=LISTED[0].size + 1), "has the wrong size"),
        (replace(LISTED[0], sha256=SHA), "has the wrong sha256"),
        (replace(LISTED[-1], git_oid="0" * 40), "has the wrong git id"),
        (SourceFile("config.json", 3, SHA, None), ""),
        (SourceFile("config.json", 3, SHA[::-1], None), "has the wrong sha256"),
    ],
)
def test_a_changed_file_is_named(changed: SourceFile, words: str) -> None:
    """Size and whatever digest is stated; a regular file that is stored as LFS is compared by sha256."""
    listed = [changed if file.path == changed.path else file for file in LISTED]
    assert faults(listed) == ([(changed.path, words)] if words else [])


def test_missing_and_unlisted_files_are_named() -> None:
    """Both directions, all of them."""
    found = faults([*LISTED[2:], SourceFile("stray.bin", 1)])
    assert found == [
        *((path, "is missing") for path in sorted(f.path for f in LISTED[:2])),
        ("stray.bin", "is there, but the manifest does not list it"),
    ]


@pytest.mark.parametrize("key", ["tensors", "parameters", "bytes", "shards"])
def test_wrong_totals_are_named(key: str) -> None:
    """A manifest that counts wrongly."""
    assert proof.check_totals(MIRROR) == []
    text = {**GOOD, "totals": {**GOOD["totals"], key: GOOD["totals"][key] + 1}}
    (fault,) = proof.check_totals(mirror.read(json.dumps(text).encode()))
    assert key in fault.message


@pytest.mark.parametrize(
    ("change", "words"),
    [({"size": 1}, "bytes, got 1"), ({"sha256": SHA[::-1]}, f"got {SHA[::-1]}")],
)
def test_a_source_that_changed_is_named(change: dict[str, Any], words: str) -> None:
    """Each source file's size and sha256, as the source states them now."""
    source = [SourceFile(f.path, f.size, f.sha256) for f in PLAN.files]
    assert proof.check_sources(MIRROR, source) == []
    (fault,) = proof.check_sources(MIRROR, [replace(source[0], **change), source[1]])
    assert fault.what == "a.safetensors"
    assert words in fault.message
    (gone,) = proof.check_sources(MIRROR, source[1:])
    assert gone.message == "of the source is missing"


def test_a_fresh_plan_agrees() -> None:
    """The same version makes the same plan of the same source."""
    assert proof.check_plan(MIRROR, PLAN) == []


def test_a_manifest_that_tells_another_story_is_named() -> None:
    """Bytes taken from elsewhere, another decoder, a tensor too many or too few."""
    text = json.loads(json.dumps(GOOD))
    text["tensors"]["w"]["from"][0]["tensor"] = "v"
    text["tensors"]["ghost"] = text["tensors"].pop("scalar")
    found = proof.check_plan(mirror.read(json.dumps(text).encode()), PLAN)
    assert [(fault.what, fault.message.split(":")[0]) for fault in found] == [
        ("w", "stored tensors"),
        ("ghost", "is in the manifest, but not in the source"),
        ("scalar", "is in the source, but not in the manifest"),
    ]


def test_another_version_is_not_compared() -> None:
    """Another version of the tool may plan otherwise; another state of the source is a fault."""
    assert proof.check_plan(MIRROR, replace(plan(precision="bfloat16"), version="9")) == []
    assert proof.check_state(MIRROR, PLAN) == []
    (fault,) = proof.check_state(MIRROR, replace(PLAN, commit="0" * 40))
    assert fault.what == "source"


def test_what_a_mirror_is_of() -> None:
    """Source, commit and options decide, not the version; a folder's bytes are never known."""
    assert proof.is_of(MIRROR, PLAN)
    assert proof.is_of(MIRROR, replace(PLAN, version="9"))
    assert not proof.is_of(MIRROR, replace(PLAN, commit="0" * 40))
    assert not proof.is_of(MIRROR, replace(PLAN, repo="other/model"))
    assert not proof.is_of(MIRROR, plan(precision="bfloat16"))
    folder = json.loads(json.dumps(GOOD))
    folder["source"]["repo"] = None
    assert not proof.is_of(mirror.read(json.dumps(folder).encode()), replace(PLAN, repo=None))
