"""Whoever does the work, the same bytes come out: files, card, manifest."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest

from tensorport_hub import mirror, verify
from tensorport_hub.cli import main
from tensorport_hub.devhub import DevHub
from tensorport_hub.ports import BytesRead, BytesWritten, Event, FileVerified, PartDone, Planned
from tests.cluster import models
from tests.cluster.machines import Machines
from tests.e2e.reading import contents

CASES: Mapping[str, tuple[Mapping[str, bytes], Mapping[str, Any]]] = {
    "bf16": (models.bf16(), {"shard_size": 200_000}),
    "mxfp4": (models.mxfp4(), {}),
    "experts": (models.mixtral(), {"experts": "stacked"}),
    "several files in one": (models.bf16(3), {"format": ["numpy-direct", "msgpack"]}),
}


@pytest.mark.parametrize("transfer", ["xet", "lfs"])
@pytest.mark.parametrize("case", CASES)
def test_as_on_one_machine(hub: DevHub, machines: Machines, case: str, transfer: str) -> None:
    """Three workers make what one machine makes; the token is one that none of them had."""
    files, options = CASES[case]
    hub.add_repo("st/model", files)
    alone = mirror("st/model", "me/alone", transfer=transfer, **options)
    hub.forget()
    result = mirror("st/model", "me/shared", transfer=transfer, cluster=machines.address, **options)
    assert contents(hub, "me/shared") == contents(hub, "me/alone")
    assert [entry["verified"] for entry in result.manifest["source"]["files"]] == ["whole"] * (
        len(alone.manifest["source"]["files"])
    )
    assert (result.stats.bytes_read, result.stats.bytes_written, result.stats.files_verified) == (
        alone.stats.bytes_read,
        alone.stats.bytes_written,
        alone.stats.files_verified,
    )
    assert verify("me/shared", deep=True, against_source=True).ok


def test_what_is_told_on_the_way(hub: DevHub, machines: Machines) -> None:
    """Events add up as on one machine: bytes, parts, verified files."""
    hub.add_repo("st/model", models.bf16())
    events: list[Event] = []
    result = mirror("st/model", "me/shared", cluster=machines.address, on_event=events.append)
    planned = next(event for event in events if isinstance(event, Planned))
    assert sum(event.nbytes for event in events if isinstance(event, BytesRead)) == planned.bytes_in
    assert sum(event.nbytes for event in events if isinstance(event, BytesWritten)) == planned.bytes_out
    done = [event.receipt.path for event in events if isinstance(event, PartDone)]
    assert len(done) == len(set(done)) == planned.parts
    assert sum(isinstance(event, FileVerified) for event in events) == 6
    assert result.stats.peak_memory
    assert result.stats.worker_memory


def test_the_command_line(hub: DevHub, machines: Machines, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` has what it has on one machine, and how large the largest worker grew."""
    hub.add_repo("st/model", models.bf16(3))
    said = []
    for target, cluster in (("me/alone", []), ("me/shared", ["--cluster", machines.address])):
        with pytest.raises(SystemExit) as ended:
            main(["mirror", "st/model", target, "--json", "--no-progress", *cluster])
        assert ended.value.code == 0
        said.append(json.loads(capsys.readouterr().out))
    alone, shared = said
    assert alone.keys() == shared.keys()
    assert alone["stats"].keys() == shared["stats"].keys()
    assert alone["totals"] == shared["totals"]
    assert (alone["stats"]["worker_memory"], shared["stats"]["worker_memory"] > 0) == (None, True)


def test_two_runs_at_once(hub: DevHub, machines: Machines) -> None:
    """Of the same plan, to two repositories, on one cluster: neither takes the other's tasks for its own."""
    hub.add_repo("st/model", models.bf16(4, rows=2000))
    targets = ["me/one", "me/other"]
    with ThreadPoolExecutor(2) as runs:
        results = [*runs.map(lambda to: mirror("st/model", to, cluster=machines.address), targets)]
    assert [result.stats.files_verified for result in results] == [4, 4]
    assert contents(hub, "me/one") == contents(hub, "me/other")


def test_processes_of_an_executor(hub: DevHub) -> None:
    """A `ProcessPoolExecutor`, whose processes have the token from their environment."""
    hub.add_repo("st/model", models.mxfp4())
    mirror("st/model", "me/alone")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as executor:
        result = mirror("st/model", "me/shared", cluster=executor)
    assert contents(hub, "me/shared") == contents(hub, "me/alone")
    assert result.stats.files_verified == 4


def test_an_executor_of_dask(hub: DevHub, machines: Machines) -> None:
    """`Client.get_executor` is an executor like any other: its workers need a token of their own."""
    from distributed import Client

    hub.add_repo("st/model", models.bf16(3))
    with Client(machines.address, set_as_default=False) as client:
        mirror("st/model", "me/client", cluster=client)
        client.run(_set_token, hub.token)
        try:
            mirror("st/model", "me/executor", cluster=client.get_executor(pure=False))
        finally:
            client.run(_set_token, "")
    assert contents(hub, "me/executor") == contents(hub, "me/client")


def _set_token(token: str) -> None:
    import os

    os.environ["HF_TOKEN"] = token


def test_a_cluster_of_its_own(hub: DevHub) -> None:
    """`local:2` starts two processes, and leaves none."""
    import psutil

    hub.add_repo("st/model", models.bf16(3))
    mirror("st/model", "me/alone")
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    mirror("st/model", "me/shared", cluster="local:2")
    assert contents(hub, "me/shared") == contents(hub, "me/alone")
    left = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    assert not [p for p in left if "resource_tracker" not in " ".join(p.cmdline())]
