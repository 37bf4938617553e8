"""The token of a coordinator whose workers have none: in nothing that the cluster shows or keeps."""

from __future__ import annotations

import gzip
import pickle
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from distributed import Client

from tensorport_hub import mirror
from tensorport_hub.cluster.brief import Brief
from tensorport_hub.cluster.worker import Secret
from tensorport_hub.devhub import DevHub, Fault
from tensorport_hub.errors import DestinationError
from tensorport_hub.ports import PartDone
from tests.cluster import models
from tests.cluster.machines import Machines
from tests.cluster.test_come_and_go import SLOWLY, Once


def pages(client: Client) -> Iterator[bytes]:
    """The pages of the dashboard about the cluster, each worker, and each task under way."""
    under_way = client.processing()
    workers = [quote(worker, safe="") for worker in under_way]
    tasks = [quote(str(key), safe="") for keys in under_way.values() for key in keys]
    paths = ["main/workers", "main/logs", "main/exceptions"]
    paths += [f"{kind}/{worker}" for kind in ("worker", "logs", "call-stacks") for worker in workers]
    paths += [f"{kind}/{task}" for kind in ("task", "call-stack") for task in tasks]
    link = client.dashboard_link.removesuffix("/status")
    for path in [*(f"info/{path}.html" for path in paths), "json/identity.json", "json/counts.json"]:
        try:
            with urllib.request.urlopen(f"{link}/{path}", timeout=20) as answer:
                yield answer.read()
        except urllib.error.HTTPError:
            continue  # of a task that has just ended


def state(client: Client, folder: Path) -> bytes:
    """All that scheduler and workers know, as they dump it for a bug report."""
    client.dump_cluster_state(str(folder / "state"), write_from_scheduler=False)
    return gzip.decompress((folder / "state.msgpack.gz").read_bytes())


def test_it_is_seen_nowhere(hub: DevHub, machines: Machines, tmp_path: Path) -> None:
    """Neither while a share is under way, nor after one has failed, nor at the end."""
    hub.add_repo("st/model", models.bf16(3, tensors=8, rows=600))
    seen: list[bytes] = []

    def look() -> None:
        with Client(machines.address, set_as_default=False) as client:
            seen.append(repr(client.processing()).encode())
            seen.append(state(client, tmp_path))
            seen.extend(pages(client))
            seen.append(repr(client.get_events()).encode())
            seen.append(repr([client.get_scheduler_logs(), client.get_worker_logs()]).encode())
            seen.append(repr(client.scheduler_info()).encode())

    hub.faults.add(Fault("slow", origin="cdn", times=None, rate=250_000))
    running = Once(PartDone, look)
    mirror("st/model", "me/shared", cluster=machines.address, on_event=running, **SLOWLY)
    assert running.thread is not None
    running.thread.join()
    assert b"work_for" in b"".join(seen)
    assert b"mirror-" in seen[0]
    hub.faults.clear()
    hub.faults.add(Fault("status", "POST", "hub", "*/objects/batch", status=403, times=None))
    with pytest.raises(DestinationError) as caught:
        mirror("st/model", "me/other", cluster=machines.address, transfer="lfs", restart=True)
    seen.append(repr(caught.value).encode())
    look()
    assert len(seen) > 30
    token = hub.token.encode()
    assert len(token) > 8
    assert not [text[:200] for text in seen if token in text]
    assert hub.token not in machines.logs()
    assert hub.token not in repr(running.events)


def test_a_failed_muster_shows_no_token(hub: DevHub, tmp_path: Path) -> None:
    """Dask logs the arguments of what failed: the token's says nothing."""
    broken = (
        "from tensorport_hub.cluster.workplace import Workplace as W\n"
        "def fail(*_): raise RuntimeError('broken')\n"
        "W.__init__ = fail\n"
    )
    hub.add_repo("st/model", models.bf16(2))
    with Machines(tmp_path / "machines") as machines:
        machines.add(1, first=broken)
        with pytest.raises(DestinationError, match="broken"):
            mirror("st/model", "me/shared", cluster=machines.address)
        said = machines.logs()
    assert "Run Failed" in said
    assert "Secret()" in said
    assert hub.token not in said


def test_what_travels_has_no_token(hub: DevHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The brief has none, and what carries it does not say it."""
    from tensorport_hub import api
    from tensorport_hub.cluster.run import crew_of

    briefs: list[Any] = []

    def kept(cluster: Any, job: Any) -> Any:
        briefs.append(Brief.of(job))
        return crew_of(cluster, job)

    monkeypatch.setattr(api, "crew_of", kept)
    hub.add_repo("st/model", models.bf16(2))
    with ThreadPoolExecutor(1) as executor:
        mirror("st/model", "me/shared", cluster=executor)
    assert hub.token not in repr(briefs)
    assert hub.token.encode() not in pickle.dumps(briefs)
    assert hub.token not in repr(Secret(hub.token)) + str(Secret(hub.token))
