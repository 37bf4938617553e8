"""A repository on the Hub as a sink: content first, then the commit that shows all of it.

Content goes to the Hub's storage (`hub_store`), and is there before a commit names it. A small mirror is
published by one commit on its branch; a large one, or one that is to be a pull request, by way of a work ref
(`hub_work`), where a later run finds what this one has finished.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from tensorport_hub.core import manifest
from tensorport_hub.core.digest import SourceFile
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.edge.hub_ref import HubRef, uploaded_content
from tensorport_hub.edge.hub_store import HubStore
from tensorport_hub.edge.hub_work import Work
from tensorport_hub.edge.journal import Unkept
from tensorport_hub.edge.ref_journal import RefJournal
from tensorport_hub.edge.retry import retried
from tensorport_hub.errors import TensorportError
from tensorport_hub.ports import Published, Receipt, Report, Writer


class HubSink:
    """One mirror repository.

    Args:
        target: the branch that readers see.
        work: where finished files are kept; None where one commit publishes everything.
        store: where content goes; closed with the sink.
        offer: leave the pull request open.
        begun: the target is a branch that begins with this run.
    """

    def __init__(
        self,
        client: HubClient,
        target: HubRef,
        work: Work | None,
        *,
        store: HubStore,
        journal: RefJournal | Unkept,
        message: str,
        offer: bool,
        begun: bool,
        report: Report,
    ) -> None:
        self._client, self._target, self._work = client, target, work
        self._store, self._message, self._report = store, message, report
        self._offer, self._begun = offer, begun
        self.journal = journal
        self._held = {*target.files.values(), *(work.ref.files.values() if work is not None else ())}
        self._small: dict[str, bytes] = {}

    def open(self, path: str, size: int) -> Writer:
        return self._store.open(path, size)

    def has(self, receipt: Receipt) -> bool:
        """Whether a checkpoint or the mirror that stands has it, by the Hub's own size and sha256."""
        return uploaded_content(receipt) in self._held

    def put(self, path: str, content: bytes) -> Receipt:
        self._small[path] = content
        return Receipt(path, len(content), hashlib.sha256(content).hexdigest())

    def commit(self, receipts: Sequence[Receipt]) -> Published:
        uploaded = [*receipts, *self._upload_small_lfs()]
        target = self._target
        if self._work is None:
            changed = target.replace(uploaded=uploaded, small=self._small, message=self._message)
            return Published(target.repo_id, target.commit, target.page, changed or self._begun)
        if isinstance(self.journal, RefJournal):
            self.journal.flush()
        self._work.complete(uploaded, self._small)
        if isinstance(self.journal, RefJournal):
            self.journal.end()
        return self.publish()

    def left_complete(self) -> tuple[Sequence[SourceFile], bytes] | None:
        """What an interrupted run had completed but not published: its files, and its manifest."""
        if self._work is None or not self._work.is_complete:
            return None
        return self._work.ref.listing, self._work.ref.read(manifest.PATH)

    def publish(self) -> Published:
        """Show what the work ref holds complete: merged, or offered as an open pull request."""
        assert self._work is not None
        work, repo_id = self._work, self._target.repo_id
        if self._offer:
            changed = work.offer()
            return Published(repo_id, work.ref.commit, work.ref.page, changed, work.url)
        commit = work.publish()
        return Published(repo_id, commit, self._client.page(repo_id, commit), changed=True)

    def _upload_small_lfs(self) -> list[Receipt]:
        """Small files that the Hub wants as LFS go the way of the weights."""
        files = sorted(self._small.items())
        large = retried(lambda: self._client.lfs_paths(self._target.repo_id, files), self._report)
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

    def discard(self) -> None:
        with suppress(TensorportError):
            if self._work is not None:
                self._work.discard("this plan can't be carried out")

    def close(self) -> None:
        self._target.closed.set()
        if self._work is not None:
            self._work.ref.closed.set()
        self._store.close()
