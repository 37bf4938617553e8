"""A devhub for the tests of loading, and mirrors in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tensorport_hub.devhub import DevHub
from tensorport_hub.edge import retry


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevHub]:
    """A running devhub, known to this process by its environment, and an empty cache."""
    root: Path = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch, DevHub(root / "hub") as running:
        patch.setenv("HF_HOME", str(root / "home"))
        patch.setenv("HF_ENDPOINT", running.endpoint)
        patch.setenv("HF_TOKEN", running.token)
        patch.setattr(retry, "_FIRST", 0.01)
        yield running
