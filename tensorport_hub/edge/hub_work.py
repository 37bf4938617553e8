"""Where a long run keeps what it has finished until everything is: a pull request, else a branch.

Readers of `main` see nothing of it. The pull request's description carries the plan's key, by which the next
run of the same plan finds it, on whatever machine; only one whose author and whose every commit is this
account's own is continued. Folder `.tensorport/` on the ref holds the journal and says which run writes now;
the last commit removes it, so a ref without it is complete. What lies in that folder on the target already is
no run's, and is believed by none. A run that begins claims the ref by a commit of its own: an earlier run
that is still alive finds the ref moved at its next checkpoint, and stops for good.

Where the account may not open pull requests, the ref is a branch `tensorport/<key>`, and publishing is one
commit of pointers on the target.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tensorport_hub.core.plan import dumps
from tensorport_hub.edge.hub_errors import Forbidden
from tensorport_hub.edge.hub_pulls import PullRequests
from tensorport_hub.edge.hub_ref import KEPT, Content, HubRef, moved, uploaded_content
from tensorport_hub.edge.pace import CHECKPOINTS_AN_HOUR
from tensorport_hub.edge.ref_journal import COMMIT_FILES
from tensorport_hub.edge.retry import retried
from tensorport_hub.errors import DestinationError
from tensorport_hub.ports import Receipt, Warned

FOLDER = ".tensorport/"
_RUN = FOLDER + "run.json"
_JOURNAL = FOLDER + "journal-{:05d}.jsonl"
_JOURNALS = re.compile(re.escape(FOLDER) + r"journal-\d{5}\.jsonl")


@dataclass(frozen=True)
class Request:
    """What is wanted of a work ref.

    Attributes:
        key: names the plan: 64 hex digits.
        title: of the pull request, and of the commit that publishes.
        me: the account.
        branch: publish there; None is `main`, by way of a pull request.
        offer: the pull request is what is wanted, so no branch will do.
        anew: everything is to be made by the runs of this work.
    """

    key: str
    title: str
    me: str
    branch: str | None
    offer: bool
    anew: bool

    @property
    def work_branch(self) -> str:
        """The branch that keeps the work where no pull request does; each target has its own."""
        if self.branch is None:
            return f"tensorport/{self.key}"
        return f"tensorport/{hashlib.sha256(f'{self.key} {self.branch}'.encode()).hexdigest()}"


class Work:
    """A ref that only runs of one plan write to, and the way from there to the target.

    Attributes:
        anew: begun by `--restart`: nothing of what stands at the target is believed.
    """

    def __init__(self, target: HubRef, ref: HubRef, request: Request, pulls: PullRequests | None) -> None:
        self.target, self.ref, self._request, self._pulls = target, ref, request, pulls
        self.anew = request.anew or self._was_anew()
        run = {"plan": request.key, "run": secrets.token_hex(8), "anew": self.anew}
        self._run = {_RUN: dumps(run)}

    def _was_anew(self) -> bool:
        there = self.ref.files.get(_RUN)
        if there is None or there == self.target.files.get(_RUN):
            return False
        return b'"anew":true' in self.ref.read(_RUN)

    @property
    def key(self) -> str:
        """The plan that it belongs to."""
        return self._request.key

    @property
    def num(self) -> int | None:
        """The pull request's number; None for a branch."""
        return int(self.ref.revision.rpartition("/")[2]) if self._pulls is not None else None

    @property
    def url(self) -> str | None:
        """The pull request's page."""
        return self._pulls.url(self.num) if self._pulls is not None and self.num is not None else None

    @property
    def is_complete(self) -> bool:
        """Whether everything but the publication is done."""
        return self.ref.commit != self.target.commit and not any(p.startswith(FOLDER) for p in self.ref.files)

    @property
    def is_slowed(self) -> bool:
        """Whether so many commits were made lately that the next checkpoint has to wait: the Hub takes about
        128 an hour of one account, from all its runs together."""
        return self.ref.client.pace.commits() >= CHECKPOINTS_AN_HOUR

    def claim(self) -> None:
        """From now on this run writes here, and no other."""
        planted = [
            path
            for path, content in self.ref.files.items()
            if path.startswith(FOLDER) and path != _RUN and self.target.files.get(path) == content
        ]
        self.ref.apply(uploaded=[], small=self._run, deleted=planted, message="Continue")

    def journals(self) -> list[bytes]:
        """The journal's files, in order; of a ref that was claimed."""
        return [self.ref.read(path) for path in self._journals]

    @property
    def _journals(self) -> list[str]:
        return sorted(filter(_JOURNALS.fullmatch, self.ref.files))

    def checkpoint(self, receipts: list[Receipt], lines: bytes, message: str) -> None:
        """Keep finished files and what the journal says of them.

        Raises:
            DestinationError: another run has claimed the ref, or the Hub refuses.
        """
        small = {**self._run, _JOURNAL.format(len(self._journals) + 1): lines}
        try:
            self.ref.apply(uploaded=receipts, small=small, deleted=[], message=message)
        except DestinationError as error:
            raise self._taken_over(error) from None

    def complete(self, receipts: Sequence[Receipt], small: Mapping[str, bytes]) -> None:
        """The last commit: the whole mirror, and nothing besides.

        Raises:
            DestinationError: as `checkpoint`.
        """
        try:
            self._lighten(receipts, small.keys())
            self.ref.replace(uploaded=receipts, small=small, message=self._request.title)
        except DestinationError as error:
            raise self._taken_over(error) from None

    def _lighten(self, receipts: Sequence[Receipt], small: Collection[str]) -> None:
        """Where files got other names, or vanished, in greater number than one commit holds: some before."""
        ref, wanted = self.ref, {receipt.path for receipt in receipts} | set(small)
        moved = [r for r in receipts if ref.files.get(r.path) != uploaded_content(r)]
        gone = [path for path in ref.files if path not in wanted | KEPT and not path.startswith(FOLDER)]
        while len(moved) + len(gone) > COMMIT_FILES // 2:
            few = moved[:COMMIT_FILES]
            dropped = gone[: COMMIT_FILES - len(few)]
            ref.apply(uploaded=few, small=self._run, deleted=dropped, message="Rename files")
            del moved[: len(few)], gone[: len(dropped)]

    def _taken_over(self, error: DestinationError) -> DestinationError:
        if not error.transient and not error.hint:
            error.hint = "another run of the same plan may have taken over"
        return error

    def publish(self) -> str:
        """Bring a complete ref to the target; the commit that readers see.

        Raises:
            DestinationError: the target moved meanwhile.
        """
        target, ref = self.target, self.ref
        now = HubRef.of(target.client, target.repo_id, target.revision, target.report)
        if now.commit != target.commit:
            raise moved(now, target.commit)
        if self._pulls is not None and self.num is not None:
            try:
                return self._merged(self._pulls.merge(self.num))
            except Forbidden:
                target.report(Warned("this token may not merge: a commit publishes instead"))
        held = _ours(ref.files)
        uploaded = [Receipt(path, size, sha256) for path, (size, sha256, _) in held.items() if sha256]
        small = {path: ref.read(path) for path, (_, sha256, _) in held.items() if not sha256}
        target.replace(uploaded=uploaded, small=small, message=self._request.title)
        self.close("published by a commit")
        return target.commit

    def _merged(self, commit: str) -> str:
        """A merge joins two trees: nothing that came between may be in what readers see.

        What the Hub itself keeps is not compared: it adds a line for each LFS file that none yet names.
        """
        now = HubRef.of(self.target.client, self.target.repo_id, self.target.revision, self.target.report)
        if now.commit == commit and _ours(now.files) != _ours(self.ref.files):
            raise moved(now, self.target.commit)
        return commit

    def offer(self) -> bool:
        """Leave the complete pull request open for somebody to merge; False where it is open already."""
        assert self._pulls is not None
        assert self.num is not None
        return self._pulls.set_status(self.num, "open")

    def discard(self, comment: str) -> None:
        """Give it up, unless another run has taken it over."""
        ref = self.ref
        if HubRef.of(ref.client, ref.repo_id, ref.revision, ref.report).commit == ref.commit:
            self.close(comment)

    def close(self, comment: str) -> None:
        """Give it up, or tidy up behind a publication."""
        ref = self.ref
        if self._pulls is not None and self.num is not None:
            self._pulls.set_status(self.num, "closed", comment)
            return
        retried(
            lambda: ref.client.call(
                lambda api: api.delete_branch(ref.repo_id, branch=ref.revision), f"branch `{ref.revision}`"
            ),
            ref.report,
        )


def _ours(files: Mapping[str, Content]) -> dict[str, Content]:
    """All but what the Hub keeps."""
    return {path: content for path, content in files.items() if path not in KEPT}
