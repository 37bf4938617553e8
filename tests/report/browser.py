"""Headless Chromium over its own debugging protocol, on two pipes: pages opened, heard and photographed.

Source: the Chrome DevTools Protocol; with `--remote-debugging-pipe` the browser reads JSON from file 3 and
writes it to file 4, each message ended by a zero byte.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import struct
import subprocess
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio"),
    *("--hide-scrollbars", "--force-device-scale-factor=1", "--remote-debugging-pipe"),
)


class Browser:
    """One process, one page at a time."""

    def __init__(self, program: str, home: Path) -> None:
        theirs, ours = os.pipe()
        back, out = os.pipe()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (theirs, out)]
        words = ["bash", "-c", f'exec 3<&{high[0]} 4>&{high[1]}; exec "$@"', "_", program, *FLAGS]
        self._log = open(home / "log", "wb")  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [*words, f"--user-data-dir={home}", "about:blank"],
            pass_fds=high,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, "HOME": str(home)},
        )
        for fd in (theirs, out, *high):
            os.close(fd)
        self._out, self._in = ours, back
        self._buffer = b""
        self._number = 0
        self._session = ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        for fd in (self._out, self._in):
            os.close(fd)
        self._log.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask, and wait for the answer; what happens meanwhile goes to `events`."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(60)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return dict(answer["result"])
            self.events.append(answer)

    def _next(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(deadline - time.monotonic(), 0))
            data = os.read(self._in, 1 << 20) if ready else b""
            assert data, f"the browser is silent: {Path(self._log.name).read_text(errors='replace')[-2000:]}"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def open(
        self, url: str, *, width: int, height: int = 900, dark: bool = False, script: bool = True
    ) -> None:
        """Load a page at this size and in this light, and wait until it is there."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next(60))
        self.call("Page.getLayoutMetrics")

    def evaluate(self, code: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def said(self) -> list[dict[str, Any]]:
        """Everything on the console: messages, errors, and what the page's policy stopped."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event["params"] for event in self.events if event["method"] in kinds]

    def requested(self) -> list[str]:
        """All URLs that the page asked for, its own first."""
        kind = "Network.requestWillBeSent"
        return [event["params"]["request"]["url"] for event in self.events if event["method"] == kind]

    def photograph(self, path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The whole page at a quarter of its size, in a file and as pixels [height, width, 3]."""
        metrics = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": metrics["width"], "height": metrics["height"], "scale": 0.25}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        data = base64.b64decode(shot["data"])
        path.write_bytes(data)
        return pixels(data)


def pixels(png: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An 8-bit RGB or RGBA picture without interlacing, decoded (PNG specification, section 9)."""
    at, packed, width, height, channels = 8, b"", 0, 0, 0
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        chunk = png[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", chunk)
            assert (depth, interlace) == (8, 0)
            channels = {2: 3, 6: 4}[colour]
        packed += chunk if kind == b"IDAT" else b""
        at += size + 12
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * channels)
    shown = np.zeros((height + 1, width + 1, channels), np.int64)
    for y in range(height):
        line, kind, above = rows[y, 1:].reshape(width, channels).astype(np.int64), rows[y, 0], shown[y]
        if kind in (0, 2):
            shown[y + 1, 1:] = (line + (above[1:] if kind else 0)) % 256
        elif kind == 1:
            shown[y + 1, 1:] = np.cumsum(line, axis=0) % 256
        else:
            for x in range(width):
                left, up, corner = shown[y + 1, x], above[x + 1], above[x]
                guess = (left + up) // 2 if kind == 3 else _paeth(left, up, corner)
                shown[y + 1, x + 1] = (line[x] + guess) % 256
    return shown[1:, 1:, :3].astype(np.uint8)


def _paeth(left: Any, up: Any, corner: Any) -> Any:
    start = left + up - corner
    a, b, c = abs(start - left), abs(start - up), abs(start - corner)
    return np.where((a <= b) & (a <= c), left, np.where(b <= c, up, corner))
