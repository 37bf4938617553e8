"""What the system refuses about folders: the documented code and words, at plan time, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tensorport_hub import mirror
from tensorport_hub.devhub import DevHub
from tests.e2e.conftest import CHECKPOINTS
from tests.e2e.test_full_disk import PROGRAM, on_small_disk

MODEL = str(CHECKPOINTS / "gptoss_mxfp4")
LONG = "./" + "a" * 300


def run(*words: str, code: int) -> str:
    """What the program says, for whom permissions hold, even where root runs the tests."""
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    program = [*bare, sys.executable, "-m", "tensorport_hub", *words]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (4, ("inspect", LONG)),
        (2, ("inspect", LONG[2:])),
        (5, ("mirror", MODEL, LONG)),
        (5, ("plan", MODEL, LONG)),
        (5, ("verify", LONG)),
        (4, ("inspect", "~nobody-is-called-so/model")),
        (5, ("verify", "~nobody-is-called-so/mirror")),
        (2, ("inspect", MODEL, "--report", "~nobody-is-called-so/page.html")),
    ],
)
def test_names_that_no_folder_has(code: int, words: tuple[str, ...]) -> None:
    """A name that is too long for the system, or begins with a user who is none: no folder has it."""
    assert run(*words, code=code).startswith("error: ")


@pytest.mark.parametrize("command", ["plan", "mirror"])
def test_places_where_no_folder_can_be_made(command: str, tmp_path: Path) -> None:
    """Below a file, in a folder that may not be written to, in one that may not be looked into: 5, for
    `plan` as for `mirror`."""
    (tmp_path / "file").touch()
    said = run(command, MODEL, str(tmp_path / "file" / "out"), code=5)
    assert f"`{tmp_path / 'file'}` is no folder that can be written\nhint: " in said
    (tmp_path / "shut").mkdir(mode=0o555)
    said = run(command, MODEL, str(tmp_path / "shut" / "out"), code=5)
    assert f"`{tmp_path / 'shut'}` is no folder that can be written\nhint: " in said
    (tmp_path / "dark").mkdir(mode=0o000)
    said = run(command, MODEL, str(tmp_path / "dark" / "out"), code=5)
    assert f"`{tmp_path / 'dark' / 'out'}` can't be read: Permission denied\nhint: " in said


def test_a_mirror_that_may_not_be_changed(hub: DevHub, tmp_path: Path) -> None:
    """One that is as it is to be stays, and nothing is asked of its folder; another is refused beforehand, as
    is one that can't be read."""
    hub.add_repo("org/model", MODEL)
    out = tmp_path / "out"
    words = ("org/model", str(out))
    mirror(*words)
    out.chmod(0o555)
    assert run("mirror", *words, code=0).startswith("unchanged: ")
    assert "no folder that can be written" in run("plan", *words, "--precision", "float32", code=5)
    out.chmod(0o755)
    (out / "manifest.json").chmod(0o000)
    assert "manifest.json` can't be read: Permission denied" in run("plan", *words, code=5)


def test_sources_that_may_not_be_read(tmp_path: Path) -> None:
    """A folder that can't be listed is not taken for one without a model."""
    for mode in (0o000, 0o444):
        folder = tmp_path / oct(mode)
        folder.mkdir()
        (folder / "model.safetensors").touch()
        folder.chmod(mode)
        assert "can't be read: its permissions forbid it" in run("inspect", str(folder), code=4)


def test_disks_that_are_read_only_and_mount_points(tmp_path: Path) -> None:
    """`plan` and `mirror` say beforehand that no folder can be made there, or swapped in."""
    script = f"""
        for command in plan mirror; do
            {PROGRAM} $command {MODEL} $DISK
            [ $? = 5 ] || exit 1
        done
        mount -o remount,ro $DISK
        for command in plan mirror; do
            {PROGRAM} $command {MODEL} $DISK/out
            [ $? = 5 ] || exit 2
        done
    """
    said = on_small_disk(tmp_path, script)
    if said is not None:
        assert said.count("is a mount point: no finished mirror can take its place") == 2
        assert said.count("is no folder that can be written") == 2
