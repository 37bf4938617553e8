"""Webhooks: who wants to be told of what, and what a push is told as (payload version 3).

A webhook belongs to a user, watches repositories, users and organizations, and is told of every ref that
moves in what it watches and its owner may see: a repository that is new (`repo`, `create`), and content that
changed (`repo.content`, `update`, with `updatedRefs`). Discussions are not told. Its URL is on this machine:
a devhub sends nothing anywhere else.

Source: `create_webhook` and its like in huggingface_hub's `hf_api.py`, `WebhookPayload` in its
`_webhooks_payload.py`, and the Hub's documentation of webhooks.
"""

from __future__ import annotations

import ipaddress
import json
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from tensorport_hub.devhub.database import Database
from tensorport_hub.devhub.history import Move
from tensorport_hub.devhub.repos import KINDS, Repo

WATCHED = (*KINDS, "user", "org")
DOMAINS = ("repo", "discussion")
VERSION = 3


def check_url(url: str) -> None:
    """A URL that a devhub may send to."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        here = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = False
    if parts.scheme != "http" or not here:
        raise ValueError(f"`{url}` is not on this machine: a devhub sends to http://127.0.0.1 alone")


@dataclass(frozen=True)
class Webhook:
    """One webhook as it is now."""

    id: str
    owner: str
    url: str
    watched: Sequence[Mapping[str, str]]
    domains: Sequence[str]
    secret: str | None
    disabled: bool = False

    def __post_init__(self) -> None:
        check_url(self.url)
        for item in self.watched:
            if item.get("type") not in WATCHED or not isinstance(item.get("name"), str):
                raise ValueError(f"watched {dict(item)}: expected a type of {', '.join(WATCHED)} and a name")
        if not self.watched or not set(self.domains) <= set(DOMAINS):
            raise ValueError(f"expected something to watch, and domains of {', '.join(DOMAINS)}")

    def watches(self, repo: Repo) -> bool:
        """Whether a repository is one of those that it was made for."""
        return any(
            item["name"].lower() == (repo.name if item["type"] == repo.kind else repo.namespace).lower()
            for item in self.watched
            if item["type"] in (repo.kind, "user", "org")
        )

    def told(self) -> dict[str, Any]:
        """As the API tells it."""
        return {
            "id": self.id,
            "url": self.url,
            "watched": [dict(item) for item in self.watched],
            "domains": list(self.domains),
            "secret": self.secret,
            "disabled": self.disabled,
        }

    def payload(self, endpoint: str, repo: Repo, move: Move) -> dict[str, Any]:
        """What it is sent of a ref that moved."""
        told: dict[str, Any] = {
            "event": {"action": "update", "scope": "repo.content"},
            "repo": {
                "type": repo.kind,
                "name": repo.name,
                "id": str(repo.id),
                "private": repo.private,
                "url": {
                    "web": f"{endpoint}/{repo.prefix}{repo.name}",
                    "api": f"{endpoint}/api/{repo.kind}s/{repo.name}",
                },
                "headSha": move.head,
                "tags": [],
                "owner": {"id": f"owner-{repo.namespace}"},
            },
            "webhook": {"id": self.id, "version": VERSION},
        }
        if move.ref == "refs/heads/main" and move.old is None:
            return {**told, "event": {"action": "create", "scope": "repo"}}
        return {**told, "updatedRefs": [{"ref": move.ref, "oldSha": move.old, "newSha": move.new}]}


def _webhook(row: sqlite3.Row) -> Webhook:
    watched, domains = json.loads(row["watched"]), json.loads(row["domains"])
    return Webhook(
        row["id"], row["owner"], row["url"], watched, domains, row["secret"], bool(row["disabled"])
    )


class Webhooks:
    """The webhooks of one devhub."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def create(
        self,
        owner: str,
        url: str,
        watched: Sequence[Mapping[str, str]],
        domains: Sequence[str],
        secret: str | None,
    ) -> Webhook:
        made = Webhook(secrets.token_hex(12), owner, url, watched, domains, secret)
        self._put(made)
        return made

    def _put(self, hook: Webhook) -> None:
        told = hook.told()
        row = (hook.id, hook.owner, hook.url, json.dumps(told["watched"]), json.dumps(told["domains"]))
        with self._db.write() as con:
            con.execute(
                "INSERT OR REPLACE INTO webhooks VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*row, hook.secret, hook.disabled),
            )

    def of(self, owner: str) -> list[Webhook]:
        """A user's, oldest first."""
        return [hook for hook in self._all() if hook.owner == owner]

    def change(self, hook: Webhook, **values: Any) -> Webhook:
        """Give it another url, watched, domains, secret or disabled."""
        changed = replace(hook, **values)
        self._put(changed)
        return changed

    def delete(self, hook: Webhook) -> None:
        with self._db.write() as con:
            con.execute("DELETE FROM webhooks WHERE id = ?", (hook.id,))

    def wanting(self, repo: Repo) -> list[Webhook]:
        """Those that are told when a ref of this repository moves."""
        return [
            hook
            for hook in self._all()
            if not hook.disabled
            and "repo" in hook.domains
            and hook.watches(repo)
            and self._may_see(hook, repo)
        ]

    def _all(self) -> list[Webhook]:
        with self._db.read() as con:
            return [_webhook(row) for row in con.execute("SELECT * FROM webhooks ORDER BY rowid").fetchall()]

    def _may_see(self, hook: Webhook, repo: Repo) -> bool:
        if not repo.private or hook.owner == repo.namespace:
            return True
        member = "SELECT 1 FROM members WHERE user = ? AND org = ?"
        with self._db.read() as con:
            return con.execute(member, (hook.owner, repo.namespace)).fetchone() is not None
