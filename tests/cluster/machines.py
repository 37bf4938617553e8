"""A Dask scheduler and worker processes on loopback, as a user starts them, in folders of their own.

Every process ends by itself: a worker once its scheduler is gone, a scheduler once nobody has asked anything
of it for some minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

SECONDS = 60
_WORKER = """
import sys
{first}
from distributed.cli.dask_worker import main
main()
"""


def wait_for(ready: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"{what} does not come"
        time.sleep(0.1)


class Machines:
    """One scheduler; workers are processes, without a nanny unless asked for."""

    def __init__(self, folder: Path, *, dashboard: bool = False) -> None:
        folder.mkdir()
        self._folder = folder
        self._file = folder / "scheduler.json"
        self.workers: list[subprocess.Popen[bytes]] = []
        shown = ["--dashboard-address", "127.0.0.1:0"] if dashboard else ["--no-dashboard"]
        words = ["--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(self._file), *shown]
        self.scheduler = self._start(
            "scheduler", ["-m", "distributed.cli.dask_scheduler", "--idle-timeout", "300", *words], {}
        )
        wait_for(self._file.exists, "the scheduler")

    @property
    def address(self) -> str:
        return str(json.loads(self._file.read_text())["address"])

    def add(self, count: int = 1, *, first: str = "", **environment: str) -> list[subprocess.Popen[bytes]]:
        """Start workers, and wait until the scheduler knows them.

        Args:
            first: code that their processes run before anything else.
            environment: variables of theirs; without a token, unless it is among these.
        """
        before = len(self.known())
        words = ["--scheduler-file", str(self._file), "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny"]
        words += ["--no-dashboard", "--memory-limit", "0", "--death-timeout", "10"]
        words += ["--local-directory", str(self._folder)]
        started = [
            self._start(
                f"worker-{len(self.workers) + i}",
                ["-c", _WORKER.format(first=first), *words],
                environment,
            )
            for i in range(count)
        ]
        self.workers += started
        wait_for(lambda: len(self.known()) >= before + count, "a worker")
        return started

    def known(self) -> list[str]:
        """Addresses of the workers that the scheduler knows."""
        from distributed import Client

        with Client(self.address, set_as_default=False) as client:
            return [*client.nthreads()]

    def fill(self, count: int) -> Self:
        """As many healthy workers as that."""
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        if len(self.workers) < count:
            self.add(count - len(self.workers))
        wait_for(lambda: len(self.known()) == count, "the workers")
        return self

    def logs(self) -> str:
        """What all processes have printed."""
        return "".join(path.read_text("utf-8", "replace") for path in self._folder.glob("*.log"))

    def _start(self, name: str, words: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        ours = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        home = {"HF_HOME": str(self._folder / "home"), "PYTHONPATH": str(Path(__file__).parents[2])}
        with open(self._folder / f"{name}.log", "wb") as log:
            return subprocess.Popen(
                [sys.executable, *words],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env={**ours, **home, **environment},
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
        for process in (*self.workers, self.scheduler):
            process.wait(10)
