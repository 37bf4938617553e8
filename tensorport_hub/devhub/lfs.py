"""LFS uploads: the batch API on the Hub, signed PUTs on the CDN, and what makes them whole.

An object this repository was already given has no `actions`. A small one is PUT at once (`basic`);
above `multipart_above` the action's header lists one signed URL a part, each PUT answers an ETag,
and the completion call must name every part with its ETag. Bytes are hashed as they come in: a PUT
of other bytes than the announced sha256 is refused and leaves nothing behind.

Source: the git-LFS batch specification, and `lfs_upload` in huggingface_hub's `lfs.py`.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from aiohttp import web

from tensorport_hub.devhub import access
from tensorport_hub.devhub.blobs import Incoming, WrongDigest
from tensorport_hub.devhub.bodies import uploaded, write_behind
from tensorport_hub.devhub.hub import HUB, Call, Hub
from tensorport_hub.devhub.multipart import UnknownUpload, WrongPart
from tensorport_hub.devhub.refusals import Refusal, bad_request
from tensorport_hub.devhub.repos import Repo
from tensorport_hub.devhub.resolve import check_signed, check_url

OID = re.compile(r"[0-9a-f]{64}")
JSON = "application/vnd.git-lfs+json"


def batch(call: Call) -> web.Response:
    """Say of each object how it is uploaded or downloaded."""
    repo = access.repo_of(call)
    said = call.json()
    operation, ref = said.get("operation"), (said.get("ref") or {}).get("name")
    if operation == "download":
        access.pass_gate(call, repo)
    elif operation == "upload":
        access.pusher(call, repo, ref, create_pr=False)
    else:
        raise bad_request(f"unknown operation `{operation}`")
    offered = said.get("transfers") or ["basic"]
    multipart = "multipart" in offered
    describe = _download if operation == "download" else _upload
    objects = [describe(call, repo, row, multipart) for row in said.get("objects", [])]
    parted = any("chunk_size" in _upload_header(row) for row in objects)
    told = {"transfer": "multipart" if parted else "basic", "objects": objects, "hash_algo": "sha256"}
    return web.json_response(told, content_type=JSON)


def _upload_header(row: dict[str, Any]) -> dict[str, str]:
    header: dict[str, str] = row.get("actions", {}).get("upload", {}).get("header", {})
    return header


def _refused(row: dict[str, Any], code: int, message: str) -> dict[str, Any]:
    oid, size = str(row.get("oid", "")), row.get("size")
    told_size = size if isinstance(size, int) else 0
    return {"oid": oid, "size": told_size, "error": {"code": code, "message": message}}


def _download(call: Call, repo: Repo, row: dict[str, Any], multipart: bool) -> dict[str, Any]:
    oid = str(row.get("oid", ""))
    blob = call.hub.bytes_of(repo, oid)
    if blob is None:
        return _refused(row, 404, "Object does not exist on the server")
    path = f"/lfs/{repo.prefix}{repo.name}/{oid}/{oid}"
    href = call.hub.signer.url(call.hub.cdn, "GET", path, call.hub.settings.url_seconds)
    return {"oid": oid, "size": blob.size, "authenticated": True, "actions": {"download": {"href": href}}}


def _upload(call: Call, repo: Repo, row: dict[str, Any], multipart: bool) -> dict[str, Any]:
    hub = call.hub
    oid, size = str(row.get("oid", "")), row.get("size")
    if not OID.fullmatch(oid) or not isinstance(size, int) or size < 0:
        return _refused(row, 422, "expected a sha256 oid and a size")
    told: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
    blob = hub.bytes_of(repo, oid)
    if blob is not None:
        return told if blob.size == size else _refused(row, 422, f"the object has {blob.size} bytes")
    seconds = hub.settings.url_seconds
    place = f"{repo.prefix}{repo.name}/{oid}"
    claims = {"repo": str(repo.id), "size": str(size)}
    if multipart and size > hub.settings.multipart_above:
        upload = _multipart(hub, place, claims, oid, size)
    else:
        upload = {"href": hub.signer.url(hub.cdn, "PUT", f"/lfs/{place}", seconds, **claims)}
    verify = {"href": f"{hub.endpoint}/{repo.prefix}{repo.name}.git/info/lfs/objects/verify"}
    told["actions"] = {"upload": upload, "verify": verify}
    return told


def _multipart(hub: Hub, place: str, claims: dict[str, str], oid: str, size: int) -> dict[str, Any]:
    """The upload action of an object in parts."""
    seconds, part_size = hub.settings.url_seconds, hub.settings.part_size
    upload_id, upload = hub.uploads.open(oid, size, part_size)
    header = {"chunk_size": str(part_size)}
    for number in range(1, upload.count + 1):
        path = f"/lfs-parts/{place}/{number}"
        header[f"{number:05}"] = hub.signer.url(hub.cdn, "PUT", path, seconds, upload=upload_id)
    completion = f"/api/complete_multipart/{place}"
    href = hub.signer.url(hub.endpoint, "POST", completion, seconds, upload=upload_id, **claims)
    return {"href": href, "header": header}


async def put_object(request: web.Request) -> web.StreamResponse:
    """The CDN: a whole object."""
    check_signed(request)
    hub = request.app[HUB]
    oid, size = request.match_info["sha256"], int(request.query["size"])
    if request.content_length is not None and request.content_length != size:
        raise bad_request(f"IncompleteBody: {request.content_length} bytes announced, expected {size}")
    incoming = hub.blobs.objects.receive(limit=size)
    try:
        await write_behind(uploaded(request, hub.faults.of(request)), incoming.write)
        await asyncio.to_thread(_keep, hub, incoming, oid, int(request.query["repo"]))
    except WrongDigest as wrong:
        raise bad_request(f"BadDigest: {wrong}") from wrong
    finally:
        incoming.abort()
    return web.Response(headers={"ETag": f'"{oid}"'})


def _keep(hub: Hub, incoming: Incoming, oid: str, repo: int) -> None:
    blob = incoming.finish(oid)
    hub.repos.own_object(repo, oid, blob.size)


def verify(call: Call) -> web.Response:
    """Whether an uploaded object is here, with the announced size."""
    repo = access.repo_of(call)
    access.with_write_token(call)
    said = call.json()
    blob = call.hub.bytes_of(repo, str(said.get("oid", "")))
    if blob is None:
        raise Refusal(404, "Object does not exist on the server")
    if blob.size != said.get("size"):
        raise Refusal(422, f"the object has {blob.size} bytes, expected {said.get('size')}")
    return web.json_response({}, content_type=JSON)


async def put_part(request: web.Request) -> web.StreamResponse:
    """The CDN: one part of an object."""
    check_signed(request)
    hub = request.app[HUB]
    try:
        upload = hub.uploads.find(request.query["upload"])
        part = upload.part(int(request.match_info["number"]))
        try:
            await write_behind(uploaded(request, hub.faults.of(request)), part.write)
            etag = part.finish()
        finally:
            part.close()
    except UnknownUpload as unknown:
        raise Refusal(404, "NoSuchUpload") from unknown
    except WrongPart as wrong:
        raise bad_request(f"InvalidPart: {wrong}") from wrong
    return web.Response(headers={"ETag": f'"{etag}"'})


def complete(call: Call) -> web.Response:
    """The Hub: all parts are there. The client sends no token here: the URL is signed."""
    check_url(call.hub, "POST", call.path, call.query)
    said = call.json()
    try:
        named = {int(part["partNumber"]): str(part["etag"]).strip('"') for part in said["parts"]}
        upload = call.hub.uploads.complete(call.query["upload"], named)
    except UnknownUpload as unknown:
        raise Refusal(404, "NoSuchUpload") from unknown
    except WrongDigest as wrong:
        raise bad_request(f"BadDigest: {wrong}") from wrong
    except (WrongPart, KeyError, TypeError) as wrong:
        raise bad_request(f"InvalidPart: {wrong}") from wrong
    call.hub.repos.own_object(int(call.query["repo"]), upload.oid, upload.size)
    return web.json_response({"success": True})
