"""Repositories: their names, visibility, gate, and the names they had before a move.

A repository is one of three kinds (`model`, `dataset`, `space`) and has a `namespace/name`. Names
compare without case, as on the Hub. After a move the old name leads to the new one until somebody
takes it.
"""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass

from tensorport_hub.devhub.accounts import now
from tensorport_hub.devhub.database import Database

KINDS = ("model", "dataset", "space")
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")


class NameTaken(ValueError):
    """A repository of this name exists."""


def check_name(name: str) -> None:
    """The Hub's rule for `namespace/name`."""
    parts = name.split("/")
    wrong = len(parts) != 2 or any(
        not NAME.fullmatch(part) or "--" in part or ".." in part or part.endswith(".git") for part in parts
    )
    if wrong:
        raise ValueError(f"`{name}` is not a repository name of the form `namespace/name`")


@dataclass(frozen=True)
class Repo:
    """One repository as it is now."""

    id: int
    kind: str
    name: str
    private: bool
    gated: str | None
    created_at: str

    @property
    def namespace(self) -> str:
        return self.name.partition("/")[0]

    @property
    def prefix(self) -> str:
        """What comes before the name in web and file URLs: nothing for models."""
        return "" if self.kind == "model" else f"{self.kind}s/"

    @property
    def gate(self) -> str | bool:
        """The gate as the API tells it: `auto`, `manual` or false."""
        return self.gated or False


def _repo(row: sqlite3.Row) -> Repo:
    return Repo(
        row["id"], row["kind"], row["name"], bool(row["private"]), row["gated"] or None, row["created_at"]
    )


class Repos:
    """The repositories of one devhub."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def find(self, kind: str, name: str) -> Repo | None:
        with self._db.read() as con:
            row = con.execute("SELECT * FROM repos WHERE kind = ? AND name = ?", (kind, name)).fetchone()
            return None if row is None else _repo(row)

    def by_id(self, row_id: int) -> Repo | None:
        with self._db.read() as con:
            row = con.execute("SELECT * FROM repos WHERE id = ?", (row_id,)).fetchone()
            return None if row is None else _repo(row)

    def by_former_name(self, kind: str, name: str) -> Repo | None:
        with self._db.read() as con:
            row = con.execute(
                "SELECT repos.* FROM repos JOIN former_names ON repos.id = former_names.repo"
                " WHERE former_names.kind = ? AND former_names.name = ?",
                (kind, name),
            ).fetchone()
            return None if row is None else _repo(row)

    def of_kind(self, kind: str) -> list[Repo]:
        with self._db.read() as con:
            rows = con.execute("SELECT * FROM repos WHERE kind = ? ORDER BY id DESC", (kind,)).fetchall()
            return [_repo(row) for row in rows]

    def create(self, kind: str, name: str, *, private: bool = False, gated: str | None = None) -> Repo:
        check_name(name)
        if kind not in KINDS:
            raise ValueError(f"`{kind}` is not one of {', '.join(KINDS)}")
        with self._db.write() as con:
            if self.find(kind, name) is not None:
                raise NameTaken(name)
            con.execute("DELETE FROM former_names WHERE kind = ? AND name = ?", (kind, name))
            con.execute(
                "INSERT INTO repos (kind, name, private, gated, created_at) VALUES (?, ?, ?, ?, ?)",
                (kind, name, private, gated, now()),
            )
            found = self.find(kind, name)
        assert found is not None
        return found

    def change(self, repo: Repo, *, private: bool | None = None, gated: str | bool | None = None) -> None:
        """`gated`: `auto`, `manual`, False to open the gate, None to leave it."""
        with self._db.write() as con:
            if private is not None:
                con.execute("UPDATE repos SET private = ? WHERE id = ?", (private, repo.id))
            if gated is not None:
                con.execute("UPDATE repos SET gated = ? WHERE id = ?", (gated or None, repo.id))

    def move(self, repo: Repo, name: str) -> None:
        check_name(name)
        with self._db.write() as con:
            taken = self.find(repo.kind, name)
            if taken is not None and taken.id != repo.id:
                raise NameTaken(name)
            con.execute("DELETE FROM former_names WHERE kind = ? AND name = ?", (repo.kind, name))
            con.execute("UPDATE repos SET name = ? WHERE id = ?", (name, repo.id))
            former = (repo.kind, repo.name, repo.id)
            con.execute("INSERT OR REPLACE INTO former_names VALUES (?, ?, ?)", former)
            con.execute("UPDATE gated_readers SET repo = ? WHERE repo = ?", (name, repo.name))

    def delete(self, repo: Repo) -> None:
        with self._db.write() as con:
            con.execute("DELETE FROM repos WHERE id = ?", (repo.id,))

    def own_object(self, repo: int, sha256: str, size: int) -> None:
        """Note that the repository of this row has been given these LFS bytes."""
        with self._db.write() as con:
            con.execute("INSERT OR IGNORE INTO lfs_objects VALUES (?, ?, ?, ?)", (repo, sha256, size, now()))

    def owns_object(self, repo: Repo, sha256: str) -> bool:
        with self._db.read() as con:
            row = con.execute(
                "SELECT 1 FROM lfs_objects WHERE repo = ? AND sha256 = ?", (repo.id, sha256)
            ).fetchone()
            return row is not None
