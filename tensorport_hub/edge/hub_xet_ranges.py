"""Ranges of files out of the Hub's Xet storage.

Rules, measured on hf_xet 1.8.0: a range costs two requests (where its chunks lie, and those chunks), and
fetches at most a chunk of 128 KB too much on each side; a stream that runs ahead through the file is no
faster, and buffers more. A range of no more than 8 MiB comes as one piece, which hf_xet holds twice, so that
few are read at once, whoever asks. An end that lies outside the file, and now and then a refusal, end a
stream early without an error: lengths are checked here. Nobody compares the chunks that came with their
hashes: what proves bytes is the sha256 of the whole file, as for HTTP.

Broken connections and expired links are tried once more by hf_xet, the rest is left to who reads. After any
failure the next range begins with a new token. What is being waited for can't be given up before
`read_seconds` are over.
"""

from __future__ import annotations

import threading
from typing import Any

from tensorport_hub.core.digest import SourceFile
from tensorport_hub.edge.http import Http
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.edge.xet import Xet, connection, translated
from tensorport_hub.errors import SourceError

RANGES_NBYTES = 100 * 1024 * 1024
"""What hf_xet holds while ranges are read, all together."""

_HINT = "`--read http` has the same bytes from elsewhere"
_AT_ONCE = 4
_LONGEST = 8 << 20
_BOUNDS = {
    "client.retry_max_attempts": 1,
    "client.retry_base_delay": "200ms",
    "client.retry_max_duration": "30s",
    "client.ac_initial_download_concurrency": _AT_ONCE,
    "client.ac_max_download_concurrency": 2 * _AT_ONCE,
    "reconstruction.min_reconstruction_fetch_size": _LONGEST,
    "reconstruction.max_reconstruction_fetch_size": _LONGEST,
    "reconstruction.min_prefetch_buffer": _LONGEST,
    "reconstruction.download_buffer_size": _AT_ONCE * _LONGEST,
    "reconstruction.download_buffer_perfile_size": 0,
    "reconstruction.download_buffer_limit": _AT_ONCE * _LONGEST,
}


class XetRanges:
    """Reads files of one commit; from any thread."""

    def __init__(
        self, client: HubClient, http: Http, repo_id: str, commit: str, *, read_seconds: float
    ) -> None:
        self._client, self._http, self._what = client, http, f"Xet token of `{repo_id}`"
        self._url = client.xet_token_url("read", repo_id, commit)
        self._bounds = {**_BOUNDS, "client.read_timeout": f"{max(1, round(1000 * read_seconds))}ms"}
        self._free = threading.BoundedSemaphore(_AT_ONCE)
        self._lock = threading.Lock()
        self._xet: Xet | None = None
        self._group: Any = None

    def read(self, file: SourceFile, xet_hash: str, start: int, buffer: memoryview) -> int:
        """Fill the front of `buffer` with the file's bytes from `start`; how many, 8 MiB at most.

        Raises:
            SourceError: not all of these came; transient, unless there is no way to the storage.
        """
        wanted = min(len(buffer), _LONGEST)
        what = f"range {start}:{start + wanted} of `{file.path}` by Xet"
        with self._free:
            group = self._connected()
            try:
                got = translated(
                    lambda: _fill(buffer[:wanted], self._stream(group, file, xet_hash, start, wanted)),
                    what,
                    SourceError,
                    _HINT,
                )
                if got != wanted:
                    said = f"{what}: expected {wanted} bytes, got {got}"
                    raise SourceError(said, hint=_HINT, transient=True)
            except BaseException:
                self._give_up(group)
                raise
        return got

    def _stream(self, group: Any, file: SourceFile, xet_hash: str, start: int, wanted: int) -> Any:
        assert self._xet is not None
        return group.download_stream(self._xet.file(xet_hash, file.size), start, start + wanted)

    def _connected(self) -> Any:
        """Streams over a token that has worked so far, or over a new one."""
        with self._lock:
            if self._group is None:
                where = connection(self._client, self._http, self._url, self._what, SourceError)
                if where is None:
                    raise SourceError(f"{self._what}: there is none to read with", hint=_HINT)
                xet = self._xet = self._xet or Xet(self._bounds)
                self._group = translated(lambda: xet.download(where), "Xet storage", SourceError)
            return self._group

    def _give_up(self, group: Any) -> None:
        with self._lock:
            if self._group is group:
                self._group = None

    def close(self) -> None:
        """Drop the session; nothing is read afterwards."""
        with self._lock:
            self._group = None
            if self._xet is not None:
                self._xet.close()


def _fill(buffer: memoryview, stream: Any) -> int:
    """Copy what a stream gives; how much it gave, of which only what fits was copied."""
    got = 0
    for piece in stream:
        fits = piece[: max(0, len(buffer) - got)]
        buffer[got : got + len(fits)] = fits
        got += len(piece)
    return got
