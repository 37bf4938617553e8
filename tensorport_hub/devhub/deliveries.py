"""Deliveries: what webhooks are sent, by a thread of its own, and the book of it.

Refs that move leave a row in the database, in the transaction of the commit (`history`); so pushes of another
process (`devhub add`) are told too. The thread takes these rows in order and posts each to the webhooks that
want it, once: as on the Hub, what fails is not sent again. No answer is waited for longer than `SECONDS`, no
redirect is followed, and of more than `history.MOVES` rows that wait the oldest are dropped.
"""

from __future__ import annotations

import http.client
import json
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tensorport_hub.devhub.hub import Hub
from tensorport_hub.devhub.webhooks import Webhook, check_url

SECONDS = 5.0
A_LOOK = 0.1
KEPT = 1000


@dataclass(frozen=True)
class Delivery:
    """One POST: to whom, what, and the answer. `status` 0: none came, `error` says why."""

    webhook: str
    url: str
    payload: Mapping[str, Any]
    status: int
    error: str


class Deliveries:
    """The thread and its book."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._book: deque[Delivery] = deque(maxlen=KEPT)
        self._over = threading.Event()
        hub.history.moves()  # nobody was told of these while the devhub was down
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)
        self._thread.start()

    def sent(self) -> list[Delivery]:
        """The last ones, oldest first."""
        return list(self._book)

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(A_LOOK):
            for move in self._hub.history.moves():
                repo = self._hub.repos.by_id(move.repo)
                for hook in self._hub.webhooks.wanting(repo) if repo is not None else []:
                    if self._over.is_set():
                        return
                    payload = hook.payload(self._hub.endpoint, repo, move) if repo is not None else {}
                    status, error = _post(hook, payload)
                    self._book.append(Delivery(hook.id, hook.url, payload, status, error))


def _post(hook: Webhook, payload: Mapping[str, Any]) -> tuple[int, str]:
    headers = {"Content-Type": "application/json", "User-Agent": "tensorport-devhub"}
    if hook.secret is not None:
        headers["X-Webhook-Secret"] = hook.secret
    check_url(hook.url)
    parts = urlsplit(hook.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=SECONDS)
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", target, json.dumps(payload).encode(), headers)
        return connection.getresponse().status, ""
    except (OSError, http.client.HTTPException) as error:
        return 0, f"{type(error).__name__}: {error}"
    finally:
        connection.close()
