"""hf_xet, adapted: streams of bytes into the Hub's Xet storage without touching the disk.

Rules, measured on hf_xet 1.8.0: `write` takes `bytes` only; an aborted stream spoils its whole upload commit,
so each file has a commit of its own (a few milliseconds); `finish` gives the sha256 of what was written;
`wait_to_finish` must return before a Hub commit names that sha256. A stream buffers about 150 MB. Retries
are bounded here, since the defaults go on for minutes; what is left over is the engine's to replay.

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
from collections.abc import Callable
from typing import Any, TypeVar

from tensorport_hub.edge.http import Http, failure
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.errors import DestinationError
from tensorport_hub.ports import Receipt

STREAM_NBYTES = 150 * 1024 * 1024
"""What one open stream buffers."""

_CONFIG = {
    "client.retry_max_attempts": 4,
    "client.retry_base_delay": "400ms",
    "client.retry_max_duration": "60s",
    "client.read_timeout": "60s",
    "client.connect_timeout": "10s",
    "client.ac_max_upload_concurrency": 2,
    "telemetry.enabled": False,
}

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


class XetSession:
    """Uploads to one repository's Xet storage."""

    def __init__(self, client: HubClient, repo_id: str, token: dict[str, Any]) -> None:
        self._client, self._repo_id, self._token = client, repo_id, token
        _home.enter()
        try:
            import hf_xet

            self._session = hf_xet.XetSession(hf_xet.XetConfig().with_config(_CONFIG))
        except BaseException:
            _home.leave()
            raise

    @classmethod
    def offered(cls, client: HubClient, http: Http, repo_id: str) -> XetSession | None:
        """A session, or None where the Hub offers no Xet storage for this repository.

        Raises:
            DestinationError: the token may not write, or no answer came.
        """
        client.admit("api", f"Xet token of `{repo_id}`", DestinationError)
        response = http.request(
            "GET", client.xet_write_token_url(repo_id), refusal=DestinationError, headers=client.headers()
        )
        body = response.read(1 << 20)
        response.release_conn()
        if response.status in (404, 405, 501):
            return None
        if response.status != 200:
            raise failure(response.status, response.headers, f"Xet token of `{repo_id}`", DestinationError)
        try:
            token = json.loads(body)
            return cls(client, repo_id, {key: token[key] for key in ("accessToken", "exp", "casUrl")})
        except (ValueError, KeyError, TypeError) as error:
            raise DestinationError(f"Xet token of `{repo_id}` makes no sense: {error}") from None

    def open(self, path: str, size: int) -> XetUpload:
        return XetUpload(self._commit(), path, size)

    def _commit(self) -> Any:
        headers = self._client.headers()
        public = {key: value for key, value in headers.items() if key.lower() != "authorization"}
        return _translated(
            lambda: self._session.new_upload_commit(
                endpoint=self._token["casUrl"],
                token=self._token["accessToken"],
                token_expiry_unix_secs=int(self._token["exp"]),
                token_refresh_url=self._client.xet_write_token_url(self._repo_id),
                token_refresh_headers=headers,
                custom_headers=public,
            ),
            "Xet storage",
        )

    def close(self) -> None:
        """Drop the session, and the metadata that it left on disk."""
        if self._session is not None:
            self._session = None
            _home.leave()


class XetUpload:
    """One file as a stream."""

    def __init__(self, commit: Any, path: str, size: int) -> None:
        self._commit, self._path, self._size = commit, path, size
        self._stream: Any = _translated(lambda: commit.start_upload_stream(name=path), f"`{path}`")
        self._written = 0

    def write(self, block: memoryview) -> None:
        data = bytes(block)
        _translated(lambda: self._stream.write(data), f"`{self._path}`")
        self._written += len(data)

    def finish(self) -> Receipt:
        if self._written != self._size:
            raise DestinationError(
                f"`{self._path}` has the wrong length: expected {self._size} bytes, got {self._written}"
            )
        info = _translated(self._stream.finish, f"`{self._path}`").xet_info
        _translated(self._commit.wait_to_finish, f"`{self._path}`")
        self._stream = self._commit = None
        if info.file_size != self._size or not info.sha256:
            raise DestinationError(
                f"`{self._path}` arrived wrongly: expected {self._size} bytes, got {info.file_size}",
                transient=True,
            )
        return Receipt(self._path, self._size, str(info.sha256))

    def abort(self) -> None:
        stream, commit = self._stream, self._commit
        self._stream = self._commit = None
        for thing in (stream, commit):
            if thing is not None:
                try:
                    thing.abort()
                except (RuntimeError, OSError):
                    continue  # already ended: there is nothing left to abort


def _translated(call: Callable[[], T], what: str) -> T:
    """hf_xet's exceptions as ours. All may pass: expired tokens and storage faults look alike."""
    try:
        return call()
    except (RuntimeError, OSError) as error:
        text = re.sub(r"https?://\S+", "the storage", str(error))
        raise DestinationError(f"{what}: Xet upload failed: {text[:300]}", transient=True) from None
