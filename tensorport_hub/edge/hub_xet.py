"""Streams of bytes into the Hub's Xet storage without touching the disk.

Rules, measured on hf_xet 1.8.0: `write` takes `bytes` only; an aborted stream spoils its whole upload commit,
so each file has a commit of its own (a few milliseconds); `finish` gives the sha256 of what was written;
`wait_to_finish` must return before a Hub commit names that sha256. A stream buffers about 160 MB, and what is
on its way as much again. Retries are bounded here; what is left over is the engine's to replay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tensorport_hub.edge.http import Http
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.edge.xet import Xet, connection, translated
from tensorport_hub.errors import DestinationError
from tensorport_hub.ports import Receipt

_STREAM_NBYTES = 156 << 20
_SESSION_NBYTES = 138 << 20
_MOST = 1.7

_BOUNDS = {
    "client.retry_max_attempts": 4,
    "client.retry_base_delay": "400ms",
    "client.retry_max_duration": "60s",
    "client.read_timeout": "60s",
    "client.ac_max_upload_concurrency": 2,
}

T = TypeVar("T")


def buffered(nbytes: int, *, streams: int) -> tuple[int, int]:
    """What hf_xet buffers, measured where the storage is slow: all together, and besides for each writer.

    Args:
        nbytes: of everything that will be sent; no more than about twice that is ever held.
        streams: that a writer has open.
    """
    most = int(_MOST * nbytes)
    session = min(_SESSION_NBYTES, most)
    return session, min(_STREAM_NBYTES * streams, most - session)


class XetSession:
    """Uploads to one repository's Xet storage."""

    def __init__(self, where: Mapping[str, Any]) -> None:
        self._where = where
        self._xet = Xet(_BOUNDS)

    @classmethod
    def offered(cls, client: HubClient, http: Http, repo_id: str) -> XetSession | None:
        """A session, or None where the Hub offers no Xet storage for this repository.

        Raises:
            DestinationError: the token may not write, or no answer came.
        """
        url, what = client.xet_token_url("write", repo_id, "main"), f"Xet token of `{repo_id}`"
        where = connection(client, http, url, what, DestinationError)
        return None if where is None else cls(where)

    def open(self, path: str, size: int) -> XetUpload:
        return XetUpload(_sent(lambda: self._xet.upload(self._where), "Xet storage"), path, size)

    def close(self) -> None:
        """Drop the session, and the metadata that it left on disk."""
        self._xet.close()


class XetUpload:
    """One file as a stream."""

    def __init__(self, commit: Any, path: str, size: int) -> None:
        self._commit, self._path, self._size = commit, path, size
        self._stream: Any = _sent(lambda: commit.start_upload_stream(name=path), f"`{path}`")
        self._written = 0

    def write(self, block: memoryview) -> None:
        data = bytes(block)
        _sent(lambda: self._stream.write(data), f"`{self._path}`")
        self._written += len(data)

    def finish(self) -> Receipt:
        if self._written != self._size:
            raise DestinationError(
                f"`{self._path}` has the wrong length: expected {self._size} bytes, got {self._written}"
            )
        info = _sent(self._stream.finish, f"`{self._path}`").xet_info
        _sent(self._commit.wait_to_finish, f"`{self._path}`")
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


def _sent(call: Callable[[], T], what: str) -> T:
    return translated(call, f"{what}: Xet upload failed", DestinationError)
