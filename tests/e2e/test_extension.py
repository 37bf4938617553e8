"""`hf tensorport`: the program as an extension of the real `hf` program.

`hf extensions install OWNER/hf-tensorport` makes a virtual environment below the user's home, installs the
repository into it, and demands the console script `hf-tensorport`. What it leaves is made here with hf's own
manifest class, around the script that the package installs; everything after that is `hf` itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.cli.extensions import (
    ExtensionManifest,
    _get_executable_name,
    _get_venv_bin_path,
    _get_venv_python,
)

from tensorport_hub import __version__
from tensorport_hub.devhub import DevHub, Fault

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent


@pytest.fixture
def hf(tmp_path: Path, hub: DevHub) -> dict[str, str]:
    """The environment of a user whose `hf` has the extension."""
    user = tmp_path / "user"
    folder = user / ".local/share/hf/extensions/hf-tensorport"
    script = SCRIPTS / "hf-tensorport"
    assert script.is_file(), "the package must install this console script: `hf` looks for it by this name"
    ExtensionManifest(
        owner="someone",
        repo="hf-tensorport",
        repo_id="someone/hf-tensorport",
        short_name="tensorport",
        executable_path=str(script),
        type="python",
        installed_at=datetime.now(UTC),
        description="Mirror a checkpoint as plain arrays",
    ).save(folder)
    return {**os.environ, "HOME": str(user), "HF_HUB_DISABLE_UPDATE_CHECK": "1"}


def run(env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """The real `hf` program."""
    return subprocess.run(
        [str(SCRIPTS / "hf"), *words], env=env, capture_output=True, text=True, timeout=120, check=False
    )


def test_hf_runs_the_program(hf: dict[str, str]) -> None:
    """`hf tensorport` is this program under its own name, and `hf` lists it among its commands."""
    said = run(hf, "tensorport", "--version")
    assert (said.returncode, said.stdout) == (0, f"hf tensorport, version {__version__}\n")
    assert "Usage: hf tensorport mirror [OPTIONS] [SRC] [DST]" in run(hf, "tensorport", "mirror", "-h").stdout
    assert "someone/hf-tensorport" in run(hf, "extensions", "list").stdout
    assert "tensorport" in run(hf, "--help").stdout
    assert run(hf, "extensions", "exec", "tensorport", "--", "--version").stdout == said.stdout


def test_the_archive_that_hf_installs_has_the_script(tmp_path: Path) -> None:
    """`hf` gives pip an archive as GitHub makes it, then looks for `hf-tensorport` among the scripts."""
    archive = tmp_path / "HEAD.zip"
    words = ["archive", "--format=zip", "--prefix=hf-tensorport-HEAD/", f"--output={archive}", "HEAD"]
    subprocess.run(["git", "-C", str(ROOT), *words], check=True)
    place = tmp_path / "extension" / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    install = ["install", "--quiet", "--no-input", "--force-reinstall", "--no-deps", "--no-build-isolation"]
    packages = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib"), "PIP_NO_INDEX": "1"}
    python = _get_venv_python(place.parent)
    subprocess.run([str(python), "-m", "pip", *install, str(archive)], env=packages, check=True)
    script = _get_venv_bin_path(place, _get_executable_name("tensorport"))
    said = subprocess.run(
        [str(script), "--version"], env=packages, capture_output=True, text=True, check=True
    )
    assert said.stdout == f"hf tensorport, version {__version__}\n"


def test_hf_mirrors(hf: dict[str, str], hub: DevHub, client: HfApi, gptoss: Path) -> None:
    """`hf tensorport mirror` publishes; its exit codes come through `hf`."""
    hub.add_repo("openai/tiny", gptoss)
    done = run(hf, "tensorport", "mirror", "openai/tiny", "me/tiny", "--precision", "float32")
    assert done.returncode == 0, done.stderr
    assert "published: " in done.stdout
    assert client.file_exists("me/tiny", "manifest.json")
    missing = run(hf, "tensorport", "mirror", "openai/nothing", "me/nothing")
    assert missing.returncode == 4
    assert "hint: " in missing.stderr


def test_what_continues_is_said_as_it_was_typed(hf: dict[str, str], hub: DevHub, gptoss: Path) -> None:
    """Interrupted, it names the command of `hf` that continues, in the moment that `hf` leaves it.

    `hf` itself waits a quarter of a second for an interrupted extension, and then kills it.
    """
    hub.add_repo("openai/tiny", gptoss)
    hub.faults.add(Fault("stall", origin="cdn", at=64, times=None, seconds=60))
    running = subprocess.Popen(
        [str(SCRIPTS / "hf-tensorport"), "mirror", "openai/tiny", "me/tiny"],
        env=hf,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not hub.faults.fired:
        time.sleep(0.05)
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=30)
    assert "hint: `hf tensorport mirror openai/tiny me/tiny` continues" in err


def test_ctrl_c_at_hf_ends_both(hf: dict[str, str], hub: DevHub, gptoss: Path) -> None:
    """Ctrl-C reaches `hf` and us; nothing runs on or is published; the same command does it again."""
    hub.add_repo("openai/tiny", gptoss)
    hub.faults.add(Fault("stall", origin="cdn", at=64, times=1, seconds=60, after=1))
    words = ["tensorport", "mirror", "openai/tiny", "me/tiny"]
    running = subprocess.Popen(
        [str(SCRIPTS / "hf"), *words], env=hf, stderr=subprocess.PIPE, start_new_session=True
    )
    while not hub.faults.fired:
        time.sleep(0.05)
        assert running.poll() is None
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    running.communicate(timeout=30)  # ends once nobody holds the pipe any more
    assert "manifest.json" not in hub.files("me/tiny")
    assert run(hf, *words).returncode == 0
    assert "manifest.json" in hub.files("me/tiny")
