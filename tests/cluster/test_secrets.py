"""The token of a coordinator whose workers have none: in nothing that the cluster shows or keeps."""

from __future__ import annotations

import gzip
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from tensorport_hub import mirror
from tensorport_hub.cluster.brief import Brief, Secret
from tensorport_hub.devhub import DevHub, Fault
from tensorport_hub.errors import DestinationError
from tensorport_hub.ports import PartDone
from tests.cluster import models
from tests.cluster.machines import Machines
from tests.cluster.test_come_and_go import Once


def pages(client: Client) -> Iterator[bytes]:
    """Every page of the dashboard, as its own list of them has it."""
    link = client.dashboard_link.removesuffix("/status")
    with urllib.request.urlopen(f"{link}/sitemap.json", timeout=20) as answer:
        import json

        paths = json.load(answer)["paths"]
    assert len(paths) > 20
    for path in paths:
        try:
            with urllib.request.urlopen(link + path, timeout=20) as answer:
                yield answer.read()
        except urllib.error.HTTPError:
            continue  # a page that wants to be told more


def state(client: Client, folder: Path) -> bytes:
    """All that scheduler and workers know, as they dump it for a bug report."""
    client.dump_cluster_state(str(folder / "state"), write_from_scheduler=False)
    return gzip.decompress((folder / "state.msgpack.gz").read_bytes())


def test_it_is_seen_nowhere(hub: DevHub, machines: Machines, tmp_path: Path) -> None:
    """Neither while a share is under way, nor after one has failed, nor at the end."""
    hub.add_repo("st/model", models.bf16(6, rows=1200))
    seen: list[bytes] = []

    def look() -> None:
        with Client(machines.address, set_as_default=False) as client:
            seen.append(repr(client.processing()).encode())
            seen.append(state(client, tmp_path))
            seen.extend(pages(client))
            seen.append(repr(client.get_events()).encode())
            seen.append(repr([client.get_scheduler_logs(), client.get_worker_logs()]).encode())
            seen.append(repr(client.scheduler_info()).encode())

    hub.faults.add(Fault("slow", origin="cdn", times=None, rate=500_000))
    running = Once(PartDone, look)
    mirror("st/model", "me/shared", cluster=machines.address, on_event=running)
    assert running.thread is not None
    running.thread.join()
    assert b"work_for" in b"".join(seen)
    assert b"mirror-" in seen[0]
    hub.faults.add(Fault("status", "PUT", "cdn", status=403, times=None))
    with pytest.raises(DestinationError) as caught:
        mirror("st/model", "me/other", cluster=machines.address, transfer="lfs", restart=True)
    seen.append(repr(caught.value).encode())
    look()
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
    from tensorport_hub.cluster import crew_of

    briefs: list[Any] = []

    def kept(cluster: Any, job: Any) -> Any:
        briefs.append(Brief.of(job))
        return crew_of(cluster, job)

    monkeypatch.setattr(api, "crew_of", kept)
    hub.add_repo("st/model", models.bf16(2))
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as executor:
        mirror("st/model", "me/shared", cluster=executor)
    assert hub.token not in repr(briefs)
    assert hub.token.encode() not in __import__("pickle").dumps(briefs)
    assert hub.token not in repr(Secret(hub.token)) + str(Secret(hub.token))
