"""Standard streams that are closed, full, or left by their reader: the run and its code don't mind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tensorport_hub.devhub import DevHub, Fault
from tests.e2e.conftest import CHECKPOINTS, home, hub  # noqa: F401 (fixtures)

MODEL = CHECKPOINTS / "gptoss_mxfp4"
PROGRAM = (sys.executable, "-m", "tensorport_hub")
LOST = "error: stdout can't be written: No space left on device\nhint: "


def shell(redirected: str, *words: str) -> subprocess.CompletedProcess[str]:
    """The program with streams as the shell opens them; its own code, whatever it is piped into."""
    script = f'set -o pipefail; "$@" {redirected}'
    run = ["bash", "-c", script, "bash", *PROGRAM, *words]
    return subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("redirected", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "2> /dev/full", "2> >(true)"])
def test_streams_that_are_not_there(redirected: str, tmp_path: Path) -> None:
    """A run is carried out, and ends with 0, where streams are closed and where nobody hears it."""
    done = shell(redirected, "convert", "--input", str(MODEL), "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "manifest.json").exists()
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_result_that_is_lost(more: list[str]) -> None:
    """Where stdout takes no result, that is the error; a reader who has left is none, and gets 141."""
    done = shell("> /dev/full", "inspect", str(MODEL), *more)
    assert done.returncode == 5
    assert done.stderr.startswith(LOST)
    done = shell("| true", "inspect", str(MODEL), *more)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    "redirected", ["> /dev/full 2> /dev/full", "2>&1 | true", ">&- 2>&-", "2> /dev/full | true"]
)
def test_the_code_of_an_error_stays(redirected: str, tmp_path: Path) -> None:
    """An error that nobody can be told still ends the program with its own code."""
    done = shell(redirected, "inspect", str(tmp_path / "nowhere"), "--json")
    assert (done.returncode, done.stderr) == (4, "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_that_ends_the_reader_as_well(hub: DevHub, number: int, code: int) -> None:  # noqa: F811
    """Ctrl-C in `... 2>&1 | tee log` ends `tee` too: the documented code, and at once, all the same."""
    hub.add_repo("org/model", MODEL)
    hub.faults.add(Fault("stall", origin="cdn", at=1000, seconds=20, times=None, after=1))
    run = [*PROGRAM, "mirror", "org/model", "me/model"]
    started = subprocess.Popen(run, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not hub.faults.fired:
        assert started.poll() is None
        time.sleep(0.05)
    assert started.stdout is not None
    started.stdout.close()
    started.send_signal(number)
    try:
        assert started.wait(timeout=30) == code
    finally:
        started.kill()
