"""git-LFS upload to the Hub: the digest must be known first, so a file is spooled, then sent.

The spool lies in a temporary folder, bounded by `max_disk` over all open files, and goes as soon as a file is
sent or given up. A failed PUT is sent again from the spool. Source: git-lfs "Batch API"; the Hub's
multipart transfer (`chunk_size` and numbered URLs in the upload header).
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping
from typing import IO, Any
from urllib.parse import urlsplit

from tensorport_hub.edge.http import Http, failure
from tensorport_hub.edge.hub_answers import LfsUpload
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.edge.retry import retried
from tensorport_hub.edge.staging import Spool, Staging
from tensorport_hub.edge.together import Together
from tensorport_hub.errors import DestinationError
from tensorport_hub.ports import Receipt, Report

_JSON = {"Accept": "application/vnd.git-lfs+json", "Content-Type": "application/vnd.git-lfs+json"}


class LfsSession:
    """Uploads to one repository's LFS storage, with at most `max_disk` bytes spooled."""

    def __init__(self, client: HubClient, http: Http, repo_id: str, *, max_disk: int, report: Report) -> None:
        self.client, self.http, self.report = client, http, report
        self.batch = Together[Receipt, LfsUpload | None](lambda asked: client.lfs_batch(repo_id, asked))
        self._staging = Staging(
            max_disk=max_disk,
            otherwise="raise `--max-disk`, lower `--shard-size`, or use `--transfer xet`: it stages nothing",
        )
        self.closed = threading.Event()
        self._folder = tempfile.mkdtemp(prefix="tensorport-lfs-")

    def open(self, path: str, size: int) -> LfsSpool:
        """Wait until `size` bytes of staging are free.

        Raises:
            LimitError: they never will be.
        """
        self._staging.reserve(path, size)
        # closed by `abort`, which every writer ends with
        file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
        return LfsSpool(self, self._staging, path, size, file)

    def close(self) -> None:
        self.closed.set()
        shutil.rmtree(self._folder, ignore_errors=True)


class LfsSpool(Spool):
    """One file on its way to the Hub."""

    def __init__(self, session: LfsSession, staging: Staging, path: str, size: int, file: IO[bytes]) -> None:
        super().__init__(staging, path, size, file)
        self._session = session

    def send(self, receipt: Receipt) -> None:
        try:
            self._upload(receipt)
        except DestinationError as error:
            if error.transient:
                raise
            self._upload(receipt)  # the link may have expired, or the bytes were damaged on the way

    def _upload(self, receipt: Receipt) -> None:
        session = self._session
        upload = retried(lambda: session.batch.ask(receipt), session.report, session.closed)
        if upload is not None:
            self._send(receipt, upload)

    def _send(self, receipt: Receipt, upload: LfsUpload) -> None:
        if upload.part_size is None:
            self._put(upload.href, upload.headers, 0, self._size)
        else:
            self._send_parts(receipt, upload, upload.part_size)
        if upload.verify is not None:
            body = {"oid": receipt.sha256, "size": receipt.size}
            self._post(self._session.client.hub_url(upload.verify), body)

    def _send_parts(self, receipt: Receipt, upload: LfsUpload, part_size: int) -> None:
        starts = range(0, self._size, part_size)
        if part_size <= 0 or len(starts) != len(upload.part_urls):
            raise DestinationError(
                f"`{self._path}`: the LFS server answered {len(upload.part_urls)} part URLs for"
                f" {self._size} bytes in parts of {part_size}"
            )
        parts = []
        for number, (start, url) in enumerate(zip(starts, upload.part_urls, strict=True), 1):
            etag = self._put(url, {}, start, min(start + part_size, self._size)).get("ETag")
            if not etag:
                raise DestinationError(f"`{self._path}`: the LFS server answered no ETag for part {number}")
            parts.append({"partNumber": number, "etag": etag})
        self._post(self._session.client.hub_url(upload.href), {"oid": receipt.sha256, "parts": parts})

    def _put(self, url: str, headers: Mapping[str, str], start: int, stop: int) -> Mapping[str, str]:
        def send() -> Mapping[str, str]:
            body = io.BufferedReader(_Slice(self._file.fileno(), start, stop), 1 << 20)
            return self._request("PUT", url, {**headers, "Content-Length": str(stop - start)}, body)

        return retried(send, self._session.report, self._session.closed)

    def _post(self, url: str, body: dict[str, Any]) -> None:
        client = self._session.client
        own = urlsplit(url)[:2] == urlsplit(client.endpoint)[:2]
        headers = {**(client.headers() if own else {}), **_JSON}
        data = json.dumps(body).encode()
        session = self._session

        def post() -> None:
            if own:
                client.admit("api", f"upload of `{self._path}`", DestinationError)
            self._request("POST", url, headers, data)

        retried(post, session.report, session.closed)

    def _request(self, method: str, url: str, headers: Mapping[str, str], body: Any) -> Mapping[str, str]:
        response = self._session.http.request(
            method, url, refusal=DestinationError, headers=headers, body=body
        )
        response.drain_conn()
        response.release_conn()
        if response.status >= 300:
            raise failure(response.status, response.headers, f"upload of `{self._path}`", DestinationError)
        return response.headers


class _Slice(io.RawIOBase):
    """Bytes `start:stop` of an open file, by `pread`: independent of its position."""

    def __init__(self, handle: int, start: int, stop: int) -> None:
        super().__init__()
        self._handle, self._at, self._stop = handle, start, stop

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: self._stop - self._at]
        got = os.preadv(self._handle, [view], self._at) if view.nbytes else 0
        self._at += got
        return got
