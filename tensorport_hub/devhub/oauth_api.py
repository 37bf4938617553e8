"""`/oauth/token`: the exchange of a CI job's identity for a token of one repository (RFC 8693).

Refusals are 400 with an OAuth error, and do not say which check failed.
"""

from __future__ import annotations

from aiohttp import web

from tensorport_hub.devhub.hub import Call
from tensorport_hub.devhub.publishers import SECONDS
from tensorport_hub.devhub.refusals import Refusal

_URN = "urn:ietf:params:oauth"


def exchange(call: Call) -> web.Response:
    said = call.json()
    wanted = {
        "grant_type": f"{_URN}:grant-type:token-exchange",
        "subject_token_type": f"{_URN}:token-type:id_token",
    }
    if any(said.get(key) != value for key, value in wanted.items()):
        raise Refusal(400, "invalid_request")
    subject, resource = str(said.get("subject_token", "")), str(said.get("resource", ""))
    token = call.hub.publishers.exchange(subject, resource, call.hub.endpoint)
    if token is None:
        raise Refusal(400, "invalid_grant")
    return web.json_response(
        {
            "access_token": token,
            "token_type": "bearer",
            "expires_in": SECONDS,
            "issued_token_type": f"{_URN}:token-type:access_token",
        }
    )
