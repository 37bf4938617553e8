"""Where a long run to a git remote keeps what it has finished: a branch `tensorport/<key>` of its own.

The branch has a history of its own, so readers of others see nothing of it: pointers of the finished files,
the journal, which run writes now, and whether all is to be made anew. A run that begins claims the branch by
a commit; an earlier run that is still alive finds it moved at its next checkpoint, or when it publishes, and
stops. Publication moves the target and deletes the branch in one push.

What the branch says is held against the server: a file of an earlier run counts only where the pointer names
what the journal names, and the LFS server has the object.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tensorport_hub.core.digest import blob_oid, pointer
from tensorport_hub.core.plan import dumps
from tensorport_hub.edge.git_lfs import GitObjects
from tensorport_hub.edge.git_remote import HEADS, GitRemote, Moved, Tree, Update
from tensorport_hub.errors import DestinationError
from tensorport_hub.ports import Receipt, Warned

_FOLDER = ".tensorport/"
_RUN = f"{_FOLDER}run.json"
_JOURNAL = _FOLDER + "journal-{:05d}.jsonl"
_JOURNALS = re.compile(re.escape(_FOLDER) + r"journal-\d{5}\.jsonl")


def work_ref(key: str, branch: str | None) -> str:
    """The work branch of the plan `key`; each target has its own."""
    name = key if branch is None else hashlib.sha256(f"{key} {branch}".encode()).hexdigest()
    return f"{HEADS}tensorport/{name}"


class GitWork:
    """The work branch of the plan `key`.

    Attributes:
        key: names the plan.
        anew: begun by `--restart`: nothing of what stands at the target is believed.
        is_slowed: a git host counts no commits: no checkpoint waits.
    """

    is_slowed = False

    def __init__(self, remote: GitRemote, objects: GitObjects, key: str, *, ref: str, author: str) -> None:
        self.key, self.anew = key, False
        self._remote, self._objects, self._author, self._ref = remote, objects, author, ref
        self._tree = Tree()

    def claim(self, *, restart: bool) -> None:
        """From now on this run writes here, and no other; `restart` gives up what is there.

        Raises:
            DestinationError: the remote refuses.
        """
        for last in (False, False, True):
            said = self._look()
            try:
                if self._tree.commit is not None and (restart or said is None):
                    if not restart:
                        self._warn()
                    self._remote.push(self.release())
                    self._tree = Tree()
                self.anew = restart or _is_anew(said)
                run = {"plan": self.key, "run": secrets.token_hex(8), "anew": self.anew}
                self._move({_RUN: dumps(run)}, "Begin" if self._tree.commit is None else "Continue")
                return
            except Moved:  # another run begins at this very moment
                if last:
                    raise

    def is_begun_anew(self) -> bool:
        """Whether an earlier run that was to make everything itself was interrupted."""
        return _is_anew(self._look())

    def drop(self) -> None:
        """Give up what an earlier run left.

        Raises:
            DestinationError: it is written to at this very moment, or the remote refuses.
        """
        self._look()
        if self._tree.commit is not None:
            self._remote.push(self.release())

    def _look(self) -> Mapping[str, Any] | None:
        """What the branch holds now, and says of itself; None where it is not there, or not this plan's."""
        found, _ = self._remote.refs()
        self._tree = self._remote.tree(self._ref) if self._ref in found else Tree()
        try:
            said = json.loads(self._remote.read(self._tree, [_RUN])[0]) if _RUN in self._tree.files else None
        except (ValueError, RecursionError):
            return None
        return said if isinstance(said, dict) and said.get("plan") == self.key else None

    def _warn(self) -> None:
        name = self._ref.removeprefix(HEADS)
        self._remote.report(Warned(f"branch `{name}` is not this plan's: it is made anew"))

    def journals(self) -> list[bytes]:
        """The journal's files, in order."""
        return self._remote.read(self._tree, sorted(filter(_JOURNALS.fullmatch, self._tree.files)))

    def named(self, receipts: Iterable[Receipt]) -> list[Receipt]:
        """Of what a journal says, what the branch says too."""
        return [r for r in receipts if self._tree.files.get(r.path) == blob_oid(stored(r))]

    def checkpoint(self, receipts: Sequence[Receipt], lines: bytes, message: str) -> None:
        """Keep finished files and what the journal says of them.

        Raises:
            DestinationError: another run has claimed the branch, the remote refuses, or has not got a file.
        """
        self._objects.confirm(receipts)
        count = sum(1 for path in self._tree.files if _JOURNALS.fullmatch(path))
        small = {_JOURNAL.format(count + 1): lines}
        try:
            self._move({**{r.path: stored(r) for r in receipts}, **small}, message)
        except Moved as error:
            raise overtaken(error) from None

    def _move(self, changed: Mapping[str, bytes], message: str) -> None:
        commit = self._remote.commit(self._tree, changed, message=message, author=self._author)
        self._remote.push(Update(self._ref, self._tree.commit, commit))
        oids = {path: blob_oid(content) for path, content in changed.items()}
        self._tree = Tree(commit, {**self._tree.files, **oids})

    def release(self) -> Update:
        """What gives the branch up."""
        return Update(self._ref, self._tree.commit, None)


def _is_anew(said: Mapping[str, Any] | None) -> bool:
    return said is not None and said.get("anew") is True


def stored(receipt: Receipt) -> bytes:
    """What git itself holds of an LFS file: its pointer; of an empty one nothing."""
    return pointer(receipt.sha256, receipt.size) if receipt.size else b""


def overtaken(error: DestinationError) -> DestinationError:
    """The work branch is another run's now."""
    return DestinationError(error.message, hint="another run of the same plan has taken over; this one stops")
