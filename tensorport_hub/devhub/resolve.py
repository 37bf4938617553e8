"""Files: `/resolve/` on the Hub, and the bytes of LFS files on the CDN.

A regular file is answered at once, with ranges. An LFS file is answered with a 302 to a signed URL
of the CDN origin, GET and HEAD alike; what the client must know of the file is in that answer's
headers (`X-Linked-Size`, `X-Linked-ETag`, `X-Repo-Commit`, and for files in the Xet storage
`X-Xet-Hash` with the link to a token). The CDN knows nothing but the signature.

Source: `get_hf_file_metadata` in huggingface_hub's `file_download.py`, and the Hub's own answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from mimetypes import guess_type
from urllib.parse import quote

from aiohttp import web

from tensorport_hub.devhub import access
from tensorport_hub.devhub.blobs import Blob
from tensorport_hub.devhub.bodies import BlobAnswer
from tensorport_hub.devhub.hub import HUB, Call, Hub
from tensorport_hub.devhub.refusals import Refusal, entry_not_found
from tensorport_hub.devhub.repos import Repo
from tensorport_hub.devhub.signing import BadSignature
from tensorport_hub.devhub.trees import Entry


def locate(call: Call) -> tuple[Repo, str, Entry, Blob | None]:
    """(repository, commit id, entry, its bytes if they are served here) of a `/resolve/` request."""
    repo = access.repo_of(call)
    commit = access.revision_of(call, repo)
    access.pass_gate(call, repo)
    entry = call.hub.history.snapshot(commit).files.get(call.params["path"])
    if entry is None:
        raise entry_not_found("Entry not found", commit.oid)
    if entry.lfs:
        return repo, commit.oid, entry, None
    blob = call.hub.blobs.find(entry.sha256)
    if blob is None:
        raise Refusal(500, f"the bytes of `{entry.path}` are gone")
    return repo, commit.oid, entry, blob


def answer(call: Call, request: web.Request) -> web.StreamResponse:
    """The answer to a `/resolve/` request."""
    repo, commit, entry, blob = locate(call)
    name = entry.path.rpartition("/")[2]
    headers = {
        "X-Repo-Commit": commit,
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(name)}; filename=\"{_ascii(name)}\"",
        "Content-Type": guess_type(name)[0] or "text/plain; charset=utf-8",
    }
    if blob is not None:
        return BlobAnswer.to(request, blob, headers, entry.oid)
    headers |= {
        "Accept-Ranges": "bytes",
        "Location": cdn_url(call, repo, entry),
        "X-Linked-Size": str(entry.size),
        "X-Linked-ETag": f'"{entry.sha256}"',
        **_xet_headers(call, repo, commit, entry),
    }
    return web.Response(status=302, headers=headers)


def _ascii(name: str) -> str:
    return name.encode("ascii", "replace").decode().replace('"', "'")


def cdn_url(call: Call, repo: Repo, entry: Entry) -> str:
    """A signed, expiring URL of an LFS file's bytes on the CDN."""
    path = f"/lfs/{repo.prefix}{repo.name}/{entry.sha256}/{entry.path}"
    return call.hub.signer.url(call.hub.cdn, "GET", path, call.hub.settings.url_seconds)


def _xet_headers(call: Call, repo: Repo, commit: str, entry: Entry) -> dict[str, str]:
    xet_hash = call.hub.xet_hash(entry.sha256)
    if xet_hash is None:
        return {}
    token = f"{call.hub.endpoint}/api/{repo.kind}s/{repo.name}/xet-read-token/{commit}"
    return {"X-Xet-Hash": xet_hash, "Link": f'<{token}>; rel="xet-auth"'}


def check_signed(request: web.Request) -> None:
    """Refuse a request whose URL was not signed here, or is over."""
    check_url(request.app[HUB], request.method, request.path, request.query)


def check_url(hub: Hub, method: str, path: str, query: Mapping[str, str]) -> None:
    """Refuse a URL that was not signed here, or is over."""
    try:
        hub.signer.check_url(method, path, query)
    except BadSignature as bad:
        raise Refusal(403, f"AccessDenied: {bad}") from bad


async def lfs_file(request: web.Request) -> web.StreamResponse:
    """The CDN: the bytes of an LFS file, to whoever holds a signed URL."""
    check_signed(request)
    sha256 = request.match_info["sha256"]
    blob = request.app[HUB].blobs.find(sha256)
    if blob is None:
        raise Refusal(404, "NoSuchKey")
    name = request.match_info["path"].rpartition("/")[2]
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(name)}; filename=\"{_ascii(name)}\";",
    }
    return BlobAnswer.to(request, blob, headers, sha256)
