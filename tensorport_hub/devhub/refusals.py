"""What the devhub says when it says no.

A `Refusal` is raised anywhere below a request and becomes the Hub's answer: a JSON body
`{"error": ...}`, the same words in `X-Error-Message`, and `X-Error-Code` where the client's typed
exceptions need it (`RepoNotFound`, `RevisionNotFound`, `EntryNotFound`, `GatedRepo`).

Source: `hf_raise_for_status` in huggingface_hub's `utils/_http.py`, which reads exactly these; the
Hub answers 401 to a stranger without a token and 404 to one with a token, so that a private
repository and a missing one look the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web


class Refusal(Exception):
    """An HTTP answer of 3xx to 5xx, with the words and the code that the client reads."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})
        self.fields = dict(fields or {})

    def response(self) -> web.Response:
        words = "".join(char if char.isprintable() else " " for char in self.message)
        headers = {"X-Error-Message": " ".join(words.split()), **self.headers}
        if self.code is not None:
            headers["X-Error-Code"] = self.code
        return web.json_response({"error": self.message, **self.fields}, status=self.status, headers=headers)


def bad_request(message: str) -> Refusal:
    """The request makes no sense (400)."""
    return Refusal(400, message)


def forbidden(message: str) -> Refusal:
    """Known, but not allowed (403)."""
    return Refusal(403, message)


def unauthorized(message: str = "Invalid username or password.") -> Refusal:
    """Unknown, or with a bad token (401)."""
    return Refusal(401, message)


def repo_not_found(*, anonymous: bool) -> Refusal:
    """Missing, or private and not yours: the two are told apart by nobody."""
    if anonymous:
        return Refusal(401, "Invalid username or password.", code="RepoNotFound")
    return Refusal(404, "Repository not found", code="RepoNotFound")


def revision_not_found(revision: str) -> Refusal:
    """No such branch, tag or commit."""
    return Refusal(404, f"Invalid rev id: {revision}", code="RevisionNotFound")


def entry_not_found(message: str, commit: str | None = None) -> Refusal:
    """`commit` goes into `X-Repo-Commit`: the client caches that this commit has no such file."""
    headers = {"X-Repo-Commit": commit} if commit else {}
    return Refusal(404, message, code="EntryNotFound", headers=headers)


def gated(repo: str, *, anonymous: bool) -> Refusal:
    """Readable after access was granted only."""
    if anonymous:
        words = f"Access to {repo} is restricted. You must be authenticated to access it. Please log in."
        return Refusal(401, words, code="GatedRepo")
    words = f"Access to {repo} is restricted and you are not in the authorized list. Ask for access first."
    return Refusal(403, words, code="GatedRepo")
