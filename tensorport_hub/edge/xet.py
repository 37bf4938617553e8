"""hf_xet, opened: the only module that imports it. `hub_xet` writes by it, `hub_xet_ranges` reads.

Rules: a session is bounded by what its caller sets, never by hf_xet's defaults, which retry for minutes and
buffer gigabytes. Connections start from a token that we asked for ourselves, so that a refusal is ours to
word; hf_xet renews it at the same address, the one place where it sends the Hub's own token.

hf_xet writes no payload to disk, but about 1 MB of metadata a GB under `HF_XET_CACHE`, and logs: unless the
user set these variables, they name a temporary folder that goes when the last session closes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tensorport_hub.edge.http import Http, Refusal, failure, read_into
from tensorport_hub.edge.hub_client import HubClient

_BOUNDS = {
    "client.connect_timeout": "10s",
    "chunk_cache.size_bytes": 0,
    "telemetry.enabled": False,
}
_TOKEN_NBYTES = 1 << 16
_STORAGE = re.compile(r"(https?|local)://[\x21-\x7e]+")
_SECRET = re.compile(r"[\x21-\x7e]+")
_LATEST = 1 << 40
"""Seconds since 1970."""

T = TypeVar("T")


class _Home:
    """Where hf_xet puts metadata and logs: variables of this process, so all its sessions share a folder."""

    def __init__(self) -> None:
        self._lock, self._sessions = threading.Lock(), 0
        self._folder, self._set = "", dict[str, str]()

    def enter(self) -> None:
        with self._lock:
            self._sessions += 1
            self._folder = self._folder or tempfile.mkdtemp(prefix="tensorport-xet-")
            wanted = {
                "HF_XET_CACHE": self._folder,
                "HF_XET_LOG_DEST": f"{self._folder}/",
                "RUST_LOG": "warn",  # otherwise megabytes of it a run
            }
            missing = {key: value for key, value in wanted.items() if key not in os.environ}
            os.environ.update(missing)
            self._set |= missing

    def leave(self) -> None:
        with self._lock:
            self._sessions -= 1
            if self._sessions:
                return
            for key, value in self._set.items():
                if os.environ.get(key) == value:
                    del os.environ[key]
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder, self._set = "", {}


_home = _Home()


class Xet:
    """A session of hf_xet.

    Args:
        bounds: values of its configuration; what an older hf_xet does not know is left out.
    """

    def __init__(self, bounds: Mapping[str, object]) -> None:
        _home.enter()
        try:
            import hf_xet

            config = hf_xet.XetConfig()
            known = set(config.keys())
            wanted = {key: value for key, value in {**_BOUNDS, **bounds}.items() if key in known}
            self._session: Any = hf_xet.XetSession(config.with_config(wanted))
            self._file: Any = hf_xet.XetFileInfo
        except BaseException:
            _home.leave()
            raise

    def upload(self, connection: Mapping[str, Any]) -> Any:
        """A commit of uploads."""
        return self._session.new_upload_commit(**connection)

    def download(self, connection: Mapping[str, Any]) -> Any:
        """A group of streams of downloads."""
        return self._session.new_download_stream_group(**connection)

    def file(self, xet_hash: str, size: int) -> Any:
        """What a stream of downloads is asked for."""
        return self._file(xet_hash, size)

    def close(self) -> None:
        """Drop the session, and what it left on disk; harmless when that was done."""
        if self._session is not None:
            self._session = None
            _home.leave()


def connection(client: HubClient, http: Http, url: str, what: str, refusal: Refusal) -> dict[str, Any] | None:
    """What hf_xet connects with, by the Hub's token endpoint `url`; None where it offers no Xet storage.

    Raises:
        SourceError, DestinationError: (`refusal`) the token may not, or no answer came that makes sense.
    """
    client.admit("api", what, refusal)
    headers = client.headers()
    response = http.request("GET", url, refusal=refusal, headers=headers)
    body = bytearray(_TOKEN_NBYTES)
    nbytes = read_into(response, memoryview(body))
    response.release_conn()
    if response.status in (404, 405, 501):
        return None
    if response.status != 200:
        client.pace.hear(response.status, response.headers)
        raise failure(response.status, response.headers, what, refusal)
    try:
        token = json.loads(body[:nbytes])
        storage, secret, expires = str(token["casUrl"]), str(token["accessToken"]), int(token["exp"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise refusal(f"{what} makes no sense: {type(error).__name__}: {error}") from None
    if not (_STORAGE.fullmatch(storage) and _SECRET.fullmatch(secret) and 0 <= expires < _LATEST):
        raise refusal(f"{what} makes no sense: its storage, secret or expiry is malformed")
    return {
        "endpoint": storage,
        "token": secret,
        "token_expiry_unix_secs": expires,
        "token_refresh_url": url,
        "token_refresh_headers": headers,
        "custom_headers": {k: v for k, v in headers.items() if k.lower() != "authorization"},
    }


def translated(call: Callable[[], T], what: str, refusal: Refusal, hint: str = "") -> T:
    """hf_xet's exceptions as ours. All may pass: expired tokens and storage faults look alike."""
    try:
        return call()
    except (RuntimeError, OSError) as error:
        text = re.sub(r"https?://\S+", "the storage", str(error))
        raise refusal(f"{what}: {text[:300]}", hint=hint, transient=True) from None
