"""Workers that are killed, join late, or stay behind; the scheduler that goes; runs that are stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from tensorport_hub import mirror
from tensorport_hub.cluster import dispatch
from tensorport_hub.cluster.brief import Assignment
from tensorport_hub.cluster.dask import DaskCrew
from tensorport_hub.devhub import DevHub, Fault
from tensorport_hub.errors import DestinationError, LimitError, VerificationError
from tensorport_hub.ports import BytesWritten, Event, PartDone, Resumed, Warned
from tests.cluster import models
from tests.cluster.machines import Machines, wait_for
from tests.e2e.reading import contents

MODEL = models.bf16(4, tensors=8, rows=600)
"""Four files of about 1.2 MB; the last one is the largest, so that it is given first."""
SLOWLY: dict[str, Any] = {"workers": 1, "transfer": "lfs", "max_memory": "130MB"}
"""Small blocks, so that parts are finished one after another while a share is walked."""

LAST = "model-00004-of-00004.safetensors"


@pytest.fixture
def seeded(hub: DevHub) -> DevHub:
    """The model, what one machine makes of it, and storage that is slow from now on."""
    hub.add_repo("st/model", MODEL)
    mirror("st/model", "me/alone")
    hub.faults.add(Fault("slow", origin="cdn", times=None, rate=200_000))
    return hub


def pid_of(machines: Machines, worker: str) -> int:
    with Client(machines.address, set_as_default=False) as client:
        return int(client.run(os.getpid, workers=[worker])[worker])


def has_share() -> bool:
    """Whether this process has a share."""
    return any(thread.name == "teller" for thread in threading.enumerate())


def at_work(machines: Machines) -> int:
    """How many workers have a share."""
    with Client(machines.address, set_as_default=False) as client:
        return sum(client.run(has_share).values())


class Once:
    """A callback that does something at the n-th event of a kind, in a thread; it keeps all events."""

    def __init__(self, kind: type[Event], action: Any, *, at: int = 1) -> None:
        self.events: list[Event] = []
        self._kind, self._action, self._left = kind, action, at
        self.thread: threading.Thread | None = None

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, self._kind):
            self._left -= 1
            if self._left == 0:
                self.thread = threading.Thread(target=self._action)
                self.thread.start()

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Assignment]]:
    """What was given to whom, in order."""
    found: list[tuple[str, Assignment]] = []
    give = DaskCrew.give

    def noted(crew: DaskCrew, worker: str, assignment: Assignment) -> None:
        found.append((worker, assignment))
        give(crew, worker, assignment)

    monkeypatch.setattr(DaskCrew, "give", noted)
    return found


def test_a_worker_is_killed_in_the_middle_of_a_part(
    seeded: DevHub, machines: Machines, given: list[tuple[str, Assignment]]
) -> None:
    """Its share goes to another one; what it had finished is not written again."""

    def kill() -> None:
        os.kill(pid_of(machines, given[0][0]), signal.SIGKILL)

    done = Once(PartDone, kill, at=8)
    mirror("st/model", "me/shared", cluster=machines.address, on_event=done, **SLOWLY)
    assert contents(seeded, "me/shared") == contents(seeded, "me/alone")
    (first, before), (second, after) = [one for one in given if one[1].name == LAST]
    assert first != second
    assert (before.made, bool(after.made)) == ((), True)
    [lost] = [i for i, event in enumerate(done.events) if isinstance(event, Warned)]
    assert first in done.events[lost].message
    again = [e.nbytes for e in done.events[lost:] if isinstance(e, BytesWritten) and e.path == LAST]
    parts = [event.receipt for event in done.of(PartDone)]
    whole = sum(part.size for part in parts if "/layers.3." in part.path)
    assert sum(again) == whole - sum(made.size for made in after.made)
    assert len({part.path for part in parts}) == len(parts) == 32


def test_one_that_joins_late_gets_a_share(
    seeded: DevHub, tmp_path: Path, given: list[tuple[str, Assignment]]
) -> None:
    """It was not there when the run began."""
    with Machines(tmp_path / "machines") as machines:
        machines.add(1)
        events = Once(PartDone, lambda: machines.add(1))
        mirror("st/model", "me/shared", cluster=machines.address, on_event=events, **SLOWLY)
        assert events.thread is not None
        events.thread.join()
    assert len({worker for worker, _ in given}) == 2
    assert contents(seeded, "me/shared") == contents(seeded, "me/alone")


def test_a_run_waits_for_its_first_worker(seeded: DevHub, tmp_path: Path) -> None:
    """A cluster that has none yet is waited for."""
    seeded.faults.clear()
    with Machines(tmp_path / "machines") as machines:
        adding = threading.Timer(1.0, lambda: machines.add(1))
        adding.start()
        mirror("st/model", "me/shared", cluster=machines.address)
        adding.join()
    assert contents(seeded, "me/shared") == contents(seeded, "me/alone")


def test_a_cluster_without_workers(hub: DevHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not waited for forever."""
    monkeypatch.setattr(dispatch, "PATIENCE", 0.5)
    hub.add_repo("st/model", models.bf16(2))
    with Machines(tmp_path / "machines") as machines, pytest.raises(DestinationError, match="no worker"):
        mirror("st/model", "me/shared", cluster=machines.address)


def test_the_scheduler_is_killed(seeded: DevHub, tmp_path: Path) -> None:
    """The run ends with a destination's error, and the same call continues it with another scheduler."""
    options: dict[str, Any] = {"checkpoint_every": 300_000, **SLOWLY}
    with Machines(tmp_path / "first") as machines:
        machines.add(2)
        events = Once(PartDone, machines.scheduler.kill, at=8)
        with pytest.raises(DestinationError, match="scheduler was lost") as caught:
            mirror("st/model", "me/shared", cluster=machines.address, on_event=events, **options)
        assert caught.value.exit_code == 5
        assert "continues" in caught.value.hint
    seeded.faults.clear()
    again: list[Event] = []
    with Machines(tmp_path / "second") as machines:
        machines.add(2)
        mirror("st/model", "me/shared", cluster=machines.address, on_event=again.append, **options)
    assert sum(event.parts for event in again if isinstance(event, Resumed)) >= 6
    assert contents(seeded, "me/shared") == contents(seeded, "me/alone")


def test_one_machine_continues_what_a_cluster_began(seeded: DevHub, machines: Machines) -> None:
    """And the other way round it is the same journal."""
    options: dict[str, Any] = {"checkpoint_every": 300_000, "workers": 1}
    seeded.faults.clear()
    seeded.faults.add(Fault("status", "POST", "hub", "*/objects/batch", status=403, after=12, times=None))
    with pytest.raises(DestinationError, match="403"):
        mirror("st/model", "me/shared", cluster=machines.address, transfer="lfs", **options)
    assert seeded.faults.fired
    seeded.faults.clear()
    events: list[Event] = []
    mirror("st/model", "me/shared", on_event=events.append, **options)
    assert any(isinstance(event, Resumed) for event in events)
    assert contents(seeded, "me/shared") == contents(seeded, "me/alone")


def test_wrong_bytes_of_the_source(seeded: DevHub, machines: Machines) -> None:
    """A worker finds them by the file's digest; what was made of that file counts for no next run."""
    seeded.faults.clear()
    seeded.faults.add(Fault("wrong_bytes", origin="cdn", at=150_000, times=None))
    options: dict[str, Any] = {"checkpoint_every": 100_000, **SLOWLY}
    with pytest.raises(VerificationError, match=r"worker tcp://.*is not what the source states"):
        mirror("st/model", "me/shared", cluster=machines.address, **options)
    assert "manifest.json" not in seeded.files("me/shared")
    seeded.faults.clear()
    mirror("st/model", "me/shared", cluster=machines.address, **options)
    assert contents(seeded, "me/shared") == contents(seeded, "me/alone")


def test_a_share_that_kills_its_workers(
    seeded: DevHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a few of them the run ends, and names it."""
    monkeypatch.setattr(dispatch, "TRIES", 2)
    deadly = (
        "import os\n"
        "from tensorport_hub.cluster.workplace import Workplace as W\n"
        "then = W.carry_out\n"
        f"W.carry_out = lambda s, a, *r: os._exit(1) if a.name == {LAST!r} else then(s, a, *r)\n"
    )
    with Machines(tmp_path / "machines") as machines:
        machines.add(3, first=deadly)
        with pytest.raises(LimitError, match=f"2 workers went away while they had `{LAST}`") as caught:
            mirror("st/model", "me/shared", cluster=machines.address)
    assert "--max-memory" in caught.value.hint


def test_a_failure_that_may_pass_is_tried_elsewhere(seeded: DevHub, tmp_path: Path) -> None:
    """A worker that can't go on does not end the run, if another one can."""
    seeded.faults.clear()
    flaky = (
        "from tensorport_hub.cluster.workplace import Workplace as W\n"
        "from tensorport_hub.errors import SourceError\n"
        "def fail(*_): raise SourceError('the cable is out', transient=True)\n"
        "W.carry_out = fail\n"
    )
    events: list[Event] = []
    with Machines(tmp_path / "machines") as machines:
        machines.add(1)
        machines.add(1, first=flaky)
        mirror("st/model", "me/shared", cluster=machines.address, on_event=events.append)
    assert any("cable" in event.message for event in events if isinstance(event, Warned))
    assert contents(seeded, "me/shared") == contents(seeded, "me/alone")


def test_a_coordinator_that_ends_stops_its_workers(hub: DevHub, tmp_path: Path) -> None:
    """Interrupted or killed: nobody goes on with what nobody waits for."""
    hub.add_repo("st/model", models.bf16(2, rows=20_000))
    hub.faults.add(Fault("slow", origin="cdn", times=None, rate=400_000))  # half a minute for each share
    with Machines(tmp_path / "machines") as machines:
        machines.add(2)
        words = ["mirror", "st/model", "me/shared", "--cluster", machines.address, "--no-progress"]
        words += ["--transfer", "lfs", "--workers", "1", "--max-memory", "130MB"]
        for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
            with subprocess.Popen(
                [sys.executable, "-m", "tensorport_hub", *words], stderr=subprocess.PIPE, text=True
            ) as run:
                wait_for(lambda: at_work(machines) == 2, "work")
                run.send_signal(number)
                assert run.wait(60) == code
                assert run.stderr is not None
                assert "Traceback" not in run.stderr.read()
            wait_for(lambda: at_work(machines) == 0, "rest", seconds=15)


@pytest.mark.parametrize("to", ["scheduler", "terminal"])
def test_what_ends_a_run_is_said_without_noise(seeded: DevHub, tmp_path: Path, to: str) -> None:
    """A scheduler that dies, or Ctrl-C, which a terminal sends to all processes: words, and no traceback."""
    with Machines(tmp_path / "machines") as machines:
        machines.add(1)
        words = ["mirror", "st/model", "me/shared", "--no-progress", "--transfer", "lfs", "--workers", "1"]
        words += ["--cluster", machines.address if to == "scheduler" else "local:1"]
        run = subprocess.Popen(
            [sys.executable, "-m", "tensorport_hub", *words, "--max-memory", "130MB"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        wait_for(lambda: any("/objects/batch" in s.path for s in seeded.seen), "an upload")
        if to == "scheduler":
            machines.scheduler.kill()
        else:
            os.killpg(run.pid, signal.SIGINT)
        said, _ = run.communicate(timeout=60)
    assert "Traceback" not in said
    assert "distributed" not in said
    assert "continues" in said
    assert run.returncode == (5 if to == "scheduler" else 130)
