"""Disks that are full, really: a file system of a few hundred kilobytes, mounted for one command alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tensorport_hub.devhub import DevHub
from tests.e2e.reading import contents, folder_contents
from tests.e2e.test_resume import MODEL, SOURCE

PROGRAM = f"{sys.executable} -m tensorport_hub"


def on_small_disk(folder: Path, script: str, **environment: str) -> str | None:
    """Run a shell script with `$DISK`, a file system of its own; None where this system forbids to mount one.

    `size N` in the script sets the size of the disk.
    """
    disk = folder / "disk"
    disk.mkdir()
    prelude = """
        set -u
        size() { mount -o "remount,size=$1" "$DISK"; }
        mount -t tmpfs -o size=64k tmpfs "$DISK" || exit 99
    """
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", prelude + script]
    if shutil.which("unshare") is None:
        warnings.warn("no `unshare` here: a full disk is not tried", stacklevel=2)
        return None
    ended = subprocess.run(
        command,
        env={**os.environ, "DISK": str(disk), **environment},
        capture_output=True,
        text=True,
        timeout=240,
        cwd=Path.cwd(),
    )
    if ended.returncode == 99 or "unshare:" in ended.stderr:
        warnings.warn(f"no disk may be mounted here: {ended.stderr.strip()}", stacklevel=2)
        return None
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The model as a local folder."""
    (tmp_path / "model").mkdir()
    for path, data in MODEL.items():
        (tmp_path / "model" / path).write_bytes(data)
    return tmp_path / "model"


def test_a_folder_on_a_full_disk(folder: Path, tmp_path: Path) -> None:
    """At sizes that leave room for little, for some parts, or for all but the last: exit 5 with the system's
    words; once there is room the same command continues, and the result is the same."""
    script = f"""
        convert="{PROGRAM} convert --no-progress --workers 1 --input {folder} --output"
        $convert {tmp_path}/whole || exit 1
        head -c 1m /dev/zero > $DISK/filler
        $convert $DISK/out && exit 7
        [ $? = 5 ] || exit 8
        rm $DISK/filler
        for kilobytes in 64 140 500 900 1700 2300; do
            size ${{kilobytes}}k
            $convert $DISK/out && exit 2
            [ $? = 5 ] || exit 3
            [ ! -e $DISK/out ] || exit 4
        done
        size 20m
        $convert $DISK/out || exit 5
        [ -z "$(ls -A $DISK | grep tensorport)" ] || exit 6
        cp -r $DISK/out {tmp_path}/made
    """
    said = on_small_disk(tmp_path, script)
    if said is not None:
        assert "No space left" in said
        assert "journal.jsonl` can't be written: No space left" in said
        assert "files were there" in said
        assert "Traceback" not in said
        assert folder_contents(tmp_path / "made") == folder_contents(tmp_path / "whole")


def test_staging_on_a_full_disk(hub: DevHub, tmp_path: Path) -> None:
    """By LFS: what can't be staged is exit 7; once there is room the next run continues from the Hub."""
    hub.add_repo(SOURCE, MODEL)
    script = f"""
        mirror="{PROGRAM} mirror --no-progress --transfer lfs --checkpoint-every 200kB {SOURCE}"
        TMPDIR=/tmp $mirror me/whole || exit 1
        export TMPDIR=$DISK
        $mirror me/made && exit 2
        [ $? = 7 ] || exit 3
        size 20m
        $mirror me/made || exit 4
        [ -z "$(ls -A $DISK)" ] || exit 5
    """
    said = on_small_disk(tmp_path, script)
    if said is not None:
        assert "No space left" in said
        assert contents(hub, "me/made") == contents(hub, "me/whole")
