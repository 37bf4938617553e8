"""A cluster for the tests that do it no harm, and a devhub as in the end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tensorport_hub.cluster import dask
from tests.cluster.machines import Machines
from tests.e2e.conftest import client as client
from tests.e2e.conftest import home as home
from tests.e2e.conftest import hub as hub


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """A scheduler with three worker processes that have no token."""
    with Machines(tmp_path_factory.mktemp("site") / "machines", dashboard=True) as started:
        started.add(3)
        yield started


@pytest.fixture
def machines(site: Machines) -> Machines:
    """The same, with three workers again, whatever a test did to them."""
    return site.fill(3)


@pytest.fixture(autouse=True)
def _lively(monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator looks often."""
    monkeypatch.setattr(dask, "_LOOK_SECONDS", 0.2)
