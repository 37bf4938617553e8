"""Examples that are run without what they need say how they are run."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.examples.conftest import EXAMPLES


@pytest.mark.parametrize("name", ["mirror_and_load", "gpt_oss_jax", "minilm_jax", "hf_job"])
def test_without_arguments(name: str) -> None:
    """Usage on stderr and exit 2, no traceback."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: {name}.py")
    assert "Traceback" not in done.stderr
