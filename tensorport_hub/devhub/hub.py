"""One devhub's parts, and one request's view of them.

`Hub` holds everything that lives as long as a root is served. A `Call` is one request as the
answering functions see it: who asks, what, and with which body; those functions are plain and
synchronous and run in threads (`app`), because they read SQLite and files.
"""

from __future__ import annotations

import json
import secrets
import threading
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs

from aiohttp import web

from tensorport_hub.devhub.accounts import Account, Accounts
from tensorport_hub.devhub.blobs import Blob, Blobs, ObjectStore
from tensorport_hub.devhub.database import Database
from tensorport_hub.devhub.discussions import Discussions
from tensorport_hub.devhub.faults import Faults
from tensorport_hub.devhub.history import History
from tensorport_hub.devhub.limits import Limits
from tensorport_hub.devhub.multipart import Uploads
from tensorport_hub.devhub.publishers import Publishers
from tensorport_hub.devhub.refusals import Refusal, bad_request
from tensorport_hub.devhub.repos import Repo, Repos
from tensorport_hub.devhub.signing import Signer
from tensorport_hub.devhub.synthetic import Synthetic
from tensorport_hub.devhub.traffic import Traffic
from tensorport_hub.devhub.webhooks import Webhooks


@dataclass(frozen=True)
class Settings:
    """What the caller of `DevHub` chose."""

    xet: str = "http"
    url_seconds: float = 3600.0
    multipart_above: int = 5_000_000_000
    part_size: int = 64 << 20
    tree_page: int = 1000
    rate_limits: Mapping[str, int] = field(default_factory=dict)
    rate_window: float = 300.0
    drop_above: int | None = None

    def __post_init__(self) -> None:
        if self.xet not in ("http", "local", "off"):
            raise ValueError(f"xet `{self.xet}`: expected `http`, `local` or `off`")


class Hub:
    """The stores and services of one root."""

    def __init__(self, root: Path, settings: Settings) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root.resolve()
        self.settings = settings
        self.endpoint = ""
        self.cdn = ""
        self.db = Database(self.root / "hub.sqlite")
        self.accounts = Accounts(self.db)
        self.repos = Repos(self.db)
        self.history = History(self.db)
        self.discussions = Discussions(self.db)
        self.webhooks = Webhooks(self.db)
        self.blobs = Blobs(ObjectStore(self.root / "objects", drop_above=settings.drop_above))
        self.synthetic = Synthetic()
        self.blobs.add(self.synthetic)
        self.uploads = Uploads(self.blobs.objects)
        self.signer = Signer(self.db.remembered("signing key", secrets.token_hex(32)))
        self.publishers = Publishers(self.signer)
        self.faults = Faults()
        self.limits = Limits(settings.rate_limits, settings.rate_window)
        self.traffic = Traffic()
        self.committing = threading.Lock()  # one commit at a time, so that none meets a moving head

    def bytes_of(self, repo: Repo, sha256: str) -> Blob | None:
        """LFS bytes that this repository may name: given to it, or published in the Xet storage."""
        if self.repos.owns_object(repo, sha256) or self.blobs.xet_hash(sha256) is not None:
            return self.blobs.find(sha256)
        return None

    def xet_hash(self, sha256: str) -> str | None:
        return None if self.settings.xet == "off" else self.blobs.xet_hash(sha256)

    def close(self) -> None:
        self.db.close()


HUB = web.AppKey("hub", Hub)


@dataclass(frozen=True)
class Call:
    """One request to the Hub's API. `body` is None where there was none."""

    hub: Hub
    account: Account | None
    path: str
    target: str  # path and query as they came, still quoted
    params: Mapping[str, str]
    query: Mapping[str, str]
    content_type: str = ""
    body: IO[bytes] | None = None

    @property
    def anonymous(self) -> bool:
        return self.account is None

    @property
    def kind(self) -> str:
        """The repository kind in the URL: `models` in the API, nothing in file URLs of models."""
        return self.params.get("kind", "models").rstrip("s")

    @property
    def repo_name(self) -> str:
        return f"{self.params['ns']}/{self.params['name']}"

    def flag(self, name: str) -> bool:
        return self.query.get(name, "").lower() in ("1", "true", "yes")

    def number(self, name: str, default: int) -> int:
        """A count in the query."""
        value = self.query.get(name, str(default))
        if not value.isdecimal() or len(value) > 9:
            raise bad_request(f"`{name}` must be a number")
        return int(value)

    def every(self, name: str) -> list[str]:
        """All values of a query parameter that may come several times."""
        return parse_qs(self.target.partition("?")[2]).get(name, [])

    def text(self) -> str:
        return self.body.read().decode(errors="replace") if self.body is not None else ""

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; no body is an empty one."""
        data = self.text()
        if not data:
            return {}
        try:
            said = json.loads(data)
        except ValueError as error:
            raise bad_request("Invalid JSON body") from error
        if not isinstance(said, dict):
            raise bad_request("Expected a JSON object")
        return said


def account_of(hub: Hub, authorization: str | None) -> Account | None:
    """Who the Authorization header names; nobody without one, a refusal with a wrong one."""
    if authorization is None:
        return None
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() == "basic":
        try:
            secret = b64decode(secret).decode().partition(":")[2]
        except ValueError:
            secret = ""
    account = hub.accounts.by_token(secret.strip()) or hub.publishers.by_token(secret.strip())
    if account is None:
        raise Refusal(401, "Invalid credentials in Authorization header")
    return account
