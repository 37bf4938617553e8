"""What touches the disk: nothing by Xet, at most `--max-disk` by LFS."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tensorport_hub.devhub import DevHub

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
        peak = max(peak, _held(run.pid, scratch))
        time.sleep(0.002)
    assert run.returncode == 0
    if transfer == "xet":
        assert peak < METADATA
    else:
        assert 40_000_000 < peak <= 60_000_000 + METADATA
    left = [p for p in scratch.rglob("*") if p.is_file() and "tensorport" in str(p.relative_to(scratch))]
    assert left == []


def _held(pid: int, folder: Path) -> int:
    """Bytes of files below `folder`, and of deleted files that the process still has open."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_size
            except FileNotFoundError:
                continue
    descriptors = Path(f"/proc/{pid}/fd")
    try:
        handles = list(descriptors.iterdir())
    except (FileNotFoundError, PermissionError):
        return total
    for handle in handles:
        try:
            if os.readlink(handle).endswith(" (deleted)"):
                total += handle.stat().st_size
        except FileNotFoundError:
            continue
    return total
