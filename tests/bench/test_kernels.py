"""The kernel benchmark runs; how fast, is for people to read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.bench import kernels


def test_every_layout_is_measured_or_absent_with_a_reason():
    """A small run: numbers for what detection knows, words for what it does not."""
    found = kernels.measure(rows=64, columns=256, runs=1)
    assert list(found) == list(kernels.modules(64, 256))
    for name in ("mxfp4", "nvfp4", "float8 block", "int4 pack", "nf4", "mlx 4-bit"):
        assert found[name]["gb_per_s"] > 0, found[name]
        assert found[name]["memcpy_gb_per_s"] > 0
    assert all("share" in row or row["absent"] for row in found.values())


def test_it_prints_a_table_and_json():
    """By hand, from the command line."""
    base = [sys.executable, "-m", "tests.bench.kernels", "--rows", "64", "--columns", "256", "--runs", "1"]
    root = str(Path(__file__).parents[2])
    run = {"cwd": root, "env": {**os.environ, "PYTHONPATH": root}, "capture_output": True, "check": True}
    table = subprocess.run(base, text=True, **run).stdout
    assert "memcpy" in table.splitlines()[0]
    printed = json.loads(subprocess.run([*base, "--json"], text=True, **run).stdout)
    assert printed["rows"] == 64
    assert "mlx 4-bit" in printed["layouts"]
