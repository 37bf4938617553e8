"""A real browser, where there is one.

Where there is none its tests are skipped, and say so; where `TENSORPORT_TEST_ALL` is set, they fail.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.report.browser import Browser

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Headless Chromium."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        said = f"no browser is on this machine (apt-get install chromium): looked for {', '.join(PROGRAMS)}"
        if os.environ.get("TENSORPORT_TEST_ALL"):
            pytest.fail(said)
        pytest.skip(said)
    with Browser(program, tmp_path_factory.mktemp("browser")) as running:
        yield running
