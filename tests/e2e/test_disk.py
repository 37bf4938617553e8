"""What touches the disk: nothing by Xet, at most `--max-disk` by LFS."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tensorport_hub.devhub import DevHub
from tests.e2e.held import held_on_disk

METADATA = 3_000_000
"""hf_xet's own session metadata and logs, and the Hub client's small files."""


@pytest.mark.parametrize(
    ("transfer", "limit"), [("xet", "0"), ("lfs", "60MB")], ids=["xet stages nothing", "lfs stages max-disk"]
)
def test_staging_is_bounded(hub: DevHub, minilm: Path, tmp_path: Path, transfer: str, limit: str) -> None:
    """The largest sum of files that the run holds, deleted ones included, seen from outside; then nothing."""
    hub.add_repo("st/minilm", minilm)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {
        **os.environ,
        "TMPDIR": str(scratch),
        "HF_HOME": str(scratch / "home"),
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": hub.token,
    }
    environment.pop("HF_XET_CACHE")
    words = ["mirror", "st/minilm", "me/minilm", "--transfer", transfer, "--max-disk", limit, "-q"]
    run = subprocess.Popen(
        [sys.executable, "-m", "tensorport_hub", *words, "--precision", "float32"],
        env=environment,
        cwd=scratch,
    )
    peak = 0
    while run.poll() is None:
        peak = max(peak, held_on_disk(run.pid, scratch))
        time.sleep(0.002)
    assert run.returncode == 0
    if transfer == "xet":
        assert peak < METADATA
    else:
        assert 40_000_000 < peak <= 60_000_000 + METADATA
    left = [p for p in scratch.rglob("*") if p.is_file() and "tensorport" in str(p.relative_to(scratch))]
    assert left == []
