"""Streams of bytes into the Hub's Xet storage without touching the disk.

Rules, measured on hf_xet 1.8.0: `write` takes `bytes` only; an aborted stream spoils its whole upload commit,
so each file has a commit of its own; `finish` gives the sha256 of what was written; `wait_to_finish` must
return before a Hub commit names that sha256. A stream buffers about 160 MB, and what is on its way comes on
top, 64 MB an upload: more of them are faster where the storage takes its time to answer. With `SPARING` one
at a time, streams wait for each to arrive, which buffers the least, and is slower. Retries are bounded here;
what is left over is the engine's to replay.

A commit costs five requests, one after another, and 13 ms of processor time. So small files wait in memory
until they are complete, and those that end at the same time share one. Nor is it asked for each of them
whether the storage has its beginning already: that is a request a file, for a few bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from tensorport_hub.edge.http import Http
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.edge.together import Together
from tensorport_hub.edge.xet import Xet, connection, translated
from tensorport_hub.errors import DestinationError
from tensorport_hub.ports import SMALL_NBYTES, Receipt, Writer

SPARING = 1
"""Uploads at a time with which streams wait for what they sent."""

_STREAM_NBYTES = 156 << 20
_UPLOAD_NBYTES = 64 << 20
_SESSION_NBYTES = 10 << 20
_SPARING_NBYTES = 150 << 20
_SPARING_MORE_NBYTES = 164 << 20
_MOST = 1.7
_PATIENCE = 60.0
"""Seconds without a byte sent after which a sparing stream goes on to its next upload, which says whether one
has failed: no less than what an answer may take."""
_LOOK = 0.01

_CONCURRENCY = ("client.ac_initial_upload_concurrency", "client.ac_max_upload_concurrency")
_ASK_STORAGE = "deduplication.global_dedup_query_enabled"
_BOUNDS = {
    "client.retry_max_attempts": 4,
    "client.retry_base_delay": "400ms",
    "client.retry_max_duration": "60s",
    "client.read_timeout": "60s",
}

T = TypeVar("T")
_Content = tuple[str, bytes]
"""A path, and all that the file holds."""


def buffered(nbytes: int, *, streams: int, small: int, uploads: int) -> tuple[int, int]:
    """What is buffered, measured where the storage is slow: all together, and besides for each writer.

    Args:
        nbytes: of everything that will be sent; no more than about twice that is ever held.
        streams: that a writer has open.
        small: bytes of small files that are on their way at a time: they are held here and by hf_xet.
        uploads: at a time; if `SPARING`, no more than one writer's streams are open.
    """
    most = int(_MOST * nbytes)
    if uploads == SPARING:
        session, writer = _SPARING_NBYTES, _SPARING_MORE_NBYTES * (streams - 1)
    else:
        session, writer = _SESSION_NBYTES + uploads * _UPLOAD_NBYTES, _STREAM_NBYTES * streams
    session = min(session + 2 * small, most)
    return session, min(writer, most - session)


class XetSession:
    """Uploads to one repository's Xet storage.

    Args:
        where: what hf_xet connects with.
        uploads: that are under way at a time.
    """

    def __init__(self, where: Mapping[str, Any], *, uploads: int) -> None:
        self._where, self._sparing = where, uploads == SPARING
        bounds = _BOUNDS | dict.fromkeys(_CONCURRENCY, uploads)
        self._xet, self._xet_small = Xet(bounds), Xet(bounds | {_ASK_STORAGE: False})
        self._together = Together[_Content, Receipt](self._send)

    @classmethod
    def offered(cls, client: HubClient, http: Http, repo_id: str, *, uploads: int) -> XetSession | None:
        """A session, or None where the Hub offers no Xet storage for this repository.

        Raises:
            DestinationError: the token may not write, or no answer came.
        """
        url, what = client.xet_token_url("write", repo_id, "main"), f"Xet token of `{repo_id}`"
        where = connection(client, http, url, what, DestinationError)
        return None if where is None else cls(where, uploads=uploads)

    def open(self, path: str, size: int) -> Writer:
        if size <= SMALL_NBYTES:
            return XetSmall(self._together.ask, path, size)
        return XetUpload(self._commit(self._xet), path, size, sparing=self._sparing)

    def _commit(self, xet: Xet) -> Any:
        return _sent(lambda: xet.upload(self._where), "Xet storage")

    def _send(self, files: Sequence[_Content]) -> list[Receipt | Exception]:
        """Complete files, in one commit."""
        commit = self._commit(self._xet_small)
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
        self._xet_small.close()


class XetUpload:
    """One file as a stream."""

    def __init__(self, commit: Any, path: str, size: int, *, sparing: bool) -> None:
        self._commit, self._path, self._size, self._sparing = commit, path, size, sparing
        self._stream: Any = _sent(lambda: commit.start_upload_stream(name=path), f"`{path}`")
        self._written = 0
        self._stuck: int | None = None

    def write(self, block: memoryview) -> None:
        data = bytes(block)
        if self._sparing:
            commit = self._commit
            self._stuck = _sent(lambda: _wait_for_arrival(commit, self._stuck), f"`{self._path}`")
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


def _wait_for_arrival(commit: Any, stuck: int | None) -> int | None:
    """Wait until what is on its way has arrived.

    Args:
        stuck: bytes that had been sent when this was given up; while there are no more, it is not begun anew.

    Returns:
        The same for the next time; None where all has arrived.
    """
    sent, until = 0, time.monotonic() + _PATIENCE
    while (progress := commit.progress()).total_transfer_bytes_completed < progress.total_transfer_bytes:
        now, state = time.monotonic(), commit.status()
        if progress.total_transfer_bytes_completed > sent:
            sent, until = progress.total_transfer_bytes_completed, now + _PATIENCE
        if now > until or sent == stuck or state != type(state).Running:
            return sent
        time.sleep(_LOOK)
    return None


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
