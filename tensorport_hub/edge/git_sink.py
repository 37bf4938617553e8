"""A git remote as a sink: objects to its LFS server first, then one push that shows all of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from tensorport_hub.core.digest import blob_oid
from tensorport_hub.edge.git_lfs import GitObjects
from tensorport_hub.edge.git_remote import GitRemote, Moved, Tree, Update
from tensorport_hub.edge.git_work import GitWork, overtaken, stored
from tensorport_hub.edge.journal import Unkept
from tensorport_hub.edge.ref_journal import RefJournal
from tensorport_hub.errors import DestinationError, TensorportError
from tensorport_hub.ports import Published, Receipt, Warned, Writer

ATTRIBUTES = ".gitattributes"
_LARGEST_SMALL = 10_000_000
"""Bytes of a carried file or a manifest above which it is an LFS file too."""
_LFS = "filter=lfs diff=lfs merge=lfs -text"


class GitSink:
    """One branch of a remote.

    Args:
        base: the commit that the next one stands on, with what it holds.
        target: the branch, and where it was found.
        held: what earlier runs left here, of which the LFS server says that it has it.
        work: where finished parts are kept; None where one commit publishes everything.
    """

    def __init__(
        self,
        remote: GitRemote,
        objects: GitObjects,
        base: Tree,
        target: Update,
        work: GitWork | None,
        journal: RefJournal | Unkept,
        *,
        held: Iterable[Receipt],
        message: str,
        author: str,
    ) -> None:
        self._held = frozenset((receipt.size, receipt.sha256) for receipt in held)
        self._remote, self._objects, self._base, self._target, self._work = (
            remote,
            objects,
            base,
            target,
            work,
        )
        self._message, self._author = message, author
        self.journal = journal
        self._small: dict[str, bytes] = {}

    def open(self, path: str, size: int) -> Writer:
        return self._objects.open(path, size)

    def has(self, receipt: Receipt) -> bool:
        return (receipt.size, receipt.sha256) in self._held

    def put(self, path: str, content: bytes) -> Receipt:
        self._small[path] = content
        return Receipt(path, len(content), hashlib.sha256(content).hexdigest())

    def commit(self, receipts: Sequence[Receipt]) -> Published:
        large = [self._upload(path, data) for path, data in self._small.items() if len(data) > _LARGEST_SMALL]
        sent = [*receipts, *large]
        self._objects.confirm(sent)
        files = {**self._small, **{receipt.path: stored(receipt) for receipt in sent}}
        files[ATTRIBUTES] = attributes([receipt.path for receipt in sent])
        base, there = self._base, self._base.files
        changed = {path: data for path, data in files.items() if there.get(path) != blob_oid(data)}
        gone = there.keys() - files.keys()
        commit = base.commit
        if changed or gone or commit is None:
            commit = self._remote.commit(base, changed, gone, message=self._message, author=self._author)
        self._publish(commit)
        if isinstance(self.journal, RefJournal):
            self.journal.end()
        return Published(self._remote.name, commit, None, commit != self._target.old)

    def _upload(self, path: str, content: bytes) -> Receipt:
        writer = self.open(path, len(content))
        try:
            writer.write(memoryview(content))
            return writer.finish()
        finally:
            writer.abort()

    def _publish(self, commit: str) -> None:
        """Move the branch that readers see, and drop the work branch: together where the remote can."""
        moves = [replace(self._target, new=commit)] if commit != self._target.old else []
        if self._work is None:
            if moves:
                self._remote.push(*moves)
            return
        drop = self._work.release()
        try:
            self._remote.push(*moves, drop)
        except Moved as error:
            raise (overtaken(error) if error.ref == drop.ref else error) from None
        except DestinationError as error:
            if error.transient:
                raise
            self._remote.push(*moves)
            self._remote.report(Warned(f"published, but a work branch stays behind: {error.message}"))

    def discard(self) -> None:
        with suppress(TensorportError):
            if self._work is not None:
                self._remote.push(self._work.release())

    def close(self) -> None:
        self._remote.git.close()


def attributes(large: Sequence[str]) -> bytes:
    """`.gitattributes`: which files are LFS objects, and that the others' bytes are kept as they are."""
    lines = ["* -text", f"*.npy {_LFS}"]
    lines += [f'"/{_escaped(path)}" {_LFS}' for path in sorted(large) if not path.endswith(".npy")]
    return "".join(f"{line}\n" for line in lines).encode()


def _escaped(path: str) -> str:
    """A path as a pattern that matches nothing else, within quotes."""
    pattern = "".join(f"\\{char}" if char in "*?[\\" else char for char in path)
    return pattern.replace("\\", "\\\\").replace('"', '\\"')
