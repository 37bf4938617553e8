"""History: commits and the refs that point at them.

A commit stores only its changes against its parent; its snapshot is the parent's plus those, kept in
memory while there is room (commits never change, so nothing has to be thrown away when another
process writes). Ref names are whole (`refs/heads/main`, `refs/tags/v1`, `refs/pr/3`); a revision, as
a client names it, is a branch, a tag, a whole ref name, or a commit id.

Commit ids are ours (a sha1 over what the commit says and a nonce), not git's.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from tensorport_hub.devhub.accounts import now
from tensorport_hub.devhub.database import Database
from tensorport_hub.devhub.repos import Repo
from tensorport_hub.devhub.trees import Entry, Snapshot

SHORT_OID = re.compile(r"[0-9a-f]{7,40}")
MOVES = 1000
"""Moves of refs that are kept for webhooks; of more, the oldest are dropped."""

CACHED_FILES = 1_000_000  # entries kept in memory over all snapshots; about 200 MB at the very most


@dataclass(frozen=True)
class Commit:
    """One commit. `id` is the devhub's row, `oid` what the world sees."""

    id: int
    oid: str
    parent: int | None
    title: str
    message: str
    author: str
    created_at: str


@dataclass(frozen=True)
class Move:
    """A ref that moved: the commit ids before and after (None: it was not, or is no more), and `main`'s."""

    repo: int
    ref: str
    old: str | None
    new: str | None
    head: str | None


def _commit(row: sqlite3.Row) -> Commit:
    return Commit(
        row["id"], row["oid"], row["parent"], row["title"], row["message"], row["author"], row["created_at"]
    )


def check_ref_name(name: str) -> None:
    """Git's rule for the name of a branch or a tag, as far as a name can hurt us."""
    wrong = not name or name.startswith(("/", "-", ".")) or name.endswith(("/", ".", ".lock"))
    if wrong or ".." in name or "//" in name or re.search(r"[\x00-\x20\x7f~^:?*\[\\]|@\{", name):
        raise ValueError(f"`{name}` is not a valid ref name")


class History:
    """The commits and refs of every repository."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._snapshots: OrderedDict[int, Snapshot] = OrderedDict()
        self._lock = threading.Lock()

    # -- refs

    def refs(self, repo: Repo, prefix: str) -> list[tuple[str, str]]:
        """(whole name, commit oid) of the refs that start with `prefix`."""
        with self._db.read() as con:
            rows = con.execute(
                "SELECT refs.name, commits.oid FROM refs JOIN commits ON commits.id = refs.target"
                " WHERE refs.repo = ? AND substr(refs.name, 1, ?) = ? ORDER BY refs.name",
                (repo.id, len(prefix), prefix),
            ).fetchall()
            return [(row["name"], row["oid"]) for row in rows]

    def ref(self, repo: Repo, name: str) -> Commit | None:
        """What the whole ref name `name` points at."""
        with self._db.read() as con:
            row = con.execute(
                "SELECT commits.* FROM refs JOIN commits ON commits.id = refs.target"
                " WHERE refs.repo = ? AND refs.name = ?",
                (repo.id, name),
            ).fetchone()
            return None if row is None else _commit(row)

    def point(self, repo: Repo, name: str, commit: Commit) -> None:
        with self._db.write() as con:
            before = self.ref(repo, name)
            con.execute("INSERT OR REPLACE INTO refs VALUES (?, ?, ?)", (repo.id, name, commit.id))
            self._note(con, repo, name, before, commit)

    def drop(self, repo: Repo, name: str) -> None:
        with self._db.write() as con:
            before = self.ref(repo, name)
            con.execute("DELETE FROM refs WHERE repo = ? AND name = ?", (repo.id, name))
            self._note(con, repo, name, before, None)

    def _note(
        self, con: sqlite3.Connection, repo: Repo, name: str, before: Commit | None, after: Commit | None
    ) -> None:
        head = self.ref(repo, "refs/heads/main")
        oids = (commit.oid if commit is not None else None for commit in (before, after, head))
        added = con.execute(
            "INSERT INTO moves (repo, ref, old, new, head) VALUES (?, ?, ?, ?, ?)", (repo.id, name, *oids)
        )
        con.execute("DELETE FROM moves WHERE id <= ?", ((added.lastrowid or 0) - MOVES,))

    def moves(self) -> list[Move]:
        """Take what moved since the last call, in order."""
        with self._db.read() as con:
            rows = con.execute("SELECT * FROM moves ORDER BY id").fetchall()
        if rows:
            with self._db.write() as con:
                con.execute("DELETE FROM moves WHERE id <= ?", (rows[-1]["id"],))
        return [Move(row["repo"], row["ref"], row["old"], row["new"], row["head"]) for row in rows]

    def resolve(self, repo: Repo, revision: str) -> Commit | None:
        """The commit that a client's revision names; None where there is none."""
        names = [revision] if revision.startswith("refs/") else []
        names += [f"refs/heads/{revision}", f"refs/tags/{revision}"]
        for name in names:
            commit = self.ref(repo, name)
            if commit is not None:
                return commit
        return self._by_short_oid(repo, revision) if SHORT_OID.fullmatch(revision) else None

    # -- commits

    def by_oid(self, repo: Repo, oid: str) -> Commit | None:
        with self._db.read() as con:
            row = con.execute("SELECT * FROM commits WHERE repo = ? AND oid = ?", (repo.id, oid)).fetchone()
            return None if row is None else _commit(row)

    def _by_short_oid(self, repo: Repo, start: str) -> Commit | None:
        with self._db.read() as con:
            rows = con.execute(
                "SELECT * FROM commits WHERE repo = ? AND substr(oid, 1, ?) = ? LIMIT 2",
                (repo.id, len(start), start),
            ).fetchall()
            return _commit(rows[0]) if len(rows) == 1 else None

    def by_id(self, commit_id: int) -> Commit:
        with self._db.read() as con:
            return _commit(con.execute("SELECT * FROM commits WHERE id = ?", (commit_id,)).fetchone())

    def log(self, commit: Commit, *, start: int = 0, count: int | None = None) -> list[Commit]:
        """The commit and its ancestors, newest first."""
        with self._db.read() as con:
            rows = con.execute(
                "WITH RECURSIVE line (id, depth) AS ("
                " SELECT ?, 0 UNION ALL"
                " SELECT commits.parent, depth + 1 FROM line JOIN commits ON commits.id = line.id"
                " WHERE commits.parent IS NOT NULL)"
                " SELECT commits.* FROM line JOIN commits ON commits.id = line.id"
                " ORDER BY depth LIMIT ? OFFSET ?",
                (commit.id, -1 if count is None else count, start),
            ).fetchall()
            return [_commit(row) for row in rows]

    def add(
        self,
        repo: Repo,
        changes: Mapping[str, Entry | None],
        *,
        parent: Commit | None,
        title: str,
        message: str = "",
        author: str,
    ) -> Commit:
        """Write one commit; no ref moves."""
        said = repr((repo.id, parent.oid if parent else None, title, message, author, secrets.token_hex(16)))
        oid = hashlib.sha1(said.encode(), usedforsecurity=False).hexdigest()
        with self._db.write() as con:
            cursor = con.execute(
                "INSERT INTO commits (oid, parent, repo, title, message, author, created_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (oid, parent.id if parent else None, repo.id, title, message, author, now()),
            )
            commit_id = cursor.lastrowid
            assert commit_id is not None
            con.executemany(
                "INSERT INTO changes VALUES (?, ?, ?, ?, ?, ?)",
                (
                    (commit_id, path, e.size, e.oid, e.sha256, e.lfs)
                    if e is not None
                    else (commit_id, path, None, None, None, None)
                    for path, e in changes.items()
                ),
            )
            return self.by_id(commit_id)

    # -- snapshots

    def snapshot(self, commit: Commit) -> Snapshot:
        """Every file of `commit`."""
        line: list[tuple[int, str]] = []
        at: Commit | None = commit
        base = Snapshot({})
        with self._db.read() as con:
            while at is not None:
                known = self._cached(at.id)
                if known is not None:
                    base = known
                    break
                line.append((at.id, at.oid))
                at = self.by_id(at.parent) if at.parent is not None else None
            if not line:
                return base
            files = dict(base.files)
            for commit_id, oid in reversed(line):
                self._apply(con, files, commit_id, oid)
        made = Snapshot(files)
        self._keep(commit.id, made)
        return made

    @staticmethod
    def _apply(con: sqlite3.Connection, files: dict[str, Entry], commit_id: int, commit_oid: str) -> None:
        rows = con.execute(
            "SELECT path, size, oid, sha256, lfs FROM changes WHERE commit_id = ?", (commit_id,)
        )
        for path, size, oid, sha256, lfs in rows:
            if oid is None:
                files.pop(path, None)
            else:
                files[path] = Entry(path, size, oid, sha256, bool(lfs), commit_oid)

    def _cached(self, commit_id: int) -> Snapshot | None:
        with self._lock:
            snapshot = self._snapshots.get(commit_id)
            if snapshot is not None:
                self._snapshots.move_to_end(commit_id)
            return snapshot

    def _keep(self, commit_id: int, snapshot: Snapshot) -> None:
        with self._lock:
            self._snapshots[commit_id] = snapshot
            total = sum(len(kept.files) for kept in self._snapshots.values())
            while total > CACHED_FILES and len(self._snapshots) > 1:
                _, dropped = self._snapshots.popitem(last=False)
                total -= len(dropped.files)
