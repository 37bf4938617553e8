"""The windows of an account, as a Hub states them on any answer: `RateLimit` and `RateLimit-Policy`.

Source: the Hub's documentation of rate limits, and the draft `draft-ietf-httpapi-ratelimit-headers`. Asking
costs one request of each kind. What a Hub does not state is what its documentation says of a free account.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from tensorport_hub.core.forecast import FREE, Window
from tensorport_hub.edge.http import Http
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.errors import SourceError, TensorportError

_LEFT = re.compile(r'"(?P<kind>\w+)"\s*;.*?\br=(?P<left>\d{1,12})')
_POLICY = re.compile(r"\bq=(?P<most>\d{1,12}).*?\bw=(?P<seconds>\d{1,9})")


def windows(client: HubClient, repo: str, *, read_seconds: float) -> tuple[Window, ...]:
    """How many requests the account may make, by kind; `repo` is any repository that it may read."""
    http = Http(read_seconds=read_seconds)
    try:
        found = [
            _asked(http, client, "GET", f"{client.endpoint}/api/models/{repo}/refs"),
            _asked(http, client, "HEAD", f"{client.endpoint}/{repo}/resolve/main/README.md"),
        ]
    finally:
        http.close()
    stated = {window.kind: window for window in found if window is not None}
    return tuple(stated.get(window.kind, window) for window in FREE)


def _asked(http: Http, client: HubClient, method: str, url: str) -> Window | None:
    try:
        answer = http.request(method, url, refusal=SourceError, headers=client.headers())
        answer.drain_conn()
        answer.release_conn()
    except TensorportError:
        return None
    return stated(answer.headers)


def stated(headers: Mapping[str, str]) -> Window | None:
    """The window that an answer speaks of."""
    left, policy = (
        _LEFT.search(headers.get("RateLimit", "")),
        _POLICY.search(headers.get("RateLimit-Policy", "")),
    )
    if left is None or policy is None or not int(policy["most"]):
        return None
    return Window(left["kind"], int(policy["most"]), int(left["left"]), int(policy["seconds"]), True)
