"""A devhub for the tests of the Hub's edges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tensorport_hub.devhub import DevHub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DevHub]:
    """A running devhub, and the Hub libraries' caches in the test's own folder."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "xet"))
    with DevHub(tmp_path / "hub", multipart_above=100_000, part_size=60_000) as running:
        yield running
