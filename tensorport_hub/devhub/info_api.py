"""Reading a repository over the API: its facts, its files, its commits.

Source: `model_info`, `list_repo_tree`, `get_paths_info`, `list_repo_commits` and `list_models` in
huggingface_hub's `hf_api.py`. Lists come in pages with `Link: <...>; rel="next"`; a cursor is the
number of rows already told, which is stable because a page pins the commit it began with.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from aiohttp import web

from tensorport_hub.devhub import access, cards
from tensorport_hub.devhub.history import Commit
from tensorport_hub.devhub.hub import Call, Hub
from tensorport_hub.devhub.refusals import Refusal, entry_not_found
from tensorport_hub.devhub.repo_api import head_of
from tensorport_hub.devhub.repos import Repo
from tensorport_hub.devhub.trees import Entry, Folder, Snapshot

COMMITS_A_PAGE = 50
PATHS_A_CALL = 1000
REPOS_A_PAGE = 1000


def _summary(hub: Hub, repo: Repo, commit: Commit, snapshot: Snapshot) -> dict[str, Any]:
    """What every listing says of a repository."""
    card = cards.card_data(hub, snapshot)
    return {
        "_id": f"{repo.id:024x}",
        "id": repo.name,
        "author": repo.namespace,
        "sha": commit.oid,
        "lastModified": commit.created_at,
        "createdAt": repo.created_at,
        "private": repo.private,
        "gated": repo.gate,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": cards.tags(card),
        **({"modelId": repo.name} if repo.kind == "model" else {}),
        **{key: card[key] for key in ("library_name", "pipeline_tag") if isinstance(card.get(key), str)},
    }


def _sibling(entry: Entry, *, blobs: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"rfilename": entry.path}
    if blobs:
        row |= {"size": entry.size, "blobId": entry.oid}
        if entry.lfs:
            row["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
    return row


def repo_info(call: Call) -> web.Response:
    repo = access.repo_of(call)
    commit = access.revision_of(call, repo)
    snapshot = call.hub.history.snapshot(commit)
    blobs = call.flag("blobs")
    files = [snapshot.files[path] for path in snapshot.paths]
    told = {
        **_summary(call.hub, repo, commit, snapshot),
        "cardData": cards.card_data(call.hub, snapshot),
        "siblings": [_sibling(entry, blobs=blobs) for entry in files],
        "spaces": [],
        "usedStorage": sum(entry.size for entry in files if entry.lfs),
    }
    wanted = call.every("expand")
    if wanted:
        told = {key: value for key, value in told.items() if key in ("_id", "id", *wanted)}
    return web.json_response(told, headers={"X-Repo-Commit": commit.oid})


def list_repos(call: Call) -> web.Response:
    """Repositories that the caller sees: by `author`, `search` and `filter`, newest first."""
    author, search = call.query.get("author"), call.query.get("search", "").lower()
    wanted = set(call.every("filter"))
    rows = []
    for repo in call.hub.repos.of_kind(call.kind):
        if not access.sees(call.account, repo) or (author and repo.namespace != author):
            continue
        if search not in repo.name.lower():
            continue
        head = head_of(call.hub, repo)
        row = _summary(call.hub, repo, head, call.hub.history.snapshot(head))
        if wanted <= {*row["tags"], row.get("library_name"), row.get("pipeline_tag")}:
            rows.append(row)
    limit = min(call.number("limit", REPOS_A_PAGE), REPOS_A_PAGE)
    return _page(call, rows, limit, {})


def _page(call: Call, rows: list[dict[str, Any]], size: int, pinned: dict[str, str]) -> web.Response:
    """One page of rows and, where there are more, the link to the next."""
    start = call.number("cursor", 0)
    headers = {}
    if start + size < len(rows):
        query = {**call.query, **pinned, "cursor": str(start + size)}
        headers["Link"] = f'<{call.hub.endpoint}{quote(call.path)}?{urlencode(query)}>; rel="next"'
    return web.json_response(rows[start : start + size], headers=headers)


def _row(call: Call, repo: Repo, found: Entry | Folder, *, expand: bool) -> dict[str, Any]:
    """A file or a folder as trees and paths-info tell it."""
    if isinstance(found, Folder):
        return {"type": "directory", "oid": found.oid, "size": 0, "path": found.path}
    row: dict[str, Any] = {"type": "file", "oid": found.oid, "size": found.size, "path": found.path}
    if found.lfs:
        row["lfs"] = {"oid": found.sha256, "size": found.size, "pointerSize": found.pointer_size}
        xet_hash = call.hub.xet_hash(found.sha256)
        if xet_hash is not None:
            row["xetHash"] = xet_hash
    if expand:
        last = call.hub.history.by_oid(repo, found.commit)
        if last is not None:
            row["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.created_at}
        row["securityFileStatus"] = {"status": "unscanned", "avScan": None, "pickleImportScan": None}
    return row


def tree(call: Call) -> web.Response:
    repo = access.repo_of(call)
    pinned = call.query.get("at")
    commit = call.hub.history.by_oid(repo, pinned) if pinned else None
    commit = commit or access.revision_of(call, repo)
    folder = call.params.get("path", "").strip("/")
    snapshot = call.hub.history.snapshot(commit)
    if folder and next(snapshot.under(folder), None) is None:
        raise entry_not_found(f'{folder} does not exist on "{call.params["rev"]}"', commit.oid)
    found = snapshot.listing(folder, recursive=call.flag("recursive"))
    expand = call.flag("expand")
    size = min(call.number("limit", 1000), call.hub.settings.tree_page)
    start = call.number("cursor", 0)
    rows = [_row(call, repo, row, expand=expand) for row in found[start : start + size]]
    headers = {"X-Repo-Commit": commit.oid}
    if start + size < len(found):
        query = {**call.query, "at": commit.oid, "cursor": str(start + size)}
        revision, inner = quote(call.params["rev"], safe=""), quote(folder, safe="")
        path = f"/api/{call.kind}s/{repo.name}/tree/{revision}" + (f"/{inner}" if inner else "")
        headers["Link"] = f'<{call.hub.endpoint}{path}?{urlencode(query)}>; rel="next"'
    return web.json_response(rows, headers=headers)


def paths_info(call: Call) -> web.Response:
    repo = access.repo_of(call)
    commit = access.revision_of(call, repo)
    if call.content_type == "application/json":
        said = call.json()
        paths, expand = said.get("paths", []), bool(said.get("expand"))
    else:
        form = parse_qs(call.text())
        paths, expand = form.get("paths", []), form.get("expand", [""])[0].lower() in ("1", "true")
    if len(paths) > PATHS_A_CALL:
        raise Refusal(413, "too many parameters")
    snapshot = call.hub.history.snapshot(commit)
    found = (snapshot.find(str(path).rstrip("/")) for path in dict.fromkeys(paths))
    rows = [_row(call, repo, row, expand=expand) for row in found if row is not None]
    return web.json_response(rows, headers={"X-Repo-Commit": commit.oid})


def commits(call: Call) -> web.Response:
    repo = access.repo_of(call)
    commit = access.revision_of(call, repo)
    page = call.number("p", 0)
    log = call.hub.history.log(commit, start=page * COMMITS_A_PAGE, count=COMMITS_A_PAGE + 1)
    formatted = "expand[]" in call.query
    rows = [
        {
            "id": row.oid,
            "title": row.title,
            "message": row.message,
            "authors": [{"user": row.author, "avatar": ""}] if row.author else [],
            "date": row.created_at,
            **({"formatted": {"title": row.title, "message": row.message}} if formatted else {}),
        }
        for row in log[:COMMITS_A_PAGE]
    ]
    headers = {}
    if len(log) > COMMITS_A_PAGE:
        query = urlencode({**call.query, "p": str(page + 1)})
        path = f"/api/{call.kind}s/{repo.name}/commits/{commit.oid}"
        headers["Link"] = f'<{call.hub.endpoint}{path}?{query}>; rel="next"'
    return web.json_response(rows, headers=headers)
