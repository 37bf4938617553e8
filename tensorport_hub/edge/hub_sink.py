"""A repository on the Hub as a sink: content first, then one commit that names all of it.

Content goes by Xet stream where the Hub offers it, else by LFS; either way it is in the Hub's storage before
the commit, and invisible until then. The commit sends its parent, so a repository that moved meanwhile is
not overwritten; one whose answer is lost is looked up before it is sent again.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from functools import partial

from tensorport_hub.core import manifest
from tensorport_hub.core.digest import blob_oid
from tensorport_hub.edge.http import Http
from tensorport_hub.edge.hub_client import HubClient, RepoState
from tensorport_hub.edge.hub_lfs import LfsSession
from tensorport_hub.edge.hub_xet import XetSession
from tensorport_hub.edge.retry import ATTEMPTS, pause, retried
from tensorport_hub.errors import DestinationError, TensorportError
from tensorport_hub.ports import Published, Receipt, Report, Writer

_KEPT = frozenset({".gitattributes"})

_Content = tuple[int, str | None, str | None]
"""Size, sha256 of an LFS file, git blob id of a regular one."""


class HubSink:
    """One mirror repository."""

    def __init__(
        self,
        client: HubClient,
        http: Http,
        state: RepoState,
        *,
        transport: XetSession | LfsSession,
        writers: int,
        message: str,
        report: Report,
    ) -> None:
        self._client, self._http, self._state = client, http, state
        self._transport, self._message, self._report = transport, message, report
        self._slots = threading.Semaphore(writers)
        self._small: dict[str, bytes] = {}

    @property
    def streams(self) -> bool:
        """Whether bytes go out as they come, by Xet; else they are staged, by LFS."""
        return isinstance(self._transport, XetSession)

    def open(self, path: str, size: int) -> Writer:
        self._slots.acquire()
        try:
            return _Slotted(self._transport.open(path, size), self._slots)
        except BaseException:
            self._slots.release()
            raise

    def put(self, path: str, content: bytes) -> Receipt:
        self._small[path] = content
        return Receipt(path, len(content), hashlib.sha256(content).hexdigest())

    def commit(self, receipts: Sequence[Receipt]) -> Published:
        repo_id = self._state.repo_id
        uploaded = [*receipts, *self._upload_small_lfs()]
        small = sorted(self._small.items())
        wanted: dict[str, _Content] = {r.path: (r.size, r.sha256, None) for r in uploaded}
        wanted |= {path: (len(content), None, blob_oid(content)) for path, content in small}
        for failures in range(1, ATTEMPTS + 1):
            there = {f.path: (f.size, f.sha256, f.git_oid) for f in self._state.files}
            changed = {path for path, what in wanted.items() if there.get(path) != what}
            vanished = sorted(there.keys() - wanted.keys() - _KEPT)
            if not changed and not vanished:
                page = f"{self._client.endpoint}/{repo_id}/commit/{self._state.commit}"
                return Published(f"{repo_id}", self._state.commit, page, changed=failures > 1)
            try:
                oid, page = self._client.commit(
                    repo_id,
                    uploaded=[r for r in uploaded if r.path in changed],
                    small=[(path, content) for path, content in small if path in changed],
                    deleted=vanished,
                    parent=self._state.commit,
                    message=self._message,
                )
                return Published(repo_id, oid, page, changed=True)
            except TensorportError as error:
                if not error.transient or failures == ATTEMPTS:
                    raise
                pause(error, failures, self._report)
                self._look_again(wanted)
        raise AssertionError("unreachable")

    def _look_again(self, wanted: Mapping[str, _Content]) -> None:
        """After a commit whose outcome is unknown: it may have succeeded, or somebody else came first."""
        state = retried(
            lambda: self._client.repo_state(self._state.repo_id, None, DestinationError), self._report
        )
        there = {f.path: (f.size, f.sha256, f.git_oid) for f in state.files}
        if state.commit != self._state.commit and any(there.get(p) != w for p, w in wanted.items()):
            raise DestinationError(
                f"`{state.repo_id}` moved meanwhile: expected commit {self._state.commit},"
                f" got {state.commit}",
                hint="somebody else writes there; run again",
            )
        self._state = state

    def _upload_small_lfs(self) -> list[Receipt]:
        """Small files that the Hub wants as LFS go the way of the weights."""
        files = sorted(self._small.items())
        large = retried(lambda: self._client.lfs_paths(self._state.repo_id, files), self._report)
        receipts = []
        for path, content in files:
            if path in large and content:
                del self._small[path]
                receipts.append(retried(partial(self._upload, path, content), self._report))
        return receipts

    def _upload(self, path: str, content: bytes) -> Receipt:
        writer = self.open(path, len(content))
        try:
            writer.write(memoryview(content))
            return writer.finish()
        finally:
            writer.abort()

    def close(self) -> None:
        self._transport.close()
        self._http.close()


class _Slotted:
    """A writer that holds one of the sink's places until it ends."""

    def __init__(self, writer: Writer, slots: threading.Semaphore) -> None:
        self._writer, self._slots = writer, slots
        self._held = True

    def write(self, block: memoryview) -> None:
        self._writer.write(block)

    def finish(self) -> Receipt:
        receipt = self._writer.finish()
        self._free()
        return receipt

    def abort(self) -> None:
        self._writer.abort()
        self._free()

    def _free(self) -> None:
        if self._held:
            self._held = False
            self._slots.release()


def check_destination(client: HubClient, repo_id: str, report: Report) -> RepoState | None:
    """The destination's state, None where it does not exist yet; nothing is created.

    Raises:
        DestinationError: it holds something that we did not make.
    """
    state = retried(lambda: client.find_repo(repo_id), report)
    if state is None:
        return None
    paths = {file.path: file for file in state.files}
    if paths.keys() <= _KEPT:
        return state
    if manifest.PATH in paths and manifest.is_mirror(_download(client, state, manifest.PATH)):
        return state
    raise DestinationError(
        f"`{repo_id}` exists and is no mirror of ours: it holds {len(paths)} files",
        hint="choose another name, or delete that repository first",
    )


def _download(client: HubClient, state: RepoState, path: str) -> bytes:
    """A small file of the destination, through the Hub's own client."""
    return client.read_file(state.repo_id, path, state.commit)


def open_hub_sink(
    client: HubClient,
    repo_id: str,
    *,
    private: bool,
    transfer: str,
    writers: int,
    max_disk: int,
    message: str,
    read_seconds: float,
    report: Report,
) -> HubSink:
    """Create the repository where it is missing, and choose how bytes get there.

    Raises:
        DestinationError: the Hub refuses, or `transfer` is not to be had.
    """
    if check_destination(client, repo_id, report) is None:
        retried(lambda: client.create_repo(repo_id, private=private), report)
    state = retried(lambda: client.repo_state(repo_id, None, DestinationError), report)
    http = Http(read_seconds=read_seconds)
    disabled = os.environ.get("HF_HUB_DISABLE_XET", "").upper() in ("1", "TRUE", "YES", "ON")
    transport: XetSession | LfsSession | None = None
    if transfer == "xet" or (transfer == "auto" and not disabled):
        transport = retried(lambda: XetSession.offered(client, http, repo_id), report)
        if transport is None and transfer == "xet":
            raise DestinationError(f"`{repo_id}` offers no Xet storage", hint="use `--transfer lfs`")
    if transport is None:
        transport = LfsSession(client, http, repo_id, max_disk=max_disk, report=report)
    return HubSink(client, http, state, transport=transport, writers=writers, message=message, report=report)
