"""What one account and one process may use, when many work for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tensorport_hub import mirror
from tensorport_hub.devhub import DevHub
from tests.cluster import models
from tests.cluster.machines import Machines


def test_the_account_s_window_is_shared(
    home: Path, tmp_path: Path, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More requests than a window holds, by three workers at once, and the Hub has to refuse none."""
    most = 120
    with DevHub(tmp_path / "hub", "off", rate_limits={"api": most}, rate_window=2) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        hub.add_repo("st/model", models.bf16(8, tensors=20, rows=20))
        mirror("st/model", "me/shared", cluster=machines.address)
        counted = [s for s in hub.seen if s.path.startswith("/api/") or ".git/" in s.path]
        assert len(counted) > most
        assert [s.path for s in hub.seen if s.status == 429] == []
        assert "manifest.json" in hub.files("me/shared")


@pytest.mark.parametrize(("transfer", "cap"), [("lfs", 150_000_000), ("xet", 460_000_000)])
def test_a_worker_s_memory(hub: DevHub, tmp_path: Path, transfer: str, cap: int) -> None:
    """A worker's process, Dask included, stays below a cap that is less than what passes it; the result says
    how far it went."""
    hub.add_repo("st/model", models.bf16(2, tensors=4, rows=cap // 1900))
    with Machines(tmp_path / "machines") as machines:
        [worker] = machines.add(1)
        result = mirror("st/model", "me/shared", cluster=machines.address, max_memory=cap, transfer=transfer)
        peak = peak_of(worker.pid)
    assert result.stats.bytes_read > cap
    assert result.stats.worker_memory is not None
    assert 50_000_000 < result.stats.worker_memory < cap
    assert peak < cap


def peak_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
