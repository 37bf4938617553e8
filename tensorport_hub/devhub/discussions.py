"""Discussions and pull requests: one numbered row each, and its events in order.

A pull request is a discussion with a ref (`refs/pr/<num>`), the branch it wants to change and the
commit it started from. Its description is its first event, a comment. Numbers count up within a
repository and are never used twice.

Opened by itself a pull request is a `draft`; opened with a commit it is `open`, as on the Hub.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tensorport_hub.devhub.accounts import now
from tensorport_hub.devhub.database import Database
from tensorport_hub.devhub.repos import Repo


@dataclass(frozen=True)
class Event:
    """One thing that happened in a discussion; `data` as the API tells it."""

    id: str
    kind: str
    author: str
    created_at: str
    data: Mapping[str, Any]

    def told(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": self.kind,
            "author": {"name": self.author},
            "createdAt": self.created_at,
            "data": dict(self.data),
        }


@dataclass(frozen=True)
class Discussion:
    """One discussion as it is now."""

    num: int
    title: str
    status: str
    author: str
    is_pull_request: bool
    created_at: str
    base_ref: str | None
    base_commit: int | None
    merge_commit: str | None

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.num}"

    @property
    def is_open(self) -> bool:
        return self.status in ("open", "draft")


def comment(text: str, author: str, moment: str) -> dict[str, Any]:
    """The data of a comment event."""
    version = {"raw": text, "html": text, "updatedAt": moment, "author": {"name": author}}
    return {"edited": False, "hidden": False, "latest": version, "history": [version], "numEdits": 0}


def _discussion(row: sqlite3.Row) -> Discussion:
    return Discussion(
        row["num"],
        row["title"],
        row["status"],
        row["author"],
        bool(row["is_pull_request"]),
        row["created_at"],
        row["base_ref"],
        row["base_commit"],
        row["merge_commit"],
    )


def _event(row: sqlite3.Row) -> Event:
    return Event(row["id"], row["kind"], row["author"], row["created_at"], json.loads(row["data"]))


class Discussions:
    """The discussions of every repository."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def open(
        self,
        repo: Repo,
        *,
        title: str,
        description: str,
        author: str,
        status: str,
        base: tuple[str, int] | None = None,
    ) -> Discussion:
        """Open one; with `base` (branch ref, commit row) a pull request."""
        moment = now()
        base_ref, base_commit = base if base is not None else (None, None)
        with self._db.write() as con:
            last = con.execute("SELECT max(num) FROM discussions WHERE repo = ?", (repo.id,)).fetchone()[0]
            num = (last or 0) + 1
            con.execute(
                "INSERT INTO discussions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                (repo.id, num, title, status, author, base is not None, moment, base_ref, base_commit),
            )
            self.tell(repo, num, "comment", author, comment(description, author, moment))
            found = self.find(repo, num)
        assert found is not None
        return found

    def find(self, repo: Repo, num: int) -> Discussion | None:
        with self._db.read() as con:
            row = con.execute(
                "SELECT * FROM discussions WHERE repo = ? AND num = ?", (repo.id, num)
            ).fetchone()
            return None if row is None else _discussion(row)

    def of(self, repo: Repo) -> list[Discussion]:
        """Newest first."""
        with self._db.read() as con:
            rows = con.execute(
                "SELECT * FROM discussions WHERE repo = ? ORDER BY num DESC", (repo.id,)
            ).fetchall()
            return [_discussion(row) for row in rows]

    def set(self, repo: Repo, num: int, **values: str) -> None:
        """Change `title`, `status` or `merge_commit`."""
        with self._db.write() as con:
            for column in ("title", "status", "merge_commit"):
                if column in values:
                    con.execute(
                        f"UPDATE discussions SET {column} = ? WHERE repo = ? AND num = ?",
                        (values[column], repo.id, num),
                    )

    def tell(self, repo: Repo, num: int, kind: str, author: str, data: Mapping[str, Any]) -> Event:
        """Add an event."""
        event = Event(secrets.token_hex(12), kind, author, now(), data)
        with self._db.write() as con:
            row = con.execute(
                "SELECT count(*) AS n FROM events WHERE repo = ? AND num = ?", (repo.id, num)
            ).fetchone()
            con.execute(
                "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (event.id, repo.id, num, row["n"], kind, author, event.created_at, json.dumps(data)),
            )
        return event

    def events(self, repo: Repo, num: int) -> list[Event]:
        with self._db.read() as con:
            rows = con.execute(
                "SELECT * FROM events WHERE repo = ? AND num = ? ORDER BY position", (repo.id, num)
            ).fetchall()
            return [_event(row) for row in rows]

    def rewrite(self, event: Event, data: Mapping[str, Any]) -> Event:
        """Give an event other data: an edited or hidden comment."""
        with self._db.write() as con:
            con.execute("UPDATE events SET data = ? WHERE id = ?", (json.dumps(data), event.id))
        return Event(event.id, event.kind, event.author, event.created_at, data)
