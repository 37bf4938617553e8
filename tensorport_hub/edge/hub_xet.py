"""Streams of bytes into the Hub's Xet storage without touching the disk.

Rules, measured on hf_xet 1.8.0: `write` takes `bytes` only; an aborted stream spoils its whole upload commit,
so each file has a commit of its own; `finish` gives the sha256 of what was written; `wait_to_finish` must
return before a Hub commit names that sha256. A stream buffers about 160 MB, and what is on its way as much
again. Retries are bounded here; what is left over is the engine's to replay.

A commit costs five requests, one after another, and 13 ms of processor time. So small files wait in memory
until they are complete, and those that end at the same time share one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from tensorport_hub.edge.http import Http
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.edge.together import Together
from tensorport_hub.edge.xet import Xet, connection, translated
from tensorport_hub.errors import DestinationError
from tensorport_hub.ports import SMALL_NBYTES, Receipt, Writer

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
_Content = tuple[str, bytes]
"""A path, and all that the file holds."""


def buffered(nbytes: int, *, streams: int, small: int) -> tuple[int, int]:
    """What is buffered, measured where the storage is slow: all together, and besides for each writer.

    Args:
        nbytes: of everything that will be sent; no more than about twice that is ever held.
        streams: that a writer has open.
        small: bytes of small files that are on their way at a time: they are held here and by hf_xet.
    """
    most = int(_MOST * nbytes)
    session = min(_SESSION_NBYTES + 2 * small, most)
    return session, min(_STREAM_NBYTES * streams, most - session)


class XetSession:
    """Uploads to one repository's Xet storage."""

    def __init__(self, where: Mapping[str, Any]) -> None:
        self._where = where
        self._xet = Xet(_BOUNDS)
        self._together = Together[_Content, Receipt](self._send)

    @classmethod
    def offered(cls, client: HubClient, http: Http, repo_id: str) -> XetSession | None:
        """A session, or None where the Hub offers no Xet storage for this repository.

        Raises:
            DestinationError: the token may not write, or no answer came.
        """
        url, what = client.xet_token_url("write", repo_id, "main"), f"Xet token of `{repo_id}`"
        where = connection(client, http, url, what, DestinationError)
        return None if where is None else cls(where)

    def open(self, path: str, size: int) -> Writer:
        if size <= SMALL_NBYTES:
            return XetSmall(self._together.ask, path, size)
        return XetUpload(self._commit(), path, size)

    def _commit(self) -> Any:
        return _sent(lambda: self._xet.upload(self._where), "Xet storage")

    def _send(self, files: Sequence[_Content]) -> list[Receipt | Exception]:
        """Complete files, in one commit."""
        commit = self._commit()
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""

        def send() -> list[Any]:
            uploads = [commit.start_upload_bytes(data, name=path) for path, data in files]
            commit.wait_to_finish()
            return [upload.result().xet_info for upload in uploads]

        try:
            infos = _sent(send, f"`{files[0][0]}`{more}")
        except BaseException:
            _abort(commit)
            raise
        return [_receipt(path, len(data), info) for (path, data), info in zip(files, infos, strict=True)]

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
        _check_length(self._path, self._size, self._written)
        info = _sent(self._stream.finish, f"`{self._path}`").xet_info
        _sent(self._commit.wait_to_finish, f"`{self._path}`")
        self._stream = self._commit = None
        return _receipt(self._path, self._size, info)

    def abort(self) -> None:
        stream, commit = self._stream, self._commit
        self._stream = self._commit = None
        for thing in (stream, commit):
            if thing is not None:
                _abort(thing)


class XetSmall:
    """One small file, held until it is complete.

    Args:
        send: brings a complete file to the storage.
    """

    def __init__(self, send: Callable[[_Content], Receipt], path: str, size: int) -> None:
        self._send, self._path, self._size = send, path, size
        self._data = bytearray()

    def write(self, block: memoryview) -> None:
        self._data += block

    def finish(self) -> Receipt:
        _check_length(self._path, self._size, len(self._data))
        return self._send((self._path, bytes(self._data)))

    def abort(self) -> None:
        self._data = bytearray()


def _abort(thing: Any) -> None:
    """End a stream or a commit, or find that it has ended."""
    with suppress(RuntimeError, OSError):
        thing.abort()


def _check_length(path: str, size: int, got: int) -> None:
    if got != size:
        raise DestinationError(f"`{path}` has the wrong length: expected {size} bytes, got {got}")


def _receipt(path: str, size: int, info: Any) -> Receipt:
    """What hf_xet says of a file that it sent.

    Raises:
        DestinationError: it is not what was given to it; transient.
    """
    if info.file_size != size or not info.sha256:
        raise DestinationError(
            f"`{path}` arrived wrongly: expected {size} bytes, got {info.file_size}", transient=True
        )
    return Receipt(path, size, str(info.sha256))


def _sent(call: Callable[[], T], what: str) -> T:
    return translated(call, f"{what}: Xet upload failed", DestinationError)
