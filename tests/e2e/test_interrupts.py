"""The program in a process of its own, interrupted by signals and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tensorport_hub import convert
from tensorport_hub.devhub import DevHub, Fault
from tensorport_hub.errors import DestinationError
from tensorport_hub.ports import Event, PartDone
from tests.e2e.reading import contents, folder_contents
from tests.e2e.test_resume import FILES, MODEL, SOURCE, TARGET, TENSORS

WEIGHTS = {path: data for path, data in MODEL.items() if path.endswith(".safetensors")}
SECONDS = 20
"""Within which an interrupted run must end, on a busy machine."""


@pytest.fixture
def seeded(hub: DevHub) -> DevHub:
    hub.add_repo(SOURCE, MODEL)
    return hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The model as a local folder."""
    for path, data in MODEL.items():
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / path).write_bytes(data)
    return tmp_path / "model"


@pytest.fixture
def start(tmp_path: Path, hub: DevHub) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the program in a session of its own."""
    begun: list[subprocess.Popen[str]] = []

    def go(*words: str) -> subprocess.Popen[str]:
        begun.append(
            subprocess.Popen(
                [sys.executable, "-m", "tensorport_hub", *words],
                env={**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token},
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return begun[-1]

    yield go
    for process in begun:
        process.kill()
        process.communicate()


def wait_for(met: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until something is so; the process must not end before."""
    deadline = time.monotonic() + 60
    while not met():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("where", ["reading", "uploading", "waiting"])
def test_signals_stop_the_run(
    seeded: DevHub, start: Callable[..., subprocess.Popen[str]], number: int, code: int, where: str
) -> None:
    """While a server is silent or asks for a long wait: the run ends within seconds, says the command that
    continues it, without the token, and that command does."""
    silent = {
        "reading": Fault("stall", "GET", "cdn", seconds=50, after=6, times=None),
        "uploading": Fault("stall", "PUT", "cdn", seconds=50, after=6, times=None),
        "waiting": Fault("status", "PUT", "cdn", status=429, retry_after=500, after=6, times=None),
    }[where]
    seeded.faults.add(silent)
    words = ["mirror", SOURCE, TARGET, "--transfer", "lfs", "--checkpoint-every", "150kB", "--no-progress"]
    run = start(*words, "--token", seeded.token)
    wait_for(lambda: bool(seeded.faults.fired), run)
    run.send_signal(number)
    begun = time.monotonic()
    _, said = run.communicate(timeout=SECONDS + 10)
    assert time.monotonic() - begun < SECONDS
    assert run.returncode == code, said
    assert f"hint: `tensorport-hub {' '.join(words)}` continues" in said
    assert seeded.token not in said
    assert "Traceback" not in said
    assert list(seeded.files(TARGET)) == [".gitattributes"]
    seeded.faults.clear()
    again = start(*words, "--json")
    shown, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert json.loads(shown)["changed"]


def test_the_token_is_in_no_process_list_of_ours(
    seeded: DevHub, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """A token from the environment never appears on a command line of ours or of a child's."""
    seeded.faults.add(Fault("stall", "GET", "cdn", seconds=50, after=2, times=None))
    run = start("mirror", SOURCE, TARGET, "--no-progress")
    wait_for(lambda: bool(seeded.faults.fired), run)
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert seeded.token.encode() not in process.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue


def killed(
    hub: DevHub, start: Callable[..., subprocess.Popen[str]], out: Path, *words: str, reads: int
) -> None:
    """A run into a folder that gets SIGKILL while it waits for its `reads`-th answer of the storage."""
    hub.faults.add(Fault("stall", "GET", "cdn", seconds=50, after=reads, times=None))
    run = start("mirror", SOURCE, str(out), "-q", "--workers", "1", *words)
    wait_for(lambda: bool(hub.faults.fired), run)
    journal = out.parent / f".{out.name}.tensorport" / "journal.jsonl"
    parts = TENSORS * max(reads - FILES - 2, 0)  # of files that came whole before
    wait_for(lambda: journal.exists() and journal.read_bytes().count(b'"made"') >= parts, run)
    run.kill()
    run.wait()
    hub.faults.clear()


def test_a_folder_survives_kills(
    seeded: DevHub, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """SIGKILL again and again: each next run continues, readers see nothing until all is there, and the
    result is that of a run that nobody killed."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert start("mirror", SOURCE, str(whole), "-q").wait(60) == 0
    for reads in (FILES + 3, FILES, FILES):
        killed(seeded, start, out, reads=reads)
        assert not out.exists()
    last = start("mirror", SOURCE, str(out), "--json")
    shown, said = last.communicate(timeout=60)
    assert last.returncode == 0, said
    assert folder_contents(out) == folder_contents(whole)
    assert json.loads(shown)["stats"]["parts_resumed"] >= TENSORS
    assert not (tmp_path / ".out.tensorport").exists()


def test_a_torn_journal_is_continued(
    seeded: DevHub, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """A last line that was half written is dropped; what came before counts."""
    out = tmp_path / "out"
    killed(seeded, start, out, reads=FILES + 3)
    with (tmp_path / ".out.tensorport" / "journal.jsonl").open("ab") as file:
        file.write(b'{"made":7,"si')
    again = start("mirror", SOURCE, str(out), "--json")
    shown, said = again.communicate(timeout=60)
    assert again.returncode == 0, said
    assert json.loads(shown)["stats"]["parts_resumed"] >= TENSORS


def test_two_runs_into_one_folder(
    seeded: DevHub, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """The second of two runs at once is refused, exit 5; the first goes on."""
    seeded.faults.add(Fault("stall", "GET", "cdn", seconds=3, after=6, times=1))
    first = start("mirror", SOURCE, str(tmp_path / "out"), "-q")
    wait_for(lambda: bool(seeded.faults.fired), first)
    second = start("mirror", SOURCE, str(tmp_path / "out"), "-q")
    _, said = second.communicate(timeout=60)
    assert second.returncode == 5
    assert "another run writes to" in said
    assert first.wait(60) == 0


def test_another_plans_leavings_are_refused(
    seeded: DevHub, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """An interrupted run of another plan: exit 5 with what to do; `--restart` gives it up."""
    out = tmp_path / "out"
    killed(seeded, start, out, reads=FILES + 3)
    words = ["mirror", SOURCE, str(out), "-q", "--precision", "bfloat16"]
    other = start(*words)
    _, said = other.communicate(timeout=60)
    assert other.returncode == 5
    assert "another plan" in said
    assert "--restart" in said
    assert start(*words, "--restart").wait(60) == 0
    assert contents_of_manifest(out)["options"]["precision"] == "bfloat16"


def contents_of_manifest(out: Path) -> dict[str, dict[str, str]]:
    """Its JSON."""
    found: dict[str, dict[str, str]] = json.loads((out / "manifest.json").read_bytes())
    return found


def test_a_source_folder_that_changed_is_not_continued(folder: Path, tmp_path: Path) -> None:
    """The same names and shapes, but other weights: what was made of the old ones is refused."""
    out, once = str(tmp_path / "out"), threading.Lock()

    def interrupt(event: Event) -> None:
        if isinstance(event, PartDone) and once.acquire(blocking=False):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        convert(str(folder), out, workers=1, on_event=interrupt)
    path = folder / next(iter(WEIGHTS))
    data = bytearray(path.read_bytes())
    data[-1] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DestinationError, match="another plan"):
        convert(str(folder), out)
    assert convert(str(folder), out, restart=True).stats.parts_resumed == 0


def test_the_hub_sees_the_same_mirror_after_a_kill(
    seeded: DevHub, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """One SIGKILL in the middle, an empty work folder, and the mirror is the undisturbed run's."""
    words = ["mirror", SOURCE, "--transfer", "lfs", "--checkpoint-every", "150kB", "-q"]
    assert start(*words[:2], "me/whole", *words[2:]).wait(60) == 0
    seeded.faults.add(Fault("stall", "PUT", "cdn", seconds=50, after=12, times=None))
    run = start(*words[:2], TARGET, *words[2:])
    wait_for(lambda: bool(seeded.faults.fired), run)
    run.kill()
    seeded.faults.clear()
    assert start(*words[:2], TARGET, *words[2:]).wait(60) == 0
    assert contents(seeded, TARGET) == contents(seeded, "me/whole")
