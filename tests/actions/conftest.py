"""One machine for all tests of the action: its step `Install` runs once, for real."""

from __future__ import annotations

from pathlib import Path

import pytest

from tensorport_hub.devhub import DevHub
from tests.actions.runner import Runner, machine_env
from tests.e2e.conftest import client, gptoss, home, hub

__all__ = ["client", "gptoss", "home", "hub"]


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The machine's temporary folder, with the tool in it."""
    temp = tmp_path_factory.mktemp("runner")
    workspace = tmp_path_factory.mktemp("empty")
    ran = Runner(temp, workspace, machine_env(temp)).action({"source": "any"}, only="Install")
    assert ran.code == 0, ran.log
    assert not list(workspace.iterdir())
    return temp


@pytest.fixture
def machine(installed: Path, tmp_path: Path, hub: DevHub, gptoss: Path) -> Runner:
    """A machine that reaches a devhub with the model `openai/tiny`."""
    hub.add_repo("openai/tiny", gptoss)
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    return Runner(installed, workspace, machine_env(tmp_path))
