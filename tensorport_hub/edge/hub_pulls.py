"""Pull requests of one repository: those that are open, and what a run does with its own.

Facts of the Hub: a pull request that is opened without a commit is a draft until its status is set to open;
only open ones can be merged; its number counts up and is never used twice; whoever may read may open one, and
its author or who may write to the repository may push to its ref.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.edge.retry import ATTEMPTS, pause, retried
from tensorport_hub.errors import DestinationError, TensorportError
from tensorport_hub.ports import Report

_OTHERS = 10
"""Pull requests of other accounts that are looked at."""


@dataclass(frozen=True)
class PullRequest:
    """One pull request as it was looked up."""

    num: int
    author: str
    status: str
    description: str
    merge_commit: str | None

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.num}"


class PullRequests:
    """The pull requests of one repository."""

    def __init__(self, client: HubClient, repo_id: str, report: Report) -> None:
        self._client, self._repo_id, self._report = client, repo_id, report

    def url(self, num: int) -> str:
        return f"{self._client.endpoint}/{self._repo_id}/discussions/{num}"

    def open_ones(self, me: str, title: str) -> list[PullRequest]:
        """Those that are neither merged nor closed, the lowest number first: all of the account `me`.

        Of others' only a few, with that title before: each costs a request, and anybody may open any number.
        """
        listed = retried(
            lambda: self._client.call(
                lambda api: list(
                    api.get_repo_discussions(
                        self._repo_id, discussion_type="pull_request", discussion_status="open"
                    )
                ),
                f"the pull requests of `{self._repo_id}`",
            ),
            self._report,
        )
        own = [found.num for found in listed if found.author == me]
        others = sorted((f.title != title, f.num) for f in listed if f.author != me)
        return [self.look_up(num) for num in sorted([*own, *(num for _, num in others[:_OTHERS])])]

    def look_up(self, num: int) -> PullRequest:
        found = retried(
            lambda: self._client.call(
                lambda api: api.get_discussion_details(self._repo_id, num), self._name(num)
            ),
            self._report,
        )
        first: Any = found.events[0] if found.events else None
        return PullRequest(
            found.num, found.author, found.status, getattr(first, "content", ""), found.merge_commit_oid
        )

    def create(self, title: str, description: str) -> int:
        """Open one. Not tried again: whether it was opened is for a look at the list to say."""
        made = self._client.call(
            lambda api: api.create_pull_request(self._repo_id, title, description=description),
            f"a pull request on `{self._repo_id}`",
        )
        return int(made.num)

    def set_status(self, num: int, status: Any, comment: str = "") -> bool:
        """Open a draft, or close one; False where it is so already."""
        for failures in range(1, ATTEMPTS + 1):
            if self.look_up(num).status == status:
                return failures > 1
            try:
                self._client.call(
                    lambda api: api.change_discussion_status(self._repo_id, num, status, comment=comment),
                    self._name(num),
                )
                return True
            except TensorportError as error:
                if not error.transient or failures == ATTEMPTS:
                    raise
                pause(error, failures, self._report)
        raise AssertionError("unreachable")

    def merge(self, num: int) -> str:
        """Merge one; the commit that it made. An answer that was lost is looked up.

        Raises:
            DestinationError: it was closed, or can't be merged.
        """
        for failures in range(1, ATTEMPTS + 1):
            found = self.look_up(num)
            if found.merge_commit:
                return found.merge_commit
            if found.status == "closed":
                raise DestinationError(
                    f"{self._name(num)} was closed meanwhile",
                    hint="another run may have been given `--restart`",
                )
            try:
                if found.status == "draft":
                    self.set_status(num, "open")
                self._client.call(lambda api: api.merge_pull_request(self._repo_id, num), self._name(num))
                self._client.pace.committed()
            except TensorportError as error:
                if not error.transient or failures == ATTEMPTS:
                    raise
                pause(error, failures, self._report)
        found = self.look_up(num)
        if found.merge_commit is None:
            raise DestinationError(f"{self._name(num)} was not merged: it is {found.status}")
        return found.merge_commit

    def authors(self, commit: str, since: str) -> frozenset[str] | None:
        """Who wrote a commit and those before it, back to `since`; None where `since` is not among them.

        A commit whose author the Hub doesn't know counts as `?`'s, which is nobody's name.
        """
        log = retried(
            lambda: self._client.call(
                lambda api: api.list_repo_commits(self._repo_id, revision=commit),
                f"commit `{commit}` of `{self._repo_id}`",
            ),
            self._report,
        )
        found: set[str] = set()
        for entry in log:
            if entry.commit_id == since:
                return frozenset(found)
            authors = entry.authors if isinstance(entry.authors, list) else []
            found.update(name if isinstance(name, str) else "?" for name in authors or ["?"])
        return None

    def _name(self, num: int) -> str:
        return f"pull request #{num} of `{self._repo_id}`"
