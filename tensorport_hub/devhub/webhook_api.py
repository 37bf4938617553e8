"""A user's webhooks over the API: made, listed, changed, switched off and on, deleted.

Source: `create_webhook`, `list_webhooks`, `update_webhook`, `enable_webhook` and their like in
huggingface_hub's `hf_api.py`. Webhooks that start a job are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from tensorport_hub.devhub import access
from tensorport_hub.devhub.hub import Call
from tensorport_hub.devhub.refusals import Refusal, bad_request
from tensorport_hub.devhub.webhooks import DOMAINS, Webhook

_KEYS = ("url", "watched", "domains", "secret")


def _said(call: Call) -> dict[str, Any]:
    said = call.json()
    if "jobSourceId" in said:
        raise bad_request("A devhub starts no jobs: a webhook needs a url")
    wanted: dict[str, type] = {"url": str, "watched": list, "domains": list, "secret": str}
    for key, kind in wanted.items():
        if not isinstance(said.get(key, kind()), kind):
            raise bad_request(f"`{key}` is malformed")
    if not all(isinstance(item, dict) for item in said.get("watched", [])):
        raise bad_request("`watched` is malformed")
    return {key: said[key] for key in _KEYS if key in said}


def _answer(make: Callable[[], Webhook]) -> web.Response:
    try:
        return web.json_response({"webhook": make().told()})
    except ValueError as error:
        raise bad_request(str(error)) from error


def _of(call: Call) -> Webhook:
    account = access.with_write_token(call)
    for hook in call.hub.webhooks.of(account.name):
        if hook.id == call.params["id"]:
            return hook
    raise Refusal(404, "Webhook not found")


def listing(call: Call) -> web.Response:
    return web.json_response([h.told() for h in call.hub.webhooks.of(access.with_write_token(call).name)])


def create(call: Call) -> web.Response:
    account, said = access.with_write_token(call), _said(call)
    domains = said.get("domains", list(DOMAINS))
    return _answer(
        lambda: call.hub.webhooks.create(
            account.name, said.get("url", ""), said.get("watched", []), domains, said.get("secret")
        )
    )


def details(call: Call) -> web.Response:
    return web.json_response({"webhook": _of(call).told()})


def update(call: Call) -> web.Response:
    hook, said = _of(call), _said(call)
    return _answer(lambda: call.hub.webhooks.change(hook, **said))


def switch(call: Call) -> web.Response:
    hook, disabled = _of(call), call.path.endswith("/disable")
    return _answer(lambda: call.hub.webhooks.change(hook, disabled=disabled))


def delete(call: Call) -> web.Response:
    call.hub.webhooks.delete(_of(call))
    return web.json_response({})
