"""Changing a repository over the API: preupload, commit, branches, tags, refs, squash.

Source: `create_commit`, `_fetch_upload_modes`, `create_branch`, `create_tag`, `list_repo_refs`,
`super_squash_history` and `_duplicate_lfs_files` in huggingface_hub.
"""

from __future__ import annotations

from base64 import b64decode
from typing import Any

from aiohttp import web

from tensorport_hub.devhub import access, commits, gitattributes
from tensorport_hub.devhub.accounts import Account
from tensorport_hub.devhub.history import Commit, check_ref_name
from tensorport_hub.devhub.hub import Call
from tensorport_hub.devhub.refusals import Refusal, bad_request, forbidden, repo_not_found, revision_not_found
from tensorport_hub.devhub.repo_api import url_of
from tensorport_hub.devhub.repos import Repo


def preupload(call: Call) -> web.Response:
    """Say of each file whether it goes as LFS, is ignored, and what is there already."""
    repo = access.repo_of(call)
    commit = access.revision_of(call, repo)
    access.pusher(call, repo, call.params["rev"], create_pr=call.flag("create_pr"))
    said = call.json()
    draft = commits.Draft(call.hub, repo, call.hub.history.snapshot(commit))
    rules = draft.rules()
    gitignore = said.get("gitIgnore")
    if gitignore is None and (entry := draft.entry(".gitignore")) is not None:
        gitignore = draft.read(entry).decode(errors="replace")
    files = []
    for file in said.get("files", []):
        try:
            path, size = str(file["path"]), int(file["size"])
            sample = b64decode(file.get("sample") or "", validate=True)
        except (KeyError, TypeError, ValueError) as error:
            raise bad_request("each file needs a path, a size and a base64 sample") from error
        existing = draft.entry(path)
        mode = rules.mode(path, size, sample)
        files.append(
            {
                "path": path,
                "uploadMode": mode,
                "shouldIgnore": gitignore is not None and gitignore_hides(gitignore, path),
                "oid": existing.remote_oid if existing is not None else None,
            }
        )
    return web.json_response({"files": files, "commitOid": commit.oid})


def gitignore_hides(gitignore: str, path: str) -> bool:
    """Whether the patterns of a `.gitignore` leave a path out."""
    return path != ".gitignore" and gitattributes.ignored(gitignore, path)


def commit(call: Call) -> web.Response:
    repo = access.repo_of(call)
    revision = call.params["rev"]
    create_pr = call.flag("create_pr")
    head = access.revision_of(call, repo)
    account = access.pusher(call, repo, revision, create_pr=create_pr)
    lines = commits.read_lines(call.body or ())
    header = commits.read_header(lines)
    with call.hub.committing:
        if create_pr:
            return _with_pull_request(call, repo, head, account, header, lines)
        ref = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
        tip = call.hub.history.ref(repo, ref)
        if tip is None:
            raise bad_request(f"`{revision}` is not a branch: commits go to branches and pull requests")
        if header.parent is not None and not tip.oid.startswith(header.parent):
            raise commits.conflict()
        draft = commits.Draft(call.hub, repo, call.hub.history.snapshot(tip))
        commits.read_changes(draft, lines)
        with call.hub.db.write():
            made = commits.record(
                draft, ref, tip, title=header.title, message=header.message, author=account.name
            )
            pull_request = access.pull_request_of(call, repo, ref)
            if pull_request is not None:
                data = {"subject": made.title, "oid": made.oid}
                call.hub.discussions.tell(repo, pull_request.num, "commit", account.name, data)
    return web.json_response(_told(call, repo, made))


def _told(call: Call, repo: Repo, made: Commit) -> dict[str, Any]:
    url = f"{url_of(call.hub, repo)}/commit/{made.oid}"
    return {"success": True, "commitOid": made.oid, "commitUrl": url, "hookOutput": ""}


def _with_pull_request(
    call: Call, repo: Repo, head: Commit, account: Account, header: commits.Header, lines: Any
) -> web.Response:
    """The commit on a pull request of its own; `parentCommit` says where that starts."""
    hub = call.hub
    start = hub.history.resolve(repo, header.parent) if header.parent else head
    if start is None:
        raise revision_not_found(str(header.parent))
    revision = call.params["rev"]
    target = revision if revision.startswith("refs/heads/") else f"refs/heads/{revision}"
    if hub.history.ref(repo, target) is None:
        target = "refs/heads/main"
    draft = commits.Draft(hub, repo, hub.history.snapshot(start))
    commits.read_changes(draft, lines)
    with hub.db.write():
        opened = hub.discussions.open(
            repo,
            title=header.title,
            description=header.message,
            author=account.name,
            status="open",
            base=(target, start.id),
        )
        hub.history.point(repo, opened.ref, start)
        made = commits.record(
            draft, opened.ref, start, title=header.title, message=header.message, author=account.name
        )
        data = {"subject": made.title, "oid": made.oid}
        hub.discussions.tell(repo, opened.num, "commit", account.name, data)
    url = f"{url_of(hub, repo)}/discussions/{opened.num}"
    return web.json_response({**_told(call, repo, made), "pullRequestUrl": url})


def create_branch(call: Call) -> web.Response:
    starting_point = str(call.json().get("startingPoint") or "main")
    return _create_ref(call, "refs/heads/", call.params["ref"], starting_point)


def create_tag(call: Call) -> web.Response:
    return _create_ref(call, "refs/tags/", str(call.json().get("tag", "")), call.params["rev"])


def _create_ref(call: Call, prefix: str, name: str, starting_point: str) -> web.Response:
    repo = access.repo_of(call)
    access.writer(call, repo.namespace)
    try:
        check_ref_name(name)
    except ValueError as error:
        raise bad_request(str(error)) from error
    target = call.hub.history.resolve(repo, starting_point)
    if target is None:
        raise revision_not_found(starting_point)
    with call.hub.db.write():
        if call.hub.history.ref(repo, prefix + name) is not None:
            raise Refusal(409, f"Reference `{prefix}{name}` already exists")
        call.hub.history.point(repo, prefix + name, target)
    return web.json_response({}, status=201)


def delete_branch(call: Call) -> web.Response:
    if call.params["ref"] == "main":
        raise forbidden("Cannot delete the default branch `main`")
    return _delete_ref(call, "refs/heads/")


def delete_tag(call: Call) -> web.Response:
    return _delete_ref(call, "refs/tags/")


def _delete_ref(call: Call, prefix: str) -> web.Response:
    repo = access.repo_of(call)
    access.writer(call, repo.namespace)
    name = call.params["ref"]
    if call.hub.history.ref(repo, prefix + name) is None:
        raise revision_not_found(name)
    call.hub.history.drop(repo, prefix + name)
    return web.json_response({})


def refs(call: Call) -> web.Response:
    repo = access.repo_of(call)

    def told(prefix: str, cut: str) -> list[dict[str, str]]:
        found = call.hub.history.refs(repo, prefix)
        return [{"name": name.removeprefix(cut), "ref": name, "targetCommit": oid} for name, oid in found]

    listed: dict[str, Any] = {
        "branches": told("refs/heads/", "refs/heads/"),
        "tags": told("refs/tags/", "refs/tags/"),
        "converts": told("refs/convert/", "refs/convert/"),
    }
    if call.flag("include_prs"):
        listed["pullRequests"] = told("refs/pr/", "refs/pr/")
    return web.json_response(listed)


def super_squash(call: Call) -> web.Response:
    """One commit without a parent in place of the branch's history."""
    repo = access.repo_of(call)
    account = access.writer(call, repo.namespace)
    branch = call.params["rev"]
    title, _, message = str(call.json().get("message") or "Super-squash").partition("\n")
    with call.hub.committing, call.hub.db.write():
        tip = call.hub.history.ref(repo, f"refs/heads/{branch}")
        if tip is None:
            raise revision_not_found(branch)
        files = call.hub.history.snapshot(tip).files
        made = call.hub.history.add(
            repo, files, parent=None, title=title, message=message.strip(), author=account.name
        )
        call.hub.history.point(repo, f"refs/heads/{branch}", made)
    return web.json_response({})


def duplicate_lfs_files(call: Call) -> web.Response:
    """Give LFS objects of this repository to another one."""
    source = access.repo_of(call)
    access.pass_gate(call, source)
    access.with_write_token(call)
    said = call.json()
    target = said.get("target") or {}
    repo = call.hub.repos.find(str(target.get("type", "model")), str(target.get("name", "")))
    if repo is None or not access.sees(call.account, repo):
        raise repo_not_found(anonymous=call.anonymous)
    failed = []
    for file in said.get("files", []):
        sha256 = str(file.get("sha256", ""))
        blob = call.hub.bytes_of(source, sha256)
        if blob is None or call.hub.blobs.xet_hash(sha256) != file.get("xetHash"):
            failed.append({"sha256": sha256, "error": "File not found in the source repository"})
        else:
            call.hub.repos.own_object(repo.id, sha256, blob.size)
    return web.json_response({"failed": failed})
