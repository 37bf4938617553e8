"""HTTP below the Hub's own client: pooled connections for bulk bytes, and what a status means.

urllib3, because it holds its speed under threads: about a quarter of the processor time per byte of the
Hub's client. Nothing is retried or redirected here; a caller sees every answer.
"""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import urllib3

from tensorport_hub.errors import DestinationError, SourceError, TensorportError

TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504, *range(520, 528)})
_CONNECT_SECONDS = 10.0
_CONNECTIONS = 32
"""Kept of each host."""
_UPLOAD_BLOCK = 1 << 20

Refusal = type[SourceError] | type[DestinationError]


class Http:
    """Connections that are kept and reused, per host, from any thread; proxies as the environment says."""

    def __init__(self, *, read_seconds: float) -> None:
        self._timeout = urllib3.Timeout(connect=_CONNECT_SECONDS, read=read_seconds)
        self._options: dict[str, Any] = {"maxsize": _CONNECTIONS, "retries": False, "timeout": self._timeout}
        self._direct = urllib3.PoolManager(blocksize=_UPLOAD_BLOCK, **self._options)
        self._proxied: dict[str, urllib3.ProxyManager] = {}

    def request(
        self,
        method: str,
        url: str,
        *,
        refusal: Refusal,
        headers: Mapping[str, str],
        body: bytes | BinaryIO | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """One request; the answer's body is not read yet.

        Raises:
            SourceError, DestinationError: (`refusal`) no answer came, transient; or it can't be sent.
        """
        try:
            return self._manager(url).request(
                method, url, headers=dict(headers), body=body, preload_content=False, redirect=False
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise refusal(f"{method} {plain(url)} got no answer: {_reason(error)}", transient=True) from None
        except ValueError:  # its text may hold a header's value
            raise refusal(f"{method} {plain(url)} can't be sent: its URL or a header is malformed") from None

    def _manager(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        proxy = urllib.request.getproxies().get(parts.scheme)
        if not proxy or urllib.request.proxy_bypass(parts.hostname or ""):
            return self._direct
        if proxy not in self._proxied:
            self._proxied[proxy] = urllib3.ProxyManager(proxy, **self._options)
        return self._proxied[proxy]

    def close(self) -> None:
        self._direct.clear()
        for manager in self._proxied.values():
            manager.clear()


def read_into(response: urllib3.BaseHTTPResponse, buffer: memoryview) -> int:
    """Fill `buffer` from a body; return the bytes that came, fewer where the connection broke."""
    done = 0
    try:
        while done < len(buffer):
            chunk = response.read1(min(len(buffer) - done, 1 << 20))
            if not chunk:
                break
            buffer[done : done + len(chunk)] = chunk
            done += len(chunk)
    except (urllib3.exceptions.HTTPError, OSError):
        response.close()
        return done
    return done


def failure(status: int, headers: Mapping[str, str], what: str, refusal: Refusal) -> TensorportError:
    """The error that an HTTP answer stands for: whose fault, and whether it may pass."""
    code = headers.get("X-Error-Code", "")
    text = {
        ("GatedRepo", 403): "is gated, and this account has no access",
        ("GatedRepo", 401): "is gated, and no token was given",
    }.get((code, status)) or {
        401: "asks for a valid token",
        403: "is forbidden to this account",
        404: "is not there",
        410: "is gone",
        412: "moved meanwhile",
        413: "is too large for the other side",
        416: "has no such range",
        429: "is rate-limited",
        507: "has no space left",
    }.get(status, f"was answered with status {status}")
    hint = {
        401: "log in with `hf auth login`, or set `HF_TOKEN`",
        403: "ask for access on the model's page, or use a token that has it",
    }.get(status, "")
    detail = headers.get("X-Error-Message", "")
    message = f"{what} {text} (HTTP {status}{', ' + code if code else ''}){': ' + detail if detail else ''}"
    return refusal(message, hint=hint, transient=status in TRANSIENT, retry_after=wait_seconds(headers))


def wait_seconds(headers: Mapping[str, str]) -> float | None:
    """How long the other side asks us to wait: `Retry-After`, or `t` of an exhausted `RateLimit`."""
    asked: list[float] = []
    after = headers.get("Retry-After", "").strip()
    if after.isdecimal():
        asked.append(float(after))
    elif after:
        with suppress(ValueError):
            asked.append(parsedate_to_datetime(after).timestamp() - time())
    window = re.search(r";\s*r=0\b.*?;\s*t=(\d+)", headers.get("RateLimit", ""))
    if window:
        asked.append(float(window.group(1)))
    return max(asked, default=None)


def plain(url: str) -> str:
    """A URL for an error message: without query (signatures) and credentials."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "a malformed URL"
    host = re.match(r"(\[[^\]]*\]|[^:]*)(:\d+)?", parts.netloc.rpartition("@")[2])
    return f"{parts.scheme}://{host.group() if host else ''}{parts.path}"


def _reason(error: BaseException) -> str:
    text = re.sub(r"<[^>]*>|https?://\S+", "", str(error.args[-1] if error.args else error)).strip(" :,()'\"")
    return f"{type(error).__name__}{': ' + text if text else ''}"
