"""What every test stands on."""

from __future__ import annotations

import signal

import pytest

_LEFT_OUT: list[pytest.Item] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--large`: everything, whatever it needs."""
    parser.addoption("--large", action="store_true", help="run the tests marked `large`, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `large` run only when they are asked for."""
    if config.getoption("--large"):
        return
    _LEFT_OUT[:] = [item for item in items if item.get_closest_marker("large")]
    items[:] = [item for item in items if item not in _LEFT_OUT]
    config.hook.pytest_deselected(items=_LEFT_OUT)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was left out is said, with the reason."""
    for item in _LEFT_OUT:
        terminalreporter.write_line(f"{item.nodeid}: left out, it needs gigabytes; `--large` runs it")


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Some runners start their jobs with SIGINT ignored, which children inherit: here it interrupts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
