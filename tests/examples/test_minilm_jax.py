"""all-MiniLM-L6-v2 in JAX: the real weights, through the Hub, give the reference's sentence embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tensorport_hub import mirror
from tensorport_hub.devhub import DevHub
from tests.e2e.conftest import minilm as minilm
from tests.examples.conftest import Run, load_example

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "minilm.json").read_text(encoding="utf-8"))
SOURCE, MIRROR = "sentence-transformers/all-MiniLM-L6-v2", "me/all-MiniLM-L6-v2-npy"


@pytest.fixture(scope="module", autouse=True)
def mirrored(hub: DevHub, minilm: Path) -> None:
    """The real repository on the Hub, and its mirror."""
    hub.add_repo(SOURCE, minilm)
    mirror(SOURCE, MIRROR)


def test_embeddings_are_the_references() -> None:
    """Short and long sentences, other scripts, none: each cosine with sentence-transformers' > 0.9999."""
    sentences, embeddings = zip(*GOLDEN, strict=True)
    found = np.asarray(load_example("minilm_jax").MiniLM(MIRROR)(sentences))
    expected = np.array(embeddings)
    assert found.shape == expected.shape
    assert np.abs(np.linalg.norm(found, axis=-1) - 1).max() < 1e-5
    assert ((found * expected).sum(-1) > 0.9999).all()
    assert np.abs(found - expected).max() < 1e-5


def test_its_command(run: Run) -> None:
    """Run as its first line says it shows which sentences are alike."""
    said = run(
        "minilm_jax.py", MIRROR, "A cat sits on the mat.", "A kitten is on the rug.", "Stocks fell today."
    )
    rows = [[float(word) for word in line.split()[:3]] for line in said.splitlines()]
    assert rows[0][0] == rows[1][1] == 1
    assert rows[0][1] > 0.5 > rows[0][2]


def test_mirror_and_load(run: Run) -> None:
    """The first example mirrors a model, and prints what it loaded."""
    said = run("mirror_and_load.py", SOURCE, "me/loaded")
    assert "/me/loaded/commit/" in said.splitlines()[0]
    assert "embeddings.word_embeddings.weight float32 (30522, 384)" in said
