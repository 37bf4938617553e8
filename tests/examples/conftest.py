"""A devhub for the examples, and how they are run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tensorport_hub.devhub import DevHub

EXAMPLES = Path(__file__).parents[2] / "examples"
Run = Callable[..., str]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevHub]:
    """A running devhub, known to this process and to the examples by the environment."""
    root: Path = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch, DevHub(root / "hub") as running:
        patch.setenv("HF_HOME", str(root / "home"))
        patch.setenv("HF_XET_CACHE", str(root / "xet"))
        patch.setenv("HF_ENDPOINT", running.endpoint)
        patch.setenv("HF_TOKEN", running.token)
        yield running


@pytest.fixture
def run(hub: DevHub) -> Run:
    """Run an example as a user does; its output."""

    def call(name: str, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / name), *words],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def load_example(name: str) -> ModuleType:
    """An example as a module."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
