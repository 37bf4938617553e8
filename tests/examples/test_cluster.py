"""The page about clusters: its recipe is run, and its Kubernetes objects are what reads them expects."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from tensorport_hub.cli import cli
from tensorport_hub.devhub import DevHub
from tests.cluster import models
from tests.examples.conftest import EXAMPLES

PAGE = (EXAMPLES / "cluster" / "README.md").read_text("utf-8")


@pytest.fixture
def objects() -> dict[str, dict[str, object]]:
    """The objects of the YAML file, by kind."""
    text = (EXAMPLES / "cluster" / "daskcluster.yaml").read_text("utf-8")
    return {found["kind"]: found for found in yaml.safe_load_all(text)}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[DevHub]:
    with DevHub(tmp_path / "hub") as running:
        running.add_repo("org/model", models.bf16(4))
        yield running


def container(of: dict[str, object], *path: str) -> dict[str, object]:
    found: object = of
    for key in (*path, "spec", "containers"):
        assert isinstance(found, dict)
        found = found[key]
    assert isinstance(found, list)
    [only] = found
    assert isinstance(only, dict)
    return only


def free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return int(chosen.getsockname()[1])


def test_the_recipe(hub: DevHub, tmp_path: Path) -> None:
    """Scheduler, three workers and the mirror, as they stand on the page, by bash."""
    [recipe] = re.findall(r"<!-- run: machines -->\n```sh\n(.*?)```", PAGE, re.DOTALL)
    recipe = recipe.replace("8786", str(free_port())).replace(
        "dask scheduler", "dask scheduler --no-dashboard"
    )
    recipe = recipe.replace("dask worker", "dask worker --no-dashboard --death-timeout 20")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    home = {"HF_HOME": str(tmp_path / "home"), "HF_XET_CACHE": str(tmp_path / "home" / "xet")}
    names = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token}
    run = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", recipe + "kill $(jobs -p)\n"],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, **home, **names},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = run.communicate(timeout=120)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 0, said
    assert "published: " in said
    assert "manifest.json" in hub.files("me/model-npy")


def test_the_cluster_of_the_operator(objects: dict[str, dict[str, object]]) -> None:
    """Kind, roles and the selector that the operator's service needs; workers have one thread and no cap."""
    cluster = objects["DaskCluster"]
    assert cluster["apiVersion"] == "kubernetes.dask.org/v1"
    spec = cluster["spec"]
    assert isinstance(spec, dict)
    worker, scheduler = container(spec["worker"]), container(spec["scheduler"])
    assert worker["args"][:4] == ["dask", "worker", "--name", "$(DASK_WORKER_NAME)"]
    assert scheduler["args"] == ["dask", "scheduler"]
    assert {port["name"]: port["containerPort"] for port in scheduler["ports"]} == {
        "tcp-comm": 8786,
        "http-dashboard": 8787,
    }
    service = spec["scheduler"]["service"]
    assert service["selector"] == {"dask.org/cluster-name": "mirror", "dask.org/component": "scheduler"}
    assert {port["targetPort"] for port in service["ports"]} == {port["name"] for port in scheduler["ports"]}
    said = subprocess.run(
        [sys.executable, "-m", "distributed.cli.dask_worker", *worker["args"][2:], "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "Usage" in said.stdout


def test_the_job_that_coordinates(objects: dict[str, dict[str, object]]) -> None:
    """It names the cluster's scheduler, and every option is one of ours; no object holds a token."""
    job = container(objects["Job"], "spec", "template")
    program, *words = job["args"]
    assert program == "tensorport-hub"
    name = objects["DaskCluster"]["metadata"]["name"]
    assert f"--cluster=tcp://{name}-scheduler:8786" in words
    assert CliRunner().invoke(cli, [*words, "--help"]).exit_code == 0
    assert CliRunner().invoke(cli, [words[0], "--no-such-option", "--help"]).exit_code == 2
    for role in (job, container(objects["DaskCluster"]["spec"]["worker"])):
        [variable] = role["env"]
        assert variable["valueFrom"]["secretKeyRef"]["key"] == "HF_TOKEN"
