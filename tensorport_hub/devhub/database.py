"""The devhub's SQLite file: schema, transactions, and the lock that keeps a second devhub out.

One connection, shared by all threads under one lock, in WAL mode: another process (`devhub add`)
may write to the same root while a devhub serves it, because nothing but immutable history is ever
cached. A write is one transaction; a write inside a write joins the outer one.

The lock is an open exclusive transaction on a second, empty database: it works on every platform,
inside one process too, and the system frees it when the process dies.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS namespaces (name TEXT PRIMARY KEY COLLATE NOCASE, kind TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS members (
    user TEXT NOT NULL, org TEXT NOT NULL, role TEXT NOT NULL, PRIMARY KEY (user, org));
CREATE TABLE IF NOT EXISTS tokens (
    token TEXT PRIMARY KEY, user TEXT NOT NULL, role TEXT NOT NULL, created_at TEXT NOT NULL,
    revoked INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS gated_readers (
    user TEXT NOT NULL, repo TEXT NOT NULL, PRIMARY KEY (user, repo));
CREATE TABLE IF NOT EXISTS repos (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, name TEXT NOT NULL COLLATE NOCASE,
    private INTEGER NOT NULL, gated TEXT, created_at TEXT NOT NULL, UNIQUE (kind, name));
CREATE TABLE IF NOT EXISTS former_names (
    kind TEXT NOT NULL, name TEXT NOT NULL COLLATE NOCASE,
    repo INTEGER NOT NULL REFERENCES repos (id) ON DELETE CASCADE, PRIMARY KEY (kind, name));
CREATE TABLE IF NOT EXISTS refs (
    repo INTEGER NOT NULL REFERENCES repos (id) ON DELETE CASCADE,
    name TEXT NOT NULL, target INTEGER NOT NULL, PRIMARY KEY (repo, name));
CREATE TABLE IF NOT EXISTS commits (
    id INTEGER PRIMARY KEY AUTOINCREMENT, oid TEXT NOT NULL, parent INTEGER,
    repo INTEGER NOT NULL REFERENCES repos (id) ON DELETE CASCADE,
    title TEXT NOT NULL, message TEXT NOT NULL, author TEXT NOT NULL, created_at TEXT NOT NULL,
    UNIQUE (repo, oid));
CREATE TABLE IF NOT EXISTS changes (
    commit_id INTEGER NOT NULL REFERENCES commits (id) ON DELETE CASCADE,
    path TEXT NOT NULL, size INTEGER, oid TEXT, sha256 TEXT, lfs INTEGER,
    PRIMARY KEY (commit_id, path)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lfs_objects (
    repo INTEGER NOT NULL REFERENCES repos (id) ON DELETE CASCADE,
    sha256 TEXT NOT NULL, size INTEGER NOT NULL, created_at TEXT NOT NULL,
    PRIMARY KEY (repo, sha256)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS discussions (
    repo INTEGER NOT NULL REFERENCES repos (id) ON DELETE CASCADE,
    num INTEGER NOT NULL, title TEXT NOT NULL, status TEXT NOT NULL, author TEXT NOT NULL,
    is_pull_request INTEGER NOT NULL, created_at TEXT NOT NULL,
    base_ref TEXT, base_commit INTEGER, merge_commit TEXT, PRIMARY KEY (repo, num));
CREATE TABLE IF NOT EXISTS events (
    id TEXT PRIMARY KEY, repo INTEGER NOT NULL REFERENCES repos (id) ON DELETE CASCADE,
    num INTEGER NOT NULL, position INTEGER NOT NULL, kind TEXT NOT NULL, author TEXT NOT NULL,
    created_at TEXT NOT NULL, data TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_of ON events (repo, num, position);
CREATE TABLE IF NOT EXISTS moves (
    id INTEGER PRIMARY KEY AUTOINCREMENT, repo INTEGER NOT NULL, ref TEXT NOT NULL,
    old TEXT, new TEXT, head TEXT);
CREATE TABLE IF NOT EXISTS webhooks (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, url TEXT NOT NULL, watched TEXT NOT NULL,
    domains TEXT NOT NULL, secret TEXT, disabled INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, namespace TEXT NOT NULL, spec TEXT NOT NULL, schedule TEXT,
    concurrency INTEGER NOT NULL, created_at TEXT NOT NULL);
"""


class RootInUse(RuntimeError):
    """Another devhub serves this root."""


class Database:
    """The connection and its transactions."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        self._connection.executescript(SCHEMA)

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            yield self._connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._depth == 0:
                self._connection.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield self._connection
            except BaseException:
                self._depth -= 1
                if self._depth == 0:
                    self._connection.execute("ROLLBACK")
                raise
            self._depth -= 1
            if self._depth == 0:
                self._connection.execute("COMMIT")

    def remembered(self, key: str, value: str) -> str:
        """The stored value of `key`; `value` is stored first where there is none."""
        with self.write() as con:
            con.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, value))
            row = con.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
            return str(row["value"])

    def close(self) -> None:
        with self._lock:
            self._connection.close()


class RootLock:
    """Held by the one devhub that serves a root."""

    def __init__(self, root: Path) -> None:
        self._connection = sqlite3.connect(
            root / "serving.lock", check_same_thread=False, isolation_level=None, timeout=0
        )
        try:
            self._connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            self._connection.close()
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            raise RootInUse(f"another devhub serves `{root}`") from error

    def release(self) -> None:
        self._connection.close()
