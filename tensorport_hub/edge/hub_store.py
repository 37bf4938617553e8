"""A repository's storage on the Hub: content goes in, by Xet stream or by LFS; no commit names it yet.

It is the half of the sink that needs no place of its own in the repository, so many machines may have one
each, and one of them commits what all of them sent.
"""

from __future__ import annotations

import os
import threading

from tensorport_hub.edge.http import Http
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.edge.hub_lfs import LfsSession
from tensorport_hub.edge.hub_xet import XetSession
from tensorport_hub.edge.retry import retried
from tensorport_hub.errors import DestinationError
from tensorport_hub.ports import SMALL_NBYTES, Receipt, Report, Writer

_PATIENCE = 6
"""An upload's answer may take so many times as long as a read: the other side checks what it got first."""


class HubStore:
    """Content on its way to one repository.

    Args:
        transport: how bytes get there.
        writers: files that may be open at once, besides small ones.
    """

    def __init__(self, transport: XetSession | LfsSession, http: Http, *, writers: int) -> None:
        self._transport, self._http = transport, http
        self._slots = threading.Semaphore(writers)

    @classmethod
    def of(
        cls,
        client: HubClient,
        repo_id: str,
        *,
        transfer: str,
        max_disk: int,
        writers: int,
        uploads: int,
        read_seconds: float,
        report: Report,
    ) -> HubStore:
        """A store of `repo_id`, which is there.

        Args:
            transfer: `auto`, `xet` or `lfs`.
            max_disk: bytes that LFS may stage.
            uploads: by Xet, that are under way at a time.
            read_seconds: how long a silent server is waited for when it is read.

        Raises:
            DestinationError: the transfer that was asked for is not to be had.
        """
        http = Http(read_seconds=_PATIENCE * read_seconds)
        try:
            transport = _xet(client, http, repo_id, transfer, report, uploads=uploads) or LfsSession(
                client, http, repo_id, max_disk=max_disk, report=report
            )
        except BaseException:
            http.close()
            raise
        return cls(transport, http, writers=writers)

    @property
    def streams(self) -> bool:
        """Whether bytes go out as they come, by Xet; else they are staged, by LFS."""
        return isinstance(self._transport, XetSession)

    def open(self, path: str, size: int) -> Writer:
        if size <= SMALL_NBYTES:
            return self._transport.open(path, size)
        self._slots.acquire()
        try:
            return _Slotted(self._transport.open(path, size), self._slots)
        except BaseException:
            self._slots.release()
            raise

    def close(self) -> None:
        """Give connections and sessions back; never raises."""
        self._transport.close()
        self._http.close()


def _xet(
    client: HubClient, http: Http, repo_id: str, wanted: str, report: Report, *, uploads: int
) -> XetSession | None:
    """A session of Xet, where it is wanted and there.

    Raises:
        DestinationError: nothing else is wanted, and it is not there.
    """
    disabled = os.environ.get("HF_HUB_DISABLE_XET", "").upper() in ("1", "TRUE", "YES", "ON")
    if wanted == "xet" or (wanted == "auto" and not disabled):
        session = retried(lambda: XetSession.offered(client, http, repo_id, uploads=uploads), report)
        if session is not None:
            return session
    if wanted == "xet":
        raise DestinationError(f"`{repo_id}` offers no Xet storage", hint="use `--transfer lfs`")
    return None


class _Slotted:
    """A writer that holds one of the store's places until it ends."""

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
