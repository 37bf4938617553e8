"""A repository as the Hub describes it: what its own client reads there, in less memory, or an error."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from huggingface_hub import ModelInfo

from tensorport_hub.core.digest import SourceFile
from tensorport_hub.edge.hub_answers import state_of

COMMIT, SHA256, OID = "a" * 40, "b" * 64, "c" * 40


def answer(**changed: Any) -> dict[str, Any]:
    """What the Hub says of a model of three files, with more than is asked for."""
    siblings = [
        {
            "rfilename": "w.safetensors",
            "size": 5_000_000_000,
            "blobId": OID,
            "lfs": {"sha256": SHA256, "size": 5_000_000_000, "pointerSize": 135},
        },
        {"rfilename": "config.json", "size": 12, "blobId": OID},
        {"rfilename": "empty"},
    ]
    card = {"license": "mit", "widget": [{"rfilename": "../x"}, {"rfilename": 3}]}
    return {
        "id": "org/model",
        "sha": COMMIT,
        "private": False,
        "gated": "auto",
        "downloads": 0,
        "tags": [],
        "cardData": card,
        "siblings": siblings,
        **changed,
    }


def test_it_says_what_the_hubs_own_client_reads() -> None:
    """Paths in order, sizes, digests; what a card says is no file, whatever it is called."""
    said = answer()
    found, known = state_of("org/model", json.dumps(said).encode()), ModelInfo(**answer())
    assert (found.repo_id, found.commit, found.private, found.gated) == ("org/model", known.sha, False, True)
    assert list(found.files) == sorted(
        (
            SourceFile(
                sibling.rfilename,
                sibling.size or 0,
                sibling.lfs.sha256 if sibling.lfs else None,
                None if sibling.lfs else sibling.blob_id,
            )
            for sibling in known.siblings or []
        ),
        key=lambda file: file.path,
    )
    assert [file.path for file in found.files] == ["config.json", "empty", "w.safetensors"]


@pytest.mark.parametrize(
    "files",
    [
        {"rfilename": 3},
        {"rfilename": "../x"},
        {"rfilename": "/x"},
        {"rfilename": "x", "size": -1},
        {"rfilename": "x", "size": True},
        {"rfilename": "x", "size": "3"},
        {"rfilename": "x", "blobId": "z"},
        {"rfilename": "x", "lfs": {"sha256": "z"}},
        {"rfilename": "x", "lfs": {"size": 3}},
        {"rfilename": "x", "lfs": "z"},
        {"path": "x"},
        "x",
        None,
    ],
)
def test_a_file_that_makes_no_sense(files: Any) -> None:
    """No path, no size, no digest, no entry at all."""
    with pytest.raises(ValueError, match=r"^(file|file name|size|digest|LFS pointer) "):
        state_of("org/model", json.dumps(answer(siblings=[files])).encode())


@pytest.mark.parametrize("sha", [None, 3, "main", COMMIT[1:], COMMIT.upper() + "\n"])
def test_a_commit_that_makes_no_sense(sha: Any) -> None:
    """What is no commit can't be read from."""
    with pytest.raises(ValueError, match=r"^commit "):
        state_of("org/model", json.dumps(answer(sha=sha)).encode())


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"3", b"{}", b'{"siblings": 3}', b'{"rfilename": "x"}', b"[" * 10**5]
)
def test_an_answer_that_makes_no_sense(text: bytes) -> None:
    """One of the exceptions that the caller words."""
    with pytest.raises((ValueError, LookupError, TypeError, AttributeError, RecursionError)):
        state_of("org/model", text)


def test_many_files_take_little_memory() -> None:
    """Of 20,000 files, less is held at once than half of what the parsed answer takes."""
    entry = answer()["siblings"][0]
    siblings = [
        {**entry, "rfilename": f"shard_000/{i:06d}.npy", "lfs": {**entry["lfs"]}} for i in range(20_000)
    ]
    text = json.dumps(answer(siblings=siblings)).encode()

    def peak(call: Any) -> int:
        tracemalloc.start()
        kept = call()
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert kept
        return held

    assert peak(lambda: state_of("org/model", text)) < peak(lambda: ModelInfo(**json.loads(text))) / 2
