"""Repositories over the API: create, delete, move, settings, who am I, may I.

Source: `create_repo`, `delete_repo`, `move_repo`, `update_repo_settings`, `auth_check` and `whoami`
in huggingface_hub's `hf_api.py`. A 409 carries the `url` too: with `exist_ok` the client reads it.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from tensorport_hub.devhub import access, gitattributes
from tensorport_hub.devhub.accounts import Account
from tensorport_hub.devhub.commits import ATTRIBUTES, Draft
from tensorport_hub.devhub.history import Commit
from tensorport_hub.devhub.hub import Call, Hub
from tensorport_hub.devhub.refusals import Refusal, bad_request, forbidden, repo_not_found
from tensorport_hub.devhub.repos import NameTaken, Repo
from tensorport_hub.devhub.trees import Snapshot


def found_repo(hub: Hub, kind: str, name: str, *, author: str, private: bool, gated: str | None) -> Repo:
    """A new repository with its first commit, which holds the Hub's `.gitattributes`."""
    with hub.db.write():
        repo = hub.repos.create(kind, name, private=private, gated=gated)
        draft = Draft(hub, repo, Snapshot({}))
        draft.put_bytes(ATTRIBUTES, gitattributes.DEFAULT.encode())
        first = hub.history.add(repo, draft.changes, parent=None, title="initial commit", author=author)
        hub.history.point(repo, "refs/heads/main", first)
    return repo


def url_of(hub: Hub, repo: Repo) -> str:
    """A repository's page."""
    return f"{hub.endpoint}/{repo.prefix}{repo.name}"


def whoami(call: Call) -> web.Response:
    return web.json_response(access.known(call).whoami())


def _named(call: Call, said: dict[str, Any]) -> tuple[str, str, Account]:
    """(kind, name, caller) of a body with `name`, `organization` and `type`."""
    account = access.with_write_token(call)
    namespace = str(said.get("organization") or account.name)
    return str(said.get("type") or "model"), f"{namespace}/{said.get('name', '')}", account


def create(call: Call) -> web.Response:
    said = call.json()
    kind, name, account = _named(call, said)
    namespace = name.partition("/")[0]
    if not account.writes_to(namespace):
        raise forbidden(f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')
    private = said.get("visibility") == "private" or bool(said.get("private"))
    try:
        repo = found_repo(call.hub, kind, name, author=account.name, private=private, gated=None)
    except NameTaken as taken:
        existing = call.hub.repos.find(kind, name)
        assert existing is not None
        words = f"You already created this {kind} repo"
        raise Refusal(409, words, fields={"url": url_of(call.hub, existing)}) from taken
    except ValueError as error:
        raise bad_request(str(error)) from error
    return web.json_response({"url": url_of(call.hub, repo), "name": repo.name, "id": str(repo.id)})


def delete(call: Call) -> web.Response:
    kind, name, _ = _named(call, call.json())
    repo = _seen(call, kind, name)
    access.writer(call, repo.namespace)
    call.hub.repos.delete(repo)
    return web.json_response({})


def _seen(call: Call, kind: str, name: str) -> Repo:
    repo = call.hub.repos.find(kind, name)
    if repo is None or not access.sees(call.account, repo):
        raise repo_not_found(anonymous=call.anonymous)
    return repo


def move(call: Call) -> web.Response:
    said = call.json()
    access.with_write_token(call)
    repo = _seen(call, str(said.get("type") or "model"), str(said.get("fromRepo", "")))
    target = str(said.get("toRepo", ""))
    access.writer(call, repo.namespace)
    access.writer(call, target.partition("/")[0])
    try:
        call.hub.repos.move(repo, target)
    except NameTaken as taken:
        raise Refusal(409, f"`{target}` already exists") from taken
    except ValueError as error:
        raise bad_request(str(error)) from error
    return web.json_response({"url": f"{call.hub.endpoint}/{repo.prefix}{target}"})


def settings(call: Call) -> web.Response:
    repo = access.repo_of(call)
    access.writer(call, repo.namespace)
    said = call.json()
    visibility, gate = said.get("visibility"), said.get("gated")
    private = visibility == "private" if visibility is not None else said.get("private")
    if gate not in (None, False, "auto", "manual"):
        raise bad_request("gated must be `auto`, `manual` or false")
    call.hub.repos.change(repo, private=private, gated=gate)
    return web.json_response({})


def auth_check(call: Call) -> web.Response:
    repo = access.repo_of(call)
    access.pass_gate(call, repo)
    if call.path.endswith("/write"):
        access.writer(call, repo.namespace)
    return web.json_response({})


def head_of(hub: Hub, repo: Repo) -> Commit:
    """The tip of main, which every repository has."""
    head = hub.history.ref(repo, "refs/heads/main")
    assert head is not None, f"{repo.name} has no main"
    return head
