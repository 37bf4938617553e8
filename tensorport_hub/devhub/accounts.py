"""Accounts: users, organizations, memberships, tokens, and who may do what.

A user owns the namespace of the same name; an organization is a namespace with members in a role
(`read`, `write` or `admin`). A token belongs to a user and is `read` or `write`: with a read token
nothing can be changed, whatever its user may do. Reading the files of a gated repository is granted
user by user; its namespace's members need no grant.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tensorport_hub.devhub.database import Database

ROLES = ("read", "write", "admin")


def now() -> str:
    """This moment, as the Hub writes it: UTC, milliseconds, `Z`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def new_token() -> str:
    """A random token in the Hub's form."""
    letters = string.ascii_letters
    return "hf_" + "".join(secrets.choice(letters) for _ in range(34))


@dataclass(frozen=True)
class Account:
    """Who is asking: a user by one of their tokens; with `only`, one that is good for a single repository."""

    name: str
    token_role: str
    token_created_at: str
    orgs: Mapping[str, str]
    gated_reads: frozenset[str]
    only: str | None = None

    def at(self, repo: str | None) -> Account:
        """What this account is at a repository: a stranger who may read, where the token is another's."""
        if self.only in (None, repo):
            return self
        return Account(self.name, "read", self.token_created_at, {}, frozenset(), self.only)

    @property
    def may_write(self) -> bool:
        return self.token_role == "write"

    def is_in(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.orgs

    def writes_to(self, namespace: str) -> bool:
        """Whether this token may create and change repositories of `namespace`."""
        if not self.may_write:
            return False
        return namespace == self.name or self.orgs.get(namespace) in ("write", "admin")

    def whoami(self) -> dict[str, Any]:
        """The answer of `/api/whoami-v2`."""
        orgs = [
            {
                "type": "org",
                "id": f"org-{org}",
                "name": org,
                "fullname": org,
                "email": None,
                "canPay": False,
                "periodEnd": None,
                "avatarUrl": "",
                "roleInOrg": role,
                "isEnterprise": False,
            }
            for org, role in sorted(self.orgs.items())
        ]
        access = {"displayName": "devhub", "role": self.token_role, "createdAt": self.token_created_at}
        return {
            "type": "user",
            "id": f"user-{self.name}",
            "name": self.name,
            "fullname": self.name,
            "email": f"{self.name}@example.invalid",
            "emailVerified": True,
            "canPay": False,
            "periodEnd": None,
            "isPro": False,
            "avatarUrl": "",
            "orgs": orgs,
            "auth": {"type": "access_token", "accessToken": access},
        }


class Accounts:
    """The accounts of one devhub."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add_user(
        self, name: str, *, orgs: Mapping[str, str] | None = None, can_read_gated: Sequence[str] = ()
    ) -> None:
        """Make the user, or add memberships and grants to an existing one."""
        with self._db.write() as con:
            con.execute("INSERT OR IGNORE INTO namespaces VALUES (?, 'user')", (name,))
            if self.kind(name) != "user":
                raise ValueError(f"`{name}` is an organization, not a user")
            for org, role in (orgs or {}).items():
                if role not in ROLES:
                    raise ValueError(f"role `{role}` in `{org}`: expected one of {', '.join(ROLES)}")
                self.add_org(org)
                con.execute("INSERT OR REPLACE INTO members VALUES (?, ?, ?)", (name, org, role))
            con.executemany(
                "INSERT OR IGNORE INTO gated_readers VALUES (?, ?)", [(name, repo) for repo in can_read_gated]
            )

    def add_org(self, name: str) -> None:
        """Make the namespace where there is none; a user's own namespace is left alone."""
        with self._db.write() as con:
            con.execute("INSERT OR IGNORE INTO namespaces VALUES (?, 'org')", (name,))

    def kind(self, name: str) -> str | None:
        """`user`, `org`, or None for a name that nobody has."""
        with self._db.read() as con:
            row = con.execute("SELECT kind FROM namespaces WHERE name = ?", (name,)).fetchone()
            return None if row is None else str(row["kind"])

    def add_token(self, user: str, role: str = "write", token: str | None = None) -> str:
        if role not in ("read", "write"):
            raise ValueError(f"token role `{role}`: expected `read` or `write`")
        if self.kind(user) != "user":
            raise ValueError(f"no user `{user}`")
        token = token or new_token()
        with self._db.write() as con:
            con.execute(
                "INSERT OR IGNORE INTO tokens (token, user, role, created_at) VALUES (?, ?, ?, ?)",
                (token, user, role, now()),
            )
        return token

    def revoke(self, token: str) -> None:
        with self._db.write() as con:
            con.execute("UPDATE tokens SET revoked = 1 WHERE token = ?", (token,))

    def by_token(self, token: str) -> Account | None:
        with self._db.read() as con:
            row = con.execute("SELECT * FROM tokens WHERE token = ? AND NOT revoked", (token,)).fetchone()
            if row is None:
                return None
            user = str(row["user"])
            orgs = con.execute("SELECT org, role FROM members WHERE user = ?", (user,)).fetchall()
            grants = con.execute("SELECT repo FROM gated_readers WHERE user = ?", (user,)).fetchall()
        return Account(
            user,
            row["role"],
            row["created_at"],
            {org["org"]: org["role"] for org in orgs},
            frozenset(grant["repo"] for grant in grants),
        )
