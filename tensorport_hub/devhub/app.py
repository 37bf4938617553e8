"""The two applications: the Hub's routes, and the CDN's.

The table is the index of what is served. Answers of the API are plain functions of a `Call`; they run
in threads, with the request's body in a file that stays in memory while it is small. Only what streams
(`/resolve/`, uploads to the CDN) is asynchronous.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from typing import IO

from aiohttp import web
from aiohttp.typedefs import Handler

from tensorport_hub.devhub import (
    cards,
    commit_api,
    discussion_api,
    info_api,
    jobs,
    lfs,
    oauth_api,
    repo_api,
    resolve,
    webhook_api,
    xet_access,
)
from tensorport_hub.devhub.bodies import uploaded
from tensorport_hub.devhub.hub import HUB, Call, Hub, account_of
from tensorport_hub.devhub.traffic import Door, door
from tensorport_hub.devhub.xet import Cas

Answer = Callable[[Call], web.Response]
IN_MEMORY = 8 << 20

REPO = "/api/{kind:models|datasets|spaces}/{ns}/{name}"
WEBHOOK = "/api/settings/webhooks/{id:[0-9a-f]+}"
JOBS = "/api/{when:jobs|scheduled-jobs}/{ns}"

ROUTES: list[tuple[str, str, Answer]] = [
    ("GET", "/api/whoami-v2", repo_api.whoami),
    ("POST", "/oauth/token", oauth_api.exchange),
    ("POST", "/api/validate-yaml", cards.validate),
    ("POST", "/api/repos/create", repo_api.create),
    ("DELETE", "/api/repos/delete", repo_api.delete),
    ("POST", "/api/repos/move", repo_api.move),
    ("GET", "/api/settings/webhooks", webhook_api.listing),
    ("POST", "/api/settings/webhooks", webhook_api.create),
    ("GET", WEBHOOK, webhook_api.details),
    ("POST", WEBHOOK, webhook_api.update),
    ("DELETE", WEBHOOK, webhook_api.delete),
    ("POST", WEBHOOK + "/{switch:enable|disable}", webhook_api.switch),
    ("POST", JOBS, jobs.create),
    ("GET", JOBS, jobs.listing),
    ("GET", JOBS + "/{id}", jobs.details),
    ("DELETE", "/api/scheduled-jobs/{ns}/{id}", jobs.delete),
    ("POST", "/api/complete_multipart/{place:.+}", lfs.complete),
    ("GET", "/api/{kind:models|datasets|spaces}", info_api.list_repos),
    ("GET", REPO, info_api.repo_info),
    ("GET", REPO + "/revision/{rev}", info_api.repo_info),
    ("GET", REPO + "/auth-check", repo_api.auth_check),
    ("GET", REPO + "/auth-check/write", repo_api.auth_check),
    ("PUT", REPO + "/settings", repo_api.settings),
    ("GET", REPO + "/tree/{rev}", info_api.tree),
    ("GET", REPO + "/tree/{rev}/{path:.*}", info_api.tree),
    ("POST", REPO + "/paths-info/{rev}", info_api.paths_info),
    ("GET", REPO + "/commits/{rev}", info_api.commits),
    ("GET", REPO + "/refs", commit_api.refs),
    ("POST", REPO + "/preupload/{rev}", commit_api.preupload),
    ("POST", REPO + "/commit/{rev}", commit_api.commit),
    ("POST", REPO + "/branch/{ref}", commit_api.create_branch),
    ("DELETE", REPO + "/branch/{ref}", commit_api.delete_branch),
    ("POST", REPO + "/tag/{rev}", commit_api.create_tag),
    ("DELETE", REPO + "/tag/{ref}", commit_api.delete_tag),
    ("POST", REPO + "/super-squash/{rev}", commit_api.super_squash),
    ("POST", REPO + "/lfs-files/duplicate", commit_api.duplicate_lfs_files),
    ("GET", REPO + "/xet-{scope:read|write}-token/{rev}", xet_access.token),
    ("GET", REPO + "/discussions", discussion_api.listing),
    ("POST", REPO + "/discussions", discussion_api.create),
    ("GET", REPO + "/discussions/{num:[0-9]{1,9}}", discussion_api.details),
    ("POST", REPO + "/discussions/{num:[0-9]{1,9}}/comment", discussion_api.comment),
    ("POST", REPO + "/discussions/{num:[0-9]{1,9}}/comment/{event}/edit", discussion_api.edit_comment),
    ("POST", REPO + "/discussions/{num:[0-9]{1,9}}/comment/{event}/hide", discussion_api.hide_comment),
    ("POST", REPO + "/discussions/{num:[0-9]{1,9}}/title", discussion_api.rename),
    ("POST", REPO + "/discussions/{num:[0-9]{1,9}}/status", discussion_api.change_status),
    ("POST", REPO + "/discussions/{num:[0-9]{1,9}}/merge", discussion_api.merge),
    ("POST", "/{ns}/{name}.git/info/lfs/objects/batch", lfs.batch),
    ("POST", "/{ns}/{name}.git/info/lfs/objects/verify", lfs.verify),
    ("POST", "/{kind:datasets|spaces}/{ns}/{name}.git/info/lfs/objects/batch", lfs.batch),
    ("POST", "/{kind:datasets|spaces}/{ns}/{name}.git/info/lfs/objects/verify", lfs.verify),
]


def hub_app(hub: Hub) -> web.Application:
    """The Hub's origin."""
    keeper = Door("hub", hub.traffic, hub.faults, hub.signer, hub.limits)
    app = web.Application(middlewares=[door(keeper)], client_max_size=0)
    app[HUB] = hub
    for method, path, answer in ROUTES:
        # A route of GET alone: the API has no HEAD, and `/resolve/` answers both in one place.
        app.router.add_route(method, path, _in_thread(answer))
    for prefix in ("", "/{kind:datasets|spaces}"):
        path = prefix + "/{ns}/{name}/resolve/{rev}/{path:.+}"
        app.router.add_route("GET", path, _resolve)
        app.router.add_route("HEAD", path, _resolve)
    return app


def cdn_app(hub: Hub) -> web.Application:
    """The CDN's origin: LFS objects in and out by signed URLs, and the Xet storage."""
    keeper = Door("cdn", hub.traffic, hub.faults, hub.signer, None)
    app = web.Application(middlewares=[door(keeper)], client_max_size=0)
    app[HUB] = hub
    for prefix in ("", "/{kind:datasets|spaces}"):
        place = prefix + "/{ns}/{name}/{sha256:[0-9a-f]{64}}"
        app.router.add_route("GET", "/lfs" + place + "/{path:.+}", resolve.lfs_file)
        app.router.add_route("HEAD", "/lfs" + place + "/{path:.+}", resolve.lfs_file)
        app.router.add_route("PUT", "/lfs" + place, lfs.put_object)
        app.router.add_route("PUT", "/lfs-parts" + place + "/{number:[0-9]{1,9}}", lfs.put_part)
    cas = xet_access.open_storage(hub)
    if cas is not None:
        app.add_routes(cas.routes())
        app.on_cleanup.append(_closing(cas))
    return app


def _closing(cas: Cas) -> Callable[[web.Application], Awaitable[None]]:
    async def close(app: web.Application) -> None:
        await asyncio.to_thread(cas.close)

    return close


def _call(request: web.Request, body: IO[bytes] | None) -> Call:
    hub = request.app[HUB]
    account = account_of(hub, request.headers.get("Authorization"))
    named = request.match_info
    return Call(
        hub,
        account and account.at(f"{named['ns']}/{named['name']}" if "name" in named else None),
        request.path,
        request.path_qs,
        request.match_info,
        request.query,
        request.content_type,
        body,
    )


def _in_thread(answer: Answer) -> Handler:
    """The handler that reads the whole body and lets a thread answer."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if not request.can_read_body:
            return await asyncio.to_thread(lambda: answer(_call(request, None)))
        with tempfile.SpooledTemporaryFile(IN_MEMORY) as body:
            async for block in uploaded(request, None):
                body.write(block)
            body.seek(0)
            return await asyncio.to_thread(lambda: answer(_call(request, body)))

    return handle


async def _resolve(request: web.Request) -> web.StreamResponse:
    return await asyncio.to_thread(lambda: resolve.answer(_call(request, None), request))
