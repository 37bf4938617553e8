"""Interrupts while the program starts: whatever is being imported, the documented code and words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tensorport_hub.demo import tiny_gpt_oss
from tensorport_hub.devhub import DevHub, Fault
from tests.e2e.conftest import home, hub  # noqa: F401 (fixtures)

CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
IMPORTS = ("click", "tensorport_hub.cli.options", "tensorport_hub.api", "numpy", "numpy._core.umath")
IMPORTS += ("numpy._core._multiarray_umath", "ml_dtypes", "huggingface_hub", "httpx2", "yaml", "urllib3")
IMPORTS += ("tensorport_hub.cli.progress",)
AT_AN_IMPORT = """
import os, sys
name, number = sys.argv[1], int(sys.argv[2])
del sys.argv[1:3]
def hook(event, of):
    if event == "import" and of[0] == name:
        os.kill(os.getpid(), number)
sys.addaudithook(hook)
from tensorport_hub.__main__ import main
main()
"""
AT_A_TIME = """
from tensorport_hub import __main__, interrupt
interrupt.end_at_once()  # the first that `main` does, so that no moment falls before it
print(flush=True)
__main__.main()
"""
MOMENTS = (0.02, 0.04, 0.06, 0.09, 0.12, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7)


def refuses(said: str, words: list[str]) -> None:
    """The usual message, and nothing beside it."""
    hint = f"hint: `tensorport-hub {' '.join(words)}` continues\n" if words[0] == "mirror" else ""
    assert said.lstrip("\n") == f"interrupted: readers see nothing of it\n{hint}"


@pytest.mark.parametrize(("number", "code"), CODES)
@pytest.mark.parametrize("name", IMPORTS)
def test_at_an_import(name: str, number: int, code: int) -> None:
    """A signal at the beginning of an import, which some libraries make another error of: the code, the
    message, no traceback."""
    words = ["mirror", "org/model", "./out"]
    script = [sys.executable, "-c", AT_AN_IMPORT, name, str(int(number)), *words]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    refuses(done.stderr, words)


@pytest.mark.parametrize(("number", "code"), CODES)
@pytest.mark.parametrize("words", [["mirror", "org/model", "./out", "-q"], ["inspect", "org/model", "-q"]])
def test_at_many_moments(
    hub: DevHub,  # noqa: F811
    tmp_path: Path,
    words: list[str],
    number: int,
    code: int,
) -> None:
    """A signal at any time from the first moment to the first reading, which stalls: just the same."""
    hub.add_repo("org/model", tiny_gpt_oss())
    hub.faults.add(Fault("stall", "GET", "cdn", seconds=60, times=None))
    for moment in MOMENTS:
        started = subprocess.Popen(
            [sys.executable, "-c", AT_A_TIME, *words],
            cwd=tmp_path,
            env=dict(os.environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert started.stdout is not None
        started.stdout.readline()
        time.sleep(moment)
        started.send_signal(number)
        _, said = started.communicate(timeout=60)
        assert started.returncode == code, (moment, said)
        refuses(said, words)
