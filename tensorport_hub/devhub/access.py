"""Who may see, read and change what: the refusals that come before every answer.

The order is the Hub's: a repository that the caller may not see does not exist (401 without a token,
404 with one); then the revision; then the gate, for file bytes only; then the right to write. A
read token changes nothing. A pull request may be opened by whoever may read; its ref may be pushed
to by its author and by those who may write to the repository.
"""

from __future__ import annotations

from tensorport_hub.devhub.accounts import Account
from tensorport_hub.devhub.discussions import Discussion
from tensorport_hub.devhub.history import Commit
from tensorport_hub.devhub.hub import Call
from tensorport_hub.devhub.refusals import (
    Refusal,
    forbidden,
    gated,
    repo_not_found,
    revision_not_found,
    unauthorized,
)
from tensorport_hub.devhub.repos import Repo


def sees(account: Account | None, repo: Repo) -> bool:
    """Whether an account may know of a repository."""
    return not repo.private or (account is not None and account.is_in(repo.namespace))


def repo_of(call: Call) -> Repo:
    """The repository of the URL, if the caller may see it; a former name leads to the new one."""
    repo = call.hub.repos.find(call.kind, call.repo_name)
    if repo is not None and sees(call.account, repo):
        return repo
    moved = call.hub.repos.by_former_name(call.kind, call.repo_name) if repo is None else None
    if moved is not None and sees(call.account, moved):
        target = call.target.replace(f"/{call.repo_name}", f"/{moved.name}", 1)
        raise Refusal(307, f"moved to `{moved.name}`", headers={"Location": target})
    raise repo_not_found(anonymous=call.anonymous)


def revision_of(call: Call, repo: Repo) -> Commit:
    """The commit that the URL's revision names, on `main` without one; a refusal where there is none."""
    revision = call.params.get("rev", "main")
    commit = call.hub.history.resolve(repo, revision)
    if commit is None:
        raise revision_not_found(revision)
    return commit


def pass_gate(call: Call, repo: Repo) -> None:
    """Refuse the bytes of a gated repository to those who were not let in."""
    if repo.gated is None:
        return
    account = call.account
    if account is None:
        raise gated(f"{repo.kind} {repo.name}", anonymous=True)
    if not account.is_in(repo.namespace) and repo.name not in account.gated_reads:
        raise gated(f"{repo.kind} {repo.name}", anonymous=False)


def known(call: Call) -> Account:
    """Who is asking; a refusal for strangers."""
    if call.account is None:
        raise unauthorized()
    return call.account


def with_write_token(call: Call) -> Account:
    """Who is asking, if their token may write at all."""
    account = known(call)
    if not account.may_write:
        raise forbidden("Forbidden: you must use a write token to upload to a repository.")
    return account


def writer(call: Call, namespace: str) -> Account:
    """The caller, who must be allowed to write to `namespace`."""
    account = with_write_token(call)
    if not account.writes_to(namespace):
        raise forbidden(f"Forbidden: you don't have write access to `{namespace}`.")
    return account


def pull_request_of(call: Call, repo: Repo, revision: str) -> Discussion | None:
    """The pull request that a revision like `refs/pr/3` belongs to."""
    num = revision.removeprefix("refs/pr/")
    if num == revision or not num.isdecimal() or len(num) > 9:
        return None
    return call.hub.discussions.find(repo, int(num))


def pusher(call: Call, repo: Repo, revision: str | None, *, create_pr: bool) -> Account:
    """The caller, who must be allowed to push to `revision`, or to open a pull request."""
    if create_pr or revision is None:
        return with_write_token(call)
    pull_request = pull_request_of(call, repo, revision)
    if pull_request is None:
        return writer(call, repo.namespace)
    if not pull_request.is_open:
        raise forbidden(f"pull request {pull_request.num} is {pull_request.status}")
    account = with_write_token(call)
    return account if account.name == pull_request.author else writer(call, repo.namespace)
