"""A repository on the Hub, read by strict ranges over HTTP, or by Xet where that is wanted.

Rules: everything comes from the commit that was resolved at the start. One `/resolve` a file finds its
storage link, which is used until the storage answers 403; the token goes to the endpoint's host alone. An
answer counts only if it is 206 with exactly the `Content-Range` that was asked, the file's known size, and
the `ETag` seen first; a 200 only where the whole file was wanted. What came before a connection broke is
kept, and reading goes on behind it.

With `xet`, files that the same `/resolve` says are in Xet storage are read from there (`hub_xet_ranges`): the
Xet hash that it states at the commit stands for the content. All others come over HTTP.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

import urllib3

from tensorport_hub.core.digest import SourceFile
from tensorport_hub.edge import http
from tensorport_hub.edge.hub_answers import RepoState
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.edge.hub_xet_ranges import XetRanges
from tensorport_hub.edge.retry import ATTEMPTS, pause
from tensorport_hub.errors import SourceError, TensorportError
from tensorport_hub.ports import Report, Warned

_REDIRECTS = 3
_XET_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class _Link:
    """Where a file's bytes are to be had now."""

    url: str
    headers: Mapping[str, str]
    signed: bool
    xet_hash: str | None


class HubSource:
    """One commit of a model repository.

    Args:
        xet: read by Xet what is in Xet storage.
    """

    stamp = ""

    def __init__(
        self, client: HubClient, state: RepoState, *, read_seconds: float, report: Report, xet: bool = False
    ) -> None:
        self._client, self._report = client, report
        self._http = http.Http(read_seconds=read_seconds)
        self._xet: XetRanges | None = None
        if xet:
            self._xet = XetRanges(client, self._http, state.repo_id, state.commit, read_seconds=read_seconds)
        self.repo: str | None = state.repo_id
        self.commit = state.commit
        self.private, self.gated = state.private, state.gated
        self.files: Sequence[SourceFile] = state.files
        self._by_path = {file.path: file for file in state.files}
        self._links: dict[str, _Link] = {}
        self._etags: dict[str, str] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._warned = False
        self._closed = threading.Event()

    def read_into(self, path: str, start: int, buffer: memoryview) -> None:
        file = self._by_path.get(path)
        if file is None:
            raise SourceError(f"`{path}` is not in `{self.repo}` at {self.commit}")
        if start < 0 or start + len(buffer) > file.size:
            raise SourceError(
                f"range {start}:{start + len(buffer)} of `{path}` lies outside its {file.size} bytes"
            )
        done = failures = 0
        while done < len(buffer):
            try:
                got = self._read_once(file, start + done, buffer[done:])
            except TensorportError as error:
                failures += 1
                if not error.transient or failures == ATTEMPTS:
                    raise
                pause(error, failures, self._report, self._closed)
                continue
            failures = 0 if got else failures
            done += got

    def _read_once(self, file: SourceFile, start: int, buffer: memoryview) -> int:
        """One range of what is wanted; the bytes that came, at least one.

        Raises:
            SourceError: nothing that may be used came.
        """
        link = self._link(file)
        if self._xet is not None:
            if link.xet_hash is not None:
                return self._xet.read(file, link.xet_hash, start, buffer)
            self._warn_once(file)
        if not link.signed:
            self._client.admit("resolvers", f"`{file.path}` of `{self.repo}`", SourceError)
        stop = start + len(buffer)
        what = f"`{file.path}` of `{self.repo}`"
        response = self._http.request(
            "GET",
            link.url,
            refusal=SourceError,
            headers={**link.headers, "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"},
        )
        try:
            if link.signed and response.status in (400, 401, 403, 404, 410):
                self._forget(file.path, link)
                raise SourceError(
                    f"the storage link of {what} expired (HTTP {response.status})", transient=True
                )
            if response.status not in (200, 206):
                if not link.signed:
                    self._client.pace.hear(response.status, response.headers)
                raise http.failure(response.status, response.headers, what, SourceError)
            self._check(response, file, start, stop)
            got = http.read_into(response, buffer)
            if got == 0:
                raise SourceError(f"{what} broke off at byte {start}", transient=True)
            return got
        finally:
            if response.length_remaining:
                response.close()
            response.release_conn()

    def _warn_once(self, file: SourceFile) -> None:
        """Say that a large file is read in another way than was asked for; small ones are never in Xet."""
        with self._lock:
            if self._warned or file.sha256 is None:
                return
            self._warned = True
        said = f"`{file.path}` of `{self.repo}` is not in Xet storage: what isn't there is read by HTTP"
        self._report(Warned(said))

    def _check(self, response: urllib3.BaseHTTPResponse, file: SourceFile, start: int, stop: int) -> None:
        """Refuse any answer that is not exactly the range that was asked."""
        headers = response.headers
        what = f"range {start}:{stop} of `{file.path}`"
        if headers.get("Content-Encoding", "identity") != "identity":
            raise SourceError(f"{what} came encoded as `{headers['Content-Encoding']}`", transient=True)
        if response.status == 200 and (start, stop) != (0, file.size):
            raise SourceError(f"{what}: the server ignores ranges (HTTP 200)", transient=True)
        if response.status == 206:
            expected = f"bytes {start}-{stop - 1}/{file.size}"
            if headers.get("Content-Range") != expected:
                raise SourceError(
                    f"{what}: expected `{expected}`, got `{headers.get('Content-Range')}`", transient=True
                )
        length = headers.get("Content-Length")
        if length is not None and length != str(stop - start):
            raise SourceError(f"{what}: expected {stop - start} bytes, got {length}", transient=True)
        etag = headers.get("ETag")
        if etag is not None and self._etags.setdefault(file.path, etag) != etag:
            raise SourceError(
                f"`{file.path}` changed while it was read: expected ETag {self._etags[file.path]}, got {etag}"
            )

    def _link(self, file: SourceFile) -> _Link:
        """The file's storage link: known, or found by one HEAD request."""
        with self._lock:
            lock = self._locks.setdefault(file.path, threading.Lock())
        with lock:
            if file.path not in self._links:
                self._links[file.path] = self._resolve(file)
            return self._links[file.path]

    def _forget(self, path: str, link: _Link) -> None:
        with self._lock:
            if self._links.get(path) is link:
                del self._links[path]

    def _resolve(self, file: SourceFile) -> _Link:
        home = urlsplit(self._client.endpoint)
        url = f"{self._client.endpoint}/{self.repo}/resolve/{self.commit}/{quote(file.path)}"
        what = f"`{file.path}` of `{self.repo}`"
        self._client.admit("resolvers", what, SourceError)
        xet_hash = None
        for _ in range(_REDIRECTS):
            response = self._http.request("HEAD", url, refusal=SourceError, headers=self._client.headers())
            response.drain_conn()
            response.release_conn()
            status, headers = response.status, response.headers
            if status >= 400:
                self._client.pace.hear(status, headers)
                raise http.failure(status, headers, what, SourceError)
            self._check_resolved(headers, file)
            stated = headers.get("X-Xet-Hash", "")
            xet_hash = stated if _XET_HASH.fullmatch(stated) else xet_hash
            if status < 300:
                return _Link(url, self._client.headers(), False, xet_hash)
            url = urljoin(url, headers.get("Location", ""))
            target = urlsplit(url)
            if (target.scheme, target.netloc) != (home.scheme, home.netloc):
                return _Link(url, {}, True, xet_hash)
        raise SourceError(f"{what} is redirected more than {_REDIRECTS} times")

    def _check_resolved(self, headers: Mapping[str, str], file: SourceFile) -> None:
        """What the Hub says of the file now must be what it said when the run began."""
        what = f"`{file.path}` of `{self.repo}`"
        commit = headers.get("X-Repo-Commit")
        if commit is not None and commit != self.commit:
            raise SourceError(f"{what}: expected commit {self.commit}, got {commit}")
        size = headers.get("X-Linked-Size")
        if size is not None and size != str(file.size):
            raise SourceError(f"{what}: expected {file.size} bytes, got {size}")
        etag = re.sub(r'^(W/)?"|"$', "", headers.get("X-Linked-Etag", ""))
        if etag and file.sha256 and re.fullmatch(r"[0-9a-f]{64}", etag) and etag != file.sha256:
            raise SourceError(f"{what}: expected sha256 {file.sha256}, got {etag}")

    def close(self) -> None:
        self._closed.set()
        if self._xet is not None:
            self._xet.close()
        self._http.close()
