"""Shardings: over eight devices of one process, and over two processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensorport_hub.devhub import DevHub
from tensorport_hub.devhub.traffic import Seen
from tests.mirrored import Tensors, floats, make_mirror

ROOT = Path(__file__).parents[2]


def test_eight_devices() -> None:
    """Everything of `eight_devices.py`, in a process with eight CPU devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/jax/eight_devices.py"],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stdout + run.stderr


ROWS, COLUMNS, MATRICES = 2048, 2048, 8
TENSORS: Tensors = {
    **{f"w{i}": ("F32", np.full((ROWS, COLUMNS), i + 1, np.float32)) for i in range(MATRICES)},
    "norm": floats("F32", (64,)),
}
"""Eight of 16 MB, and one that every process has whole."""
WHOLE = MATRICES * ROWS * COLUMNS * 4


@pytest.fixture(scope="module")
def repo(hub: DevHub, tmp_path_factory: pytest.TempPathFactory) -> str:
    hub.add_repo("me/two", make_mirror(tmp_path_factory.mktemp("two") / "out", TENSORS))
    return "me/two"


class Process:
    """One of the two."""

    def __init__(self, number: int, port: int, repo: str, spec: list[str | None]) -> None:
        flags = "--xla_force_host_platform_device_count=2"
        self._run = subprocess.Popen(
            [sys.executable, "-m", "tests.jax.process", str(number), str(port), repo, json.dumps(spec)],
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(self) -> dict[str, Any]:
        """What it says next, among lines of the libraries that it uses."""
        assert self._run.stdout is not None
        said = next((line for line in self._run.stdout if line.startswith("{")), "{}")
        heard: dict[str, Any] = json.loads(said)
        return heard

    def go(self) -> None:
        assert self._run.stdin is not None
        self._run.stdin.write("go\n")
        self._run.stdin.flush()

    def end(self, *, kill: bool = False) -> int:
        if kill:
            self._run.kill()
        assert self._run.stdin is not None
        assert self._run.stdout is not None
        self._run.stdin.close()
        self._run.stdout.close()
        return self._run.wait(60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("spec", [["x"], [None, "x"]], ids=["rows", "columns"])
def test_two_processes(hub: DevHub, repo: str, spec: list[str | None]) -> None:
    """Each asks the Hub for its own rows and the manifest, and never holds what the other has."""
    port = free_port()
    processes = [Process(number, port, repo, spec) for number in range(2)]
    try:
        for process in processes:
            assert process.hear() == {"devices": 4, "here": 2}
        heard = []
        for process in processes:
            hub.forget()
            process.go()
            heard.append(process.hear())
            check_process(heard[-1], hub.seen, rows=spec == ["x"])
        for process in processes:
            process.go()
        total = sum(float(values.sum(dtype=np.float64)) for _, values in TENSORS.values() if values.ndim > 1)
        for process, shards in zip(processes, (2, 0), strict=True):  # the last is on devices of the first
            assert process.hear() == {"total": total, "shards": shards, "shape": [64]}
        assert [process.end() for process in processes] == [0, 0]
    except BaseException:
        for process in processes:
            process.end(kill=True)
        raise
    boxes = [heard[number]["indices"]["w0"] for number in range(2)]
    assert not [box for box in boxes[0] if box in boxes[1]]


def check_process(heard: dict[str, Any], seen: list[Seen], *, rows: bool) -> None:
    """What one process asked for, what it has, and how much it held."""
    gets = [s for s in seen if s.method == "GET" and s.range]
    manifest = [s for s in gets if s.path.endswith("manifest.json")]
    reads = [s for s in gets if s.origin == "cdn"]
    norm = TENSORS["norm"][1].nbytes
    assert len(manifest) == 1
    assert len(reads) + 1 == len(gets)
    boxes = heard["indices"]["w0"]
    if rows:  # no byte of the other's
        first, last = min(box[0][0] for box in boxes), max(box[0][1] for box in boxes)
        mine = {range(128 + first * COLUMNS * 4, 128 + last * COLUMNS * 4), range(128, 128 + norm)}
        asked = [range(int(a), int(b) + 1) for s in reads for a, b in [str(s.range)[6:].split("-")]]
        assert all(any(one[0] in owned and one[-1] in owned for owned in mine) for one in asked)
        assert sum(s.bytes_out for s in reads) == WHOLE // 2 + norm
    else:  # columns lie in all rows: read once, for both devices
        assert WHOLE // 2 < sum(s.bytes_out for s in reads) <= WHOLE + norm
    for i in range(MATRICES):
        sums = [(i + 1) * prod(stop - start for start, stop in box) for box in boxes]
        assert heard["sums"][f"w{i}"] == sums
    assert heard["grown"] < WHOLE // 2 + (40 << 20)
