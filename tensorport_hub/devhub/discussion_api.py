"""Discussions and pull requests over the API.

A merge makes one commit on the target branch out of everything the pull request changed, titled
`<title> (#<num>)`, as the Hub's does; a file that both sides changed since they parted is a conflict.
Only those who may write to the repository merge; status and title may be changed by the author too.

Source: `create_discussion`, `get_discussion_details`, `get_repo_discussions`, `merge_pull_request`
and their like in huggingface_hub's `hf_api.py`.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from tensorport_hub.devhub import access, commits
from tensorport_hub.devhub.accounts import Account, now
from tensorport_hub.devhub.discussions import Discussion, Event
from tensorport_hub.devhub.discussions import comment as comment_data
from tensorport_hub.devhub.history import Commit
from tensorport_hub.devhub.hub import Call, Hub
from tensorport_hub.devhub.refusals import Refusal, bad_request
from tensorport_hub.devhub.repo_api import head_of
from tensorport_hub.devhub.repos import Repo
from tensorport_hub.devhub.trees import Entry

A_PAGE = 50


def _of(call: Call) -> tuple[Repo, Discussion]:
    repo = access.repo_of(call)
    found = call.hub.discussions.find(repo, int(call.params["num"]))
    if found is None:
        raise Refusal(404, "Discussion not found")
    return repo, found


def _summary(call: Call, repo: Repo, row: Discussion) -> dict[str, Any]:
    return {
        "num": row.num,
        "title": row.title,
        "status": row.status,
        "author": {"name": row.author, "type": "user"},
        "createdAt": row.created_at,
        "isPullRequest": row.is_pull_request,
        "repo": {"name": repo.name, "type": repo.kind},
        "repoOwner": {"name": repo.namespace},
        "pinned": False,
    }


def listing(call: Call) -> web.Response:
    """A page, newest first; drafts count as open, merged ones as closed."""
    repo = access.repo_of(call)
    kind, status = call.query.get("type", "all"), call.query.get("status", "all")
    rows = [
        row
        for row in call.hub.discussions.of(repo)
        if kind in ("all", "pull_request" if row.is_pull_request else "discussion")
        and status in ("all", "open" if row.is_open else "closed")
        and call.query.get("author", row.author) == row.author
    ]
    start = call.number("p", 0) * A_PAGE
    told = [_summary(call, repo, row) for row in rows[start : start + A_PAGE]]
    return web.json_response({"discussions": told, "count": len(rows), "start": start})


def create(call: Call) -> web.Response:
    repo = access.repo_of(call)
    account = access.with_write_token(call)
    said = call.json()
    title, description = str(said.get("title", "")).strip(), str(said.get("description", ""))
    if len(title) < 3:
        raise bad_request("The title must have at least 3 characters")
    hub = call.hub
    with hub.db.write():
        head = head_of(hub, repo)
        pull_request = bool(said.get("pullRequest"))
        opened = hub.discussions.open(
            repo,
            title=title,
            description=description,
            author=account.name,
            status="draft" if pull_request else "open",
            base=("refs/heads/main", head.id) if pull_request else None,
        )
        if pull_request:
            hub.history.point(repo, opened.ref, head)
    url = f"{hub.endpoint}/{repo.prefix}{repo.name}/discussions/{opened.num}"
    return web.json_response({"num": opened.num, "pullRequest": pull_request, "url": url}, status=201)


def details(call: Call) -> web.Response:
    repo, row = _of(call)
    hub = call.hub
    told = _summary(call, repo, row)
    told["events"] = [event.told() for event in hub.discussions.events(repo, row.num)]
    if row.is_pull_request:
        told["changes"] = {"base": row.base_ref}
        if row.merge_commit is not None:
            told["changes"]["mergeCommitId"] = row.merge_commit
        told["filesWithConflicts"] = _conflicts(hub, repo, row) if row.is_open else []
        if call.flag("diff"):
            told["diff"] = _diff(hub, repo, row)
    return web.json_response(told)


def _sides(hub: Hub, repo: Repo, row: Discussion) -> tuple[Commit, dict[str, Entry | None], set[str]]:
    """(the pull request's tip, its changes, the files that the target changed meanwhile)."""
    assert row.base_commit is not None
    assert row.base_ref is not None
    tip, target = hub.history.ref(repo, row.ref), hub.history.ref(repo, row.base_ref)
    if tip is None or target is None:
        raise bad_request(f"the branch of pull request {row.num} is gone")
    start = hub.history.snapshot(hub.history.by_id(row.base_commit))
    theirs = start.differences(hub.history.snapshot(tip))
    ours = hub.history.snapshot(target)
    moved = {
        path
        for path, entry in start.differences(ours).items()
        if path in theirs and not _same(entry, theirs[path])
    }
    return tip, theirs, moved


def _same(one: Entry | None, other: Entry | None) -> bool:
    if one is None or other is None:
        return one is other
    return (one.oid, one.lfs) == (other.oid, other.lfs)


def _conflicts(hub: Hub, repo: Repo, row: Discussion) -> list[str]:
    return sorted(_sides(hub, repo, row)[2])


def _diff(hub: Hub, repo: Repo, row: Discussion) -> str:
    """Which files the pull request touches, in the form of a git diff without hunks."""
    lines = []
    for path, entry in sorted(_sides(hub, repo, row)[1].items()):
        lines.append(f"diff --git a/{path} b/{path}")
        lines.append("deleted file mode 100644" if entry is None else f"index {entry.oid}")
    return "\n".join(lines)


def _author_or_writer(call: Call, repo: Repo, row: Discussion) -> Account:
    account = access.with_write_token(call)
    return account if account.name == row.author else access.writer(call, repo.namespace)


def comment(call: Call) -> web.Response:
    repo, row = _of(call)
    account = access.with_write_token(call)
    text = str(call.json().get("comment", ""))
    return web.json_response({"newMessage": _say(call.hub, repo, row, account, text).told()})


def _say(hub: Hub, repo: Repo, row: Discussion, account: Account, text: str) -> Event:
    if not text.strip():
        raise bad_request("A comment must not be empty")
    data = comment_data(text, account.name, now())
    return hub.discussions.tell(repo, row.num, "comment", account.name, data)


def _own_comment(call: Call) -> Event:
    repo, row = _of(call)
    account = access.with_write_token(call)
    for event in call.hub.discussions.events(repo, row.num):
        if event.id == call.params["event"] and event.kind == "comment":
            if event.author != account.name:
                access.writer(call, repo.namespace)
            return event
    raise Refusal(404, "Comment not found")


def edit_comment(call: Call) -> web.Response:
    event = _own_comment(call)
    fresh = comment_data(str(call.json().get("content", "")), event.author, now())
    history = [*event.data["history"], fresh["latest"]]
    data = {**event.data, "edited": True, "latest": fresh["latest"], "history": history}
    data["numEdits"] = len(history) - 1
    return web.json_response({"updatedComment": call.hub.discussions.rewrite(event, data).told()})


def hide_comment(call: Call) -> web.Response:
    event = _own_comment(call)
    empty = comment_data("This comment has been hidden", event.author, now())
    data = {**empty, "hidden": True}
    return web.json_response({"updatedComment": call.hub.discussions.rewrite(event, data).told()})


def rename(call: Call) -> web.Response:
    repo, row = _of(call)
    account = _author_or_writer(call, repo, row)
    title = str(call.json().get("title", "")).strip()
    if len(title) < 3:
        raise bad_request("The title must have at least 3 characters")
    with call.hub.db.write():
        call.hub.discussions.set(repo, row.num, title=title)
        data = {"from": row.title, "to": title}
        event = call.hub.discussions.tell(repo, row.num, "title-change", account.name, data)
    return web.json_response({"newTitle": event.told()})


def change_status(call: Call) -> web.Response:
    repo, row = _of(call)
    account = _author_or_writer(call, repo, row)
    said = call.json()
    status = said.get("status")
    if status not in ("open", "closed"):
        raise bad_request(f"status `{status}`: expected `open` or `closed`")
    if row.status in ("merged", status):
        raise bad_request(f"The discussion is already {row.status}")
    hub = call.hub
    with hub.db.write():
        if said.get("comment"):
            _say(hub, repo, row, account, str(said["comment"]))
        hub.discussions.set(repo, row.num, status=status)
        event = hub.discussions.tell(repo, row.num, "status-change", account.name, {"status": status})
    return web.json_response({"newStatus": event.told()})


def merge(call: Call) -> web.Response:
    repo, row = _of(call)
    account = access.writer(call, repo.namespace)
    hub = call.hub
    said = str(call.json().get("comment", ""))
    if not row.is_pull_request:
        raise bad_request("This is a discussion, not a pull request")
    if row.status != "open":
        raise bad_request(f"Pull request {row.num} is {row.status}: only open ones can be merged")
    with hub.committing, hub.db.write():
        made = _merge(hub, repo, row, account)
        if said.strip():
            _say(hub, repo, row, account, said)
        hub.discussions.set(repo, row.num, status="merged", merge_commit=made.oid)
        hub.discussions.tell(repo, row.num, "status-change", account.name, {"status": "merged"})
    return web.json_response({"mergeCommitId": made.oid})


def _merge(hub: Hub, repo: Repo, row: Discussion, account: Account) -> Commit:
    """The one commit on the target branch."""
    tip, changes, conflicts = _sides(hub, repo, row)
    if conflicts:
        raise Refusal(409, f"Merge conflict in {', '.join(sorted(conflicts)[:3])}")
    assert row.base_ref is not None
    target = hub.history.ref(repo, row.base_ref)
    assert target is not None
    draft = commits.Draft(hub, repo, hub.history.snapshot(target), dict(changes))
    draft.check_tree()
    merged = []
    for commit in hub.history.log(tip):
        if commit.id == row.base_commit:
            break
        merged.append(f"- {commit.title} ({commit.oid})")
    title = f"{row.title} (#{row.num})"
    return commits.record(
        draft, row.base_ref, target, title=title, message="\n".join(reversed(merged)), author=account.name
    )
