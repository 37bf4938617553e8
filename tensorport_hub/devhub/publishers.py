"""Trusted publishers: a CI job's identity becomes a token of one repository, for an hour.

Source: "Trusted Publishers" of the Hub's documentation, and `_oidc.py` of huggingface_hub (RFC 8693). A CI
provider signs claims about a job; the Hub compares them, exactly and all of them, with those that a
repository's settings name, and issues a token that may write to this repository alone. A devhub plays the
provider, too: `id_token` signs claims with the devhub's own key, as a provider would with its.

What such a token sees elsewhere is what a stranger sees; its commits are those of a synthetic user.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from tensorport_hub.devhub.accounts import Account, now
from tensorport_hub.devhub.signing import BadSignature, Signer

SECONDS = 3600
USER = "[OIDC]"
_PREFIX = "hf_jwt_"


class Publishers:
    """Who is trusted for which repository. Thread-safe; forgotten when the devhub stops."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self._trusted: list[tuple[str, dict[str, str]]] = []
        self._lock = threading.Lock()

    def trust(self, repo: str, claims: Mapping[str, str]) -> None:
        """A job with all these claims may have a token of this repository."""
        with self._lock:
            self._trusted.append((repo, dict(claims)))

    def id_token(self, claims: Mapping[str, str], audience: str) -> str:
        """What a CI provider gives a job: these claims, signed, for five minutes."""
        return self._signer.token({**claims, "aud": audience}, int(time.time()) + 300)

    def exchange(self, id_token: str, resource: str, audience: str) -> str | None:
        """A token of the repository `resource`; None where nobody with these claims is trusted for it."""
        try:
            claims = self._signer.check_token(id_token)
        except BadSignature:
            return None
        with self._lock:
            trusted = [wanted for repo, wanted in self._trusted if repo == resource]
        if claims.get("aud") != audience or not any(wanted.items() <= claims.items() for wanted in trusted):
            return None
        return _PREFIX + self._signer.token({"repo": resource}, int(time.time()) + SECONDS)

    def by_token(self, token: str) -> Account | None:
        """The synthetic user of a token that `exchange` made."""
        if not token.startswith(_PREFIX):
            return None
        try:
            repo = self._signer.check_token(token.removeprefix(_PREFIX))["repo"]
        except BadSignature:
            return None
        return Account(USER, "write", now(), {repo.partition("/")[0]: "write"}, frozenset(), only=repo)
