"""Signatures: the signed, expiring URLs of the CDN origin and the tokens of the Xet storage.

A signed URL carries everything that its origin must know (what, until when, for whom), and an HMAC
over it: the CDN never asks the Hub and never sees the Hub's token. Each URL has a nonce of its own,
so that one URL can be declared dead (the `expire` fault) while the next one for the same file works.

The key is made at the first start and kept with the root: URLs outlive a restart, as on the Hub.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import secrets
import threading
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from urllib.parse import quote, urlencode


class BadSignature(Exception):
    """A URL or a token that was not signed here, was changed, or has expired."""


class Signer:
    """Signs and checks. Thread-safe."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()
        self._counter = itertools.count()
        self._prefix = secrets.token_hex(4)
        self._dead: set[str] = set()
        self._lock = threading.Lock()

    def _mac(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()

    def url(self, origin: str, method: str, path: str, seconds: float, **claims: str) -> str:
        """A URL for `method` on `origin` + `path` that carries `claims` and dies after `seconds`."""
        query = {
            **claims,
            "Expires": f"{time.time() + seconds:.3f}",
            "Nonce": f"{self._prefix}-{next(self._counter)}",
        }
        query["Signature"] = self._mac(self._canonical(method, path, query))
        return f"{origin}{quote(path)}?{urlencode(query)}"

    def check_url(self, method: str, path: str, query: Mapping[str, str]) -> None:
        """Raise `BadSignature` unless this request was signed here and is still in time."""
        claims = {name: value for name, value in query.items() if name != "Signature"}
        expected = self._mac(self._canonical(method, path, claims))
        if not hmac.compare_digest(expected.encode(), query.get("Signature", "").encode()):
            raise BadSignature("SignatureDoesNotMatch")
        with self._lock:
            dead = claims["Nonce"] in self._dead
        if dead or float(claims["Expires"]) < time.time():
            raise BadSignature("Request has expired")

    def kill_url(self, query: Mapping[str, str]) -> None:
        """From now on this URL answers as if its time were over."""
        with self._lock:
            self._dead.add(query.get("Nonce", ""))

    @staticmethod
    def _canonical(method: str, path: str, query: Mapping[str, str]) -> str:
        # A URL signed for GET serves HEAD as well, as S3's and CloudFront's do for a CDN's clients.
        verb = "GET" if method == "HEAD" else method
        return json.dumps([verb, path, sorted(query.items())])

    def token(self, claims: Mapping[str, str], expires: int) -> str:
        """A bearer token that carries `claims` until the Unix time `expires`."""
        text = json.dumps({**claims, "exp": expires}, sort_keys=True)
        return f"xet_{urlsafe_b64encode(text.encode()).decode().rstrip('=')}.{self._mac(text)}"

    def check_token(self, token: str) -> dict[str, str]:
        """The token's claims, or `BadSignature`."""
        body, _, mac = token.removeprefix("xet_").partition(".")
        try:
            text = urlsafe_b64decode(body + "=" * (-len(body) % 4)).decode()
        except ValueError as error:
            raise BadSignature("not a token") from error
        if not hmac.compare_digest(self._mac(text).encode(), mac.encode()):
            raise BadSignature("token was not signed here")
        claims = json.loads(text)
        if claims["exp"] < time.time():
            raise BadSignature("token has expired")
        return {name: str(value) for name, value in claims.items()}
