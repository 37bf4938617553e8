"""What networks and Hubs do to a run: passing faults are survived, lasting ones told; no wrong bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tensorport_hub import mirror
from tensorport_hub.cli import main
from tensorport_hub.devhub import DevHub, Fault
from tensorport_hub.edge import retry
from tensorport_hub.engine import part
from tests.e2e.reading import arrays, contents, same, stored

SOURCE, TARGET = "st/minilm", "me/minilm"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits: the number of tries stays what it is."""
    monkeypatch.setattr(retry, "_FIRST", 0.01)
    monkeypatch.setattr(part, "_PAUSE", 0.01)
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")


@pytest.fixture
def seeded(hub: DevHub, minilm: Path) -> DevHub:
    hub.add_repo(SOURCE, minilm)
    return hub


READING = {
    "dropped": Fault("drop", origin="cdn", at=100_000, times=3),
    "dropped before the first byte": Fault("drop", origin="cdn", at=0, times=3),
    "truncated": Fault("truncate", origin="cdn", times=3),
    "range ignored": Fault("ignore_range", origin="cdn", times=3),
    "storage busy": Fault("status", origin="cdn", status=503, times=3),
    "storage rate-limited": Fault("status", origin="cdn", status=429, retry_after=0, times=3),
    "stalled": Fault("stall", origin="cdn", at=5_000, seconds=3, times=3),
    "link expired": Fault("expire", origin="cdn", times=3),
    "connection closed": Fault("close", origin="cdn", times=3),
    "resolve fails": Fault("status", "HEAD", "hub", "*/resolve/*", status=500, times=3),
    "resolve rate-limited": Fault("status", "HEAD", "hub", "*/resolve/*", status=429, ratelimit_t=1, times=3),
    "resolve closed": Fault("close", "HEAD", "hub", "*/resolve/*", times=3),
    "info fails": Fault("status", "GET", "hub", f"/api/models/{SOURCE}*", status=502, times=3),
    "small file dropped": Fault("drop", "GET", "hub", "*/resolve/*/tokenizer.json", at=1000, times=3),
}
BY_LFS = {
    "upload dropped": Fault("drop", "PUT", "cdn", at=50_000, times=3),
    "upload fails": Fault("status", "PUT", "cdn", status=500, times=3),
    "upload rate-limited": Fault("status", "PUT", "cdn", status=429, retry_after=0, times=3),
    "upload damaged": Fault("wrong_bytes", "PUT", "cdn", at=300, times=1),
    "batch fails": Fault("status", "POST", "hub", "*/objects/batch", status=503, times=3),
    "batch closed": Fault("close", "POST", "hub", "*/objects/batch", times=3),
    "commit fails": Fault("status", "POST", "hub", "*/commit/*", status=500, times=3),
    "commit rate-limited": Fault("status", "POST", "hub", "*/commit/*", status=429, retry_after=0, times=3),
    "commit closed": Fault("close", "POST", "hub", "*/commit/*", times=3),
    "commit's answer lost": Fault("lost_answer", "POST", "hub", "*/commit/*", times=1),
    "preupload fails": Fault("status", "POST", "hub", "*/preupload/*", status=503, times=3),
    "create fails": Fault("status", "POST", "hub", "/api/repos/create", status=503, times=3),
}
BY_XET = {
    "token fails": Fault("status", "GET", "hub", "*/xet-write-token/*", status=503, times=3),
    "xorb fails": Fault("status", "POST", "cdn", "/cas/v1/xorbs/*", status=500, times=3),
    "xorb rate-limited": Fault(
        "status", "POST", "cdn", "/cas/v1/xorbs/*", status=429, retry_after=0, times=3
    ),
    "xorb closed": Fault("close", "POST", "cdn", "/cas/v1/xorbs/*", times=3),
    "xorb damaged": Fault("wrong_bytes", "POST", "cdn", "/cas/v1/xorbs/*", at=1000, times=1),
    "shard fails": Fault("status", "POST", "cdn", "/cas/v1/shards*", status=503, times=3),
    "commit fails": Fault("status", "POST", "hub", "*/commit/*", status=503, times=3),
}
PASSING = [
    *((name, "lfs", fault) for name, fault in {**READING, **BY_LFS}.items()),
    *((name, "xet", fault) for name, fault in BY_XET.items()),
]


@pytest.mark.parametrize(("transfer", "fault"), [pytest.param(t, f, id=f"{n}-{t}") for n, t, f in PASSING])
def test_passing_faults_end_well(seeded: DevHub, minilm: Path, transfer: str, fault: Fault) -> None:
    """A fault up to three times in a row: the run ends well, every array is right, the CDN sees no token."""
    seeded.faults.add(fault)
    mirror(
        SOURCE,
        TARGET,
        transfer=transfer,
        include=["encoder.layer.0.*", "embeddings.*"],
        verify_source="whole",
    )
    assert len(seeded.faults.fired) == fault.times
    _check_arrays(seeded, minilm)
    assert any(request.origin == "cdn" for request in seeded.seen)
    _check_no_token_leaked(seeded)


LASTING = {
    "dropped": (4, "lfs", Fault("drop", origin="cdn", at=0, times=None)),
    "truncated": (4, "lfs", Fault("truncate", origin="cdn", times=None)),
    "range ignored": (4, "lfs", Fault("ignore_range", origin="cdn", times=None)),
    "stalled": (4, "lfs", Fault("stall", origin="cdn", at=0, seconds=2, times=None)),
    "link expired": (4, "lfs", Fault("expire", origin="cdn", times=None)),
    "storage forbidden": (4, "lfs", Fault("status", origin="cdn", status=403, times=None)),
    "resolve forbidden": (4, "lfs", Fault("status", "HEAD", "hub", "*/resolve/*", status=403, times=None)),
    "info fails": (4, "lfs", Fault("status", "GET", "hub", f"/api/models/{SOURCE}*", status=500, times=None)),
    "wrong bytes": (6, "lfs", Fault("wrong_bytes", origin="cdn", at=2_000_000, times=None)),
    "upload fails": (5, "lfs", Fault("status", "PUT", "cdn", status=500, times=None)),
    "upload refused": (5, "lfs", Fault("status", "PUT", "cdn", status=403, times=None)),
    "upload damaged": (5, "lfs", Fault("wrong_bytes", "PUT", "cdn", at=300, times=None)),
    "commit fails": (5, "lfs", Fault("status", "POST", "hub", "*/commit/*", status=500, times=None)),
    "conflict": (5, "lfs", Fault("conflict", "POST", "hub", "*/commit/*", times=None)),
    "xorb fails": (5, "xet", Fault("status", "POST", "cdn", "/cas/v1/xorbs/*", status=500, times=None)),
    "xorb refused": (5, "xet", Fault("status", "POST", "cdn", "/cas/v1/xorbs/*", status=403, times=None)),
    "shard fails": (5, "xet", Fault("status", "POST", "cdn", "/cas/v1/shards*", status=500, times=None)),
    "no Xet": (5, "xet", Fault("status", "GET", "hub", "*/xet-write-token/*", status=404, times=None)),
}


@pytest.mark.parametrize(
    ("code", "transfer", "fault"), [pytest.param(*case, id=name) for name, case in LASTING.items()]
)
def test_lasting_faults_are_told(
    seeded: DevHub, capsys: pytest.CaptureFixture[str], code: int, transfer: str, fault: Fault
) -> None:
    """A fault that stays: the documented exit code, one clear error, no traceback, nothing published."""
    seeded.faults.add(fault)
    words = ["mirror", SOURCE, TARGET, "--transfer", transfer, "--include", "embeddings.*"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--verify-source", "whole", "--no-progress"])
    said = capsys.readouterr().err
    assert ended.value.code == code, said
    assert "error: " in said
    assert "Traceback" not in said
    assert seeded.token not in said
    assert TARGET not in seeded_repos(seeded) or list(seeded.files(TARGET)) == [".gitattributes"]
    _check_no_token_leaked(seeded)


def seeded_repos(hub: DevHub) -> list[str]:
    from huggingface_hub import HfApi

    return [TARGET] if HfApi(endpoint=hub.endpoint, token=hub.token).repo_exists(TARGET) else []


def _check_arrays(hub: DevHub, minilm: Path) -> None:
    made = arrays(contents(hub, TARGET))
    source = stored(minilm / "model.safetensors")
    assert len(made) > 10
    for name, array in made.items():
        assert same(array, np.ascontiguousarray(source[name])), name


def _check_no_token_leaked(hub: DevHub) -> None:
    """The storage origin never sees the Hub's token, in no header and no URL."""
    for request in (request for request in hub.seen if request.origin == "cdn"):
        assert hub.token not in (request.authorization or "")
        assert hub.token not in str(request)
