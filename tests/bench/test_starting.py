"""The start-up benchmark runs, and nothing heavy is loaded for a page of help."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.bench import starting


def test_help_comes_at_once() -> None:
    """`--help` takes less than four times as long as Python takes to import numpy."""
    found = starting.measure(5)
    assert found["tensorport-hub --help"] < 4 * found[starting.NUMPY]


@pytest.mark.parametrize("module", ["numpy", "huggingface_hub", "hf_xet", "jax", "git", "yaml", "rich"])
def test_help_loads_nothing_heavy(module: str) -> None:
    """Libraries are loaded by what uses them."""
    code = (
        "import sys; from tensorport_hub.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"print({module!r} in sys.modules, file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr.split()[-1] == "False"
