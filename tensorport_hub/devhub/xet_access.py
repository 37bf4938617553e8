"""The way into the Xet storage: which storage this devhub has, and the tokens for it.

With `http` the storage is the devhub's own, on the CDN origin under `/cas/`; with `local` it is
hf_xet's store in a directory, which the client opens by itself (`local://`); with `off` there is
none and the token endpoint answers 404. A token is signed for one repository and direction, and
expires; the Hub's own token never reaches the storage.

Source: `xet_connection_info_refresh_url` and `parse_xet_connection_info_from_headers` in
huggingface_hub's `utils/_xet.py`: downloads read the headers, uploads the JSON.
"""

from __future__ import annotations

import time
from pathlib import Path

from aiohttp import web

from tensorport_hub.devhub import access
from tensorport_hub.devhub.hub import Call, Hub
from tensorport_hub.devhub.refusals import Refusal
from tensorport_hub.devhub.signing import BadSignature
from tensorport_hub.devhub.xet import Cas, LocalCas

TOKEN_SECONDS = 3600


def open_storage(hub: Hub) -> Cas | None:
    """Attach the Xet storage of this root; returns the one that has routes."""
    if hub.settings.xet == "local":
        hub.blobs.add(LocalCas(_local_root(hub)))
        return None
    if hub.settings.xet == "off":
        return None

    def valid(token: str) -> bool:
        try:
            hub.signer.check_token(token)
        except BadSignature:
            return False
        return True

    cas = Cas(hub.root / "xet" / "http", base_url=lambda: hub.cdn, check_token=valid)
    hub.blobs.add(cas)
    return cas


def _local_root(hub: Hub) -> Path:
    """Where the client's own store lies; it wants the directory to exist."""
    root = hub.root / "xet" / "local"
    root.mkdir(parents=True, exist_ok=True)
    return root


def token(call: Call) -> web.Response:
    """`xet-read-token` and `xet-write-token`."""
    hub = call.hub
    repo = access.repo_of(call)
    scope, revision = call.params["scope"], call.params["rev"]
    if hub.settings.xet == "off":
        raise Refusal(404, "Xet is not enabled for this repository")
    if scope == "read":
        access.revision_of(call, repo)
        access.pass_gate(call, repo)
    else:
        access.pusher(call, repo, revision, create_pr=call.flag("create_pr"))
    expires = int(time.time()) + TOKEN_SECONDS
    secret = hub.signer.token({"repo": repo.name, "scope": scope}, expires)
    url = f"{hub.cdn}/cas" if hub.settings.xet == "http" else f"local://{_local_root(hub)}"
    headers = {
        "X-Xet-Cas-Url": url,
        "X-Xet-Access-Token": secret,
        "X-Xet-Token-Expiration": str(expires),
    }
    return web.json_response({"accessToken": secret, "exp": expires, "casUrl": url}, headers=headers)
