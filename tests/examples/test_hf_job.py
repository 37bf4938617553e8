"""A list mirrored by a Hugging Face Job: what is asked of the Hub, and what the command then does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from tensorport_hub.devhub import AskedJob, DevHub
from tests.examples.conftest import EXAMPLES

LIST = """
[[mirror]]
source = "st/one"

[[mirror]]
source = "st/two"
destination = "me/half"
precision = "float16"
commit-message = 'It''s "quoted" $HOME `true`'
""".replace("''", "’")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DevHub]:
    """A devhub with two models."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "home" / "xet"))
    with DevHub(tmp_path / "hub") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        monkeypatch.setenv("HF_TOKEN", running.token)
        for name in ("one", "two"):
            weights = save({"w": np.ones((10, 10), np.float32)})
            running.add_repo(f"st/{name}", {"model.safetensors": weights, "config.json": b"{}\n"})
        yield running


def ask(folder: Path, *words: str, text: str = LIST) -> subprocess.CompletedProcess[str]:
    """Run the example as a user does."""
    (folder / "mirrors.toml").write_text(text)
    command = [
        sys.executable,
        str(EXAMPLES / "hf_job.py"),
        "mirrors.toml",
        "--package",
        "tensorport-hub",
        *words,
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def carry_out(job: AskedJob, hub: DevHub, folder: Path) -> subprocess.CompletedProcess[str]:
    """What the Hub would run, on this machine: the job's own environment and secrets, and no other token."""
    here = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_ENDPOINT": hub.endpoint}
    home = {"HOME": str(folder), "HF_HOME": str(folder / "job"), "HF_XET_CACHE": str(folder / "job" / "xet")}
    environment = {**here, **home, **job.spec["environment"], **job.spec["secrets"]}
    return subprocess.run(
        job.spec["command"], env=environment, cwd=folder, capture_output=True, text=True, timeout=120
    )


def test_one_job(hub: DevHub, tmp_path: Path) -> None:
    """Image, command and list are asked for; the token is a secret and nowhere else; and the command, run,
    mirrors the list."""
    asked = ask(tmp_path, "--timeout", "2h", "--flavor", "cpu-basic")
    assert asked.returncode == 0, asked.stderr
    [job] = hub.jobs
    assert asked.stdout.strip() == f"{hub.endpoint}/jobs/me/{job.id}"
    assert (job.spec["dockerImage"], job.spec["flavor"], job.spec["timeoutSeconds"]) == (
        "python:3.12",
        "cpu-basic",
        7200,
    )
    assert job.spec["secrets"] == {"HF_TOKEN": hub.token}
    assert hub.token not in json.dumps({**job.spec, "secrets": {}}) + asked.stdout + asked.stderr
    done = carry_out(job, hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 mirrors: 2 published" in done.stdout
    assert hub.token not in done.stdout + done.stderr
    assert json.loads(hub.read("me/half", "manifest.json"))["options"]["precision"] == "float16"
    assert hub.commits("me/half")[0].title == 'It’s "quoted" $HOME `true`'
    again = carry_out(job, hub, tmp_path)
    assert "2 mirrors: 2 unchanged" in again.stdout


def test_a_schedule(hub: DevHub, tmp_path: Path) -> None:
    """The same, again and again, never two at once; its failures are its exit code."""
    asked = ask(tmp_path, "--schedule", "@daily", text=LIST + '[[mirror]]\nsource = "st/absent"\n')
    assert asked.returncode == 0, asked.stderr
    [job] = hub.jobs
    assert asked.stdout.strip() == f"job {job.id} runs @daily"
    assert (job.schedule, job.concurrency) == ("@daily", False)
    assert job.spec["secrets"] == {"HF_TOKEN": hub.token}
    done = carry_out(job, hub, tmp_path)
    assert done.returncode == 4
    assert "2 published" in done.stdout


def test_a_cluster_inside_of_the_job(hub: DevHub, tmp_path: Path) -> None:
    """The processes that do the work are the job's own."""
    asked = ask(tmp_path, "--cluster", "local:2", "--package", "tensorport-hub[cluster]")
    assert asked.returncode == 0, asked.stderr
    [job] = hub.jobs
    assert job.spec["environment"]["CLUSTER"] == "local:2"
    done = carry_out(job, hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 mirrors: 2 published" in done.stdout
    assert hub.token not in done.stdout + done.stderr


def test_a_wrong_list_asks_for_nothing(hub: DevHub, tmp_path: Path) -> None:
    """It is told here; no job is asked for."""
    asked = ask(tmp_path, text='[[mirror]]\nsorce = "st/one"\n')
    assert asked.returncode == 1
    assert "did you mean `source`" in asked.stderr
    assert "Traceback" not in asked.stderr
    assert hub.jobs == []
