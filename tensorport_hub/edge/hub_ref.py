"""A branch or a pull request's ref as this run knows it, and the commits that this run makes there.

Every commit names the one that it stands on, so a ref that somebody else moved is never overwritten. A commit
whose answer was lost is looked up before it is sent again: it may have succeeded.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence

from tensorport_hub.core.digest import SourceFile, blob_oid
from tensorport_hub.edge.hub_answers import RepoState
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.edge.retry import ATTEMPTS, pause, retried
from tensorport_hub.errors import DestinationError, TensorportError
from tensorport_hub.ports import Receipt, Report

KEPT = frozenset({".gitattributes"})
"""What the Hub adds to a repository by itself."""

Content = tuple[int, str | None, str | None]
"""Size, sha256 of an LFS file, git blob id of a regular one."""


def uploaded_content(receipt: Receipt) -> Content:
    """What a listing says of an LFS file."""
    return receipt.size, receipt.sha256, None


def small_content(data: bytes) -> Content:
    """What a listing says of a regular file."""
    return len(data), None, blob_oid(data)


class HubRef:
    """One ref of one repository.

    Attributes:
        commit: where it is.
        files: what that commit holds.
        closed: set it, and nothing is waited for any more.
    """

    def __init__(self, client: HubClient, state: RepoState, revision: str, report: Report) -> None:
        self.client, self.repo_id, self.revision, self.report = client, state.repo_id, revision, report
        self.closed = threading.Event()
        self._lost: DestinationError | None = None
        self._take(state)

    @classmethod
    def of(cls, client: HubClient, repo_id: str, revision: str, report: Report) -> HubRef:
        """The ref as the Hub tells it now."""
        state = retried(lambda: client.repo_state(repo_id, revision, DestinationError), report)
        return cls(client, state, revision, report)

    def _take(self, state: RepoState) -> None:
        self.commit = state.commit
        self.files: dict[str, Content] = {f.path: (f.size, f.sha256, f.git_oid) for f in state.files}

    @property
    def page(self) -> str:
        """The page of its commit."""
        return self.client.page(self.repo_id, self.commit)

    def apply(
        self,
        *,
        uploaded: Sequence[Receipt],
        small: Mapping[str, bytes],
        deleted: Collection[str],
        message: str,
    ) -> bool:
        """Hold these files and not those, by one commit; False where it is so already.

        Args:
            uploaded: content that the Hub's storage holds.
            small: files that travel with the commit.
            deleted: paths that go.

        Raises:
            DestinationError: the Hub refuses, or the ref moved meanwhile; nothing has changed. A ref that was
                found moved once is somebody else's: no later call commits.
        """
        wanted = {r.path: uploaded_content(r) for r in uploaded}
        wanted |= {path: small_content(data) for path, data in small.items()}
        deleted = frozenset(deleted)
        for failures in range(1, ATTEMPTS + 1):
            if self._lost is not None:
                raise DestinationError(self._lost.message, hint=self._lost.hint)
            changed = {path for path, content in wanted.items() if self.files.get(path) != content}
            gone = sorted(path for path in deleted if path in self.files)
            if not changed and not gone:
                return failures > 1
            try:
                self.commit = self.client.commit(
                    self.repo_id,
                    self.revision,
                    uploaded=[r for r in uploaded if r.path in changed],
                    small=[(path, data) for path, data in sorted(small.items()) if path in changed],
                    deleted=gone,
                    parent=self.commit,
                    message=message,
                )
            except TensorportError as error:
                if not (error.transient or failures > 1) or failures == ATTEMPTS:
                    raise
                if error.transient:
                    pause(error, failures, self.report, self.closed)
                if not self._has_committed(wanted, gone) and not error.transient:
                    raise
                continue
            self.files |= wanted
            for path in gone:
                del self.files[path]
            return True
        raise AssertionError("unreachable")

    def replace(self, *, uploaded: Sequence[Receipt], small: Mapping[str, bytes], message: str) -> bool:
        """Hold these files and no others, by one commit; as `apply`."""
        wanted = {receipt.path for receipt in uploaded} | small.keys() | KEPT
        gone = self.files.keys() - wanted
        return self.apply(uploaded=uploaded, small=small, deleted=gone, message=message)

    @property
    def listing(self) -> list[SourceFile]:
        """What it holds, as a source would list it."""
        return [SourceFile(path, *content) for path, content in sorted(self.files.items())]

    def read(self, path: str) -> bytes:
        """A small file that it holds."""
        return retried(lambda: self.client.read_file(self.repo_id, path, self.commit), self.report)

    def _has_committed(self, wanted: Mapping[str, Content], gone: Collection[str]) -> bool:
        """Whether a commit whose answer was lost, now or an attempt before, was made.

        Raises:
            DestinationError: somebody else's was.
        """
        state = retried(
            lambda: self.client.repo_state(self.repo_id, self.revision, DestinationError),
            self.report,
            self.closed,
        )
        if state.commit == self.commit:
            return False
        there = HubRef(self.client, state, self.revision, self.report)
        ours = all(there.files.get(path) == content for path, content in wanted.items())
        if not ours or not there.files.keys().isdisjoint(gone):
            self._lost = moved(there, self.commit)
            raise self._lost
        self._take(state)
        return True


def moved(ref: HubRef, expected: str) -> DestinationError:
    """Somebody else wrote to a ref."""
    return DestinationError(
        f"`{ref.revision}` of `{ref.repo_id}` moved meanwhile: expected commit {expected}, got {ref.commit}",
        hint="somebody else writes there; run again",
    )
