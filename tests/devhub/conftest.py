"""A devhub in a temporary folder, the unmodified client on it, and plain HTTP beside the client.

The client caches its settings at import: the fixture `home` points its caches into the test's own
folder and gives it a new Xet session, and `lfs_only` turns Xet off where the LFS path is meant.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants as constants
import huggingface_hub.utils._xet as client_xet
import pytest
import urllib3
from huggingface_hub import HfApi
from huggingface_hub.utils import disable_progress_bars

from tensorport_hub.devhub import DevHub

Fetch = Callable[..., urllib3.BaseHTTPResponse]
MakeHub = Callable[..., DevHub]
CdnUrl = Callable[[str, str], str]


def random_bytes(nbytes: int, seed: int = 0) -> bytes:
    """Bytes that no packer makes smaller."""
    return random.Random(seed).randbytes(nbytes)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def safetensors_bytes(header_nbytes: int | None = None) -> bytes:
    """A safetensors file of one small tensor; its header padded with spaces to `header_nbytes`."""
    header = {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    text = json.dumps(header).encode()
    if header_nbytes is not None:
        text = text.ljust(header_nbytes)
    return struct.pack("<Q", len(text)) + text + bytes(range(16))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The client's caches, in the test's own folder."""
    folder = tmp_path / "home"
    monkeypatch.setenv("HF_HOME", str(folder))
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setenv("HF_XET_CACHE", str(folder / "xet"))
    monkeypatch.setenv("HF_XET_TELEMETRY_ENABLED", "0")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(client_xet, "_GLOBAL_XET_HOLDER", client_xet.XetSessionHolder())
    disable_progress_bars()
    return folder


@pytest.fixture
def make_hub(tmp_path: Path) -> Iterator[MakeHub]:
    """Start a devhub with settings of its own; it is stopped at the end of the test."""
    started: list[DevHub] = []

    def make(**settings: Any) -> DevHub:
        hub = DevHub(tmp_path / f"root-{len(started)}", **settings).start()
        started.append(hub)
        return hub

    yield make
    for hub in started:
        hub.stop()


@pytest.fixture
def hub(make_hub: MakeHub) -> DevHub:
    return make_hub()


@pytest.fixture
def api(hub: DevHub) -> HfApi:
    """The client of the default user."""
    return HfApi(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture
def stranger(hub: DevHub) -> HfApi:
    """The client of a user with a write token and no rights beyond their own namespace."""
    return HfApi(endpoint=hub.endpoint, token=hub.add_user("stranger"))


@pytest.fixture
def anonymous(hub: DevHub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=False)


@pytest.fixture
def lfs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client without Xet: uploads by LFS, downloads by HTTP."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def fetch(hub: DevHub) -> Iterator[Fetch]:
    """One plain request to the hub, with the default user's token; no redirects, no retries."""
    pool = urllib3.PoolManager(retries=False, timeout=10)

    def one(method: str, path: str, *, token: str | None = None, **kwargs: Any) -> urllib3.BaseHTTPResponse:
        url = path if path.startswith("http") else hub.endpoint + path
        headers = dict(kwargs.pop("headers", {}))
        if token != "":
            headers["Authorization"] = f"Bearer {token or hub.token}"
        return pool.request(method, url, headers=headers, redirect=False, **kwargs)

    yield one
    pool.clear()


@pytest.fixture
def cdn_url(hub: DevHub, fetch: Fetch) -> CdnUrl:
    """The signed URL that `/resolve/` answers for an LFS file."""

    def of(repo_id: str, path: str) -> str:
        return str(fetch("HEAD", f"/{repo_id}/resolve/main/{path}").headers["Location"])

    return of
