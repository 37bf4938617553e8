"""Find the work that an earlier run of a plan left on the Hub, or begin it.

Creation is not atomic: after a pull request was opened the list is looked at, the lowest number wins, and the
others of this account are closed. What others opened or wrote to is never continued, and named.
"""

from __future__ import annotations

import re

from tensorport_hub.edge.hub_errors import Forbidden
from tensorport_hub.edge.hub_pulls import PullRequest, PullRequests
from tensorport_hub.edge.hub_ref import HubRef, moved
from tensorport_hub.edge.hub_work import Request, Work
from tensorport_hub.edge.retry import ATTEMPTS, pause, retried
from tensorport_hub.errors import DestinationError
from tensorport_hub.ports import Warned

_KEY = re.compile(r"^Plan: `([0-9a-f]{64})`$", re.MULTILINE)


def open_work(target: HubRef, request: Request, *, restart: bool, needed: bool) -> Work | None:
    """Find what an earlier run of the plan left; where there is nothing, begin if that is `needed`.

    Args:
        restart: give up what is found.

    Raises:
        DestinationError: the target moved since the earlier run began, or nothing may be written.
    """
    if request.branch is None:
        try:
            found = _pull_request(target, request, restart=restart, needed=needed)
            if found is not None or not needed:
                return found
        except Forbidden as error:
            if request.offer:
                raise
            target.report(Warned(f"{error.message}: a branch is used instead"))
    return _branch(target, request, restart=restart, needed=needed)


def _pull_request(target: HubRef, request: Request, *, restart: bool, needed: bool) -> Work | None:
    pulls = PullRequests(target.client, target.repo_id, target.report)
    if restart:
        _close_own(pulls, request, "given up by `--restart`")
    own = _own(pulls, target, request, tell=True)
    if not own and not needed:
        return None
    own = own or _create(pulls, target, request)
    first, *others = own
    for num in others:
        pulls.set_status(num, "closed", f"#{first} is this plan's pull request")
    return Work(target, own[first], request, pulls)


def _create(pulls: PullRequests, target: HubRef, request: Request) -> dict[int, HubRef]:
    """Open one, and look: another run may have begun at the same time, and an answer may be lost."""
    for failures in range(1, ATTEMPTS + 1):
        try:
            pulls.create(request.title, _description(request))
        except DestinationError as error:
            if not error.transient or failures == ATTEMPTS:
                raise
            pause(error, failures, target.report)
        own = _own(pulls, target, request, tell=False)
        if own:
            return own
        now = HubRef.of(target.client, target.repo_id, target.revision, target.report)
        if now.commit != target.commit:
            _close_own(pulls, request, "the target moved meanwhile")
            raise moved(now, target.commit)
    raise DestinationError(f"a pull request on `{target.repo_id}` was opened, but is not listed")


def _close_own(pulls: PullRequests, request: Request, comment: str) -> None:
    for found in _carrying(pulls, request):
        if found.author == request.me:
            pulls.set_status(found.num, "closed", comment)


def _own(pulls: PullRequests, target: HubRef, request: Request, *, tell: bool) -> dict[int, HubRef]:
    """This account's open pull requests of the plan, by number; with `tell` those of others are named.

    Raises:
        DestinationError: one stands on another commit than the target's.
    """
    own: dict[int, HubRef] = {}
    for found in _carrying(pulls, request):
        ref = HubRef.of(target.client, target.repo_id, found.ref, target.report)
        mine = found.author == request.me
        authors = pulls.authors(ref.commit, target.commit) if mine else frozenset()
        if authors is None:
            raise DestinationError(
                f"pull request #{found.num} of `{target.repo_id}` holds an interrupted run, but"
                f" `{target.revision}` moved since to {target.commit}",
                hint="`--restart` closes it and begins anew",
            )
        if mine and authors <= {request.me}:
            own[found.num] = ref
        elif tell:
            who = ", ".join(f"`{name}`" for name in sorted({found.author, *authors} - {request.me}))
            target.report(Warned(f"pull request #{found.num} carries this plan, but is by {who}: ignored"))
    return own


def _carrying(pulls: PullRequests, request: Request) -> list[PullRequest]:
    """Open pull requests whose description carries the plan: this account's, and some of others."""
    found = []
    for pull in pulls.open_ones(request.me, request.title):
        carried = _KEY.search(pull.description)
        if carried is not None and carried.group(1) == request.key:
            found.append(pull)
    return found


def _description(request: Request) -> str:
    return (
        "tensorport-hub keeps here what it has finished, and merges when all is there. An interrupted run"
        f" is continued by the same command.\n\nPlan: `{request.key}`\n"
    )


def _branch(target: HubRef, request: Request, *, restart: bool, needed: bool) -> Work | None:
    client, repo_id, report = target.client, target.repo_id, target.report
    name = request.work_branch
    refs = retried(
        lambda: client.call(lambda api: api.list_repo_refs(repo_id), f"the branches of `{repo_id}`"), report
    )
    if any(branch.name == name for branch in refs.branches):
        found = Work(target, HubRef.of(client, repo_id, name, report), request, None)
        if not restart and _is_own(found, request):
            return found
        found.close("given up")
    if not needed:
        return None
    retried(
        lambda: client.call(
            lambda api: api.create_branch(repo_id, branch=name, revision=target.commit, exist_ok=True),
            f"branch `{name}` of `{repo_id}`",
        ),
        report,
    )
    made = Work(target, HubRef.of(client, repo_id, name, report), request, None)
    if not _is_own(made, request):
        raise DestinationError(f"branch `{name}` of `{repo_id}` is written by others", hint="run again")
    return made


def _is_own(work: Work, request: Request) -> bool:
    """Whether a branch that is there may be continued."""
    ref, target = work.ref, work.target
    authors = PullRequests(ref.client, ref.repo_id, ref.report).authors(ref.commit, target.commit)
    if authors is None:
        raise DestinationError(
            f"branch `{ref.revision}` of `{ref.repo_id}` holds an interrupted run, but `{target.revision}`"
            f" moved since to {target.commit}",
            hint="`--restart` deletes it and begins anew",
        )
    if not authors <= {request.me}:
        target.report(Warned(f"branch `{ref.revision}` holds commits of others: it is made anew"))
    return authors <= {request.me}
