"""Who may work: version, source, token; what is refused before anything is written."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tensorport_hub import convert, mirror, plan
from tensorport_hub.cli import main
from tensorport_hub.cluster import dask, workplace
from tensorport_hub.devhub import DevHub, Fault
from tensorport_hub.errors import DestinationError, SourceError, UseError
from tensorport_hub.ports import Event, PartDone, Planned, Warned
from tests.cluster import models
from tests.cluster.machines import Machines
from tests.cluster.test_come_and_go import SLOWLY, Once
from tests.e2e.reading import contents

OTHER = "import tensorport_hub; tensorport_hub.__version__ = '0.0.9'"


def written(hub: DevHub) -> list[str]:
    """Requests that changed something."""
    return [s.path for s in hub.seen if s.method != "GET" and s.method != "HEAD" and s.status < 400]


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (OTHER, "it has tensorport-hub 0.0.9: expected"),
        ("import sys; sys.modules['tensorport_hub'] = None", "it has no tensorport-hub"),
    ],
    ids=["another version", "none"],
)
def test_another_version(hub: DevHub, tmp_path: Path, first: str, said: str) -> None:
    """The worker is named, before anything is written."""
    hub.add_repo("st/model", models.bf16(2))
    hub.forget()
    with Machines(tmp_path / "machines") as machines:
        machines.add(1, first=first)
        [worker] = machines.known()
        with pytest.raises(UseError, match=said) as caught:
            mirror("st/model", "me/shared", cluster=machines.address)
    assert worker in caught.value.message
    assert "same version" in caught.value.hint
    assert written(hub) == []


def test_another_version_that_joins_late(hub: DevHub, machines: Machines) -> None:
    """It gets nothing, and the user is told."""
    hub.add_repo("st/model", models.bf16(4, tensors=8, rows=600))
    mirror("st/model", "me/alone")
    hub.faults.add(Fault("slow", origin="cdn", times=None, rate=300_000))
    late = Once(PartDone, lambda: machines.add(1, first=OTHER))
    try:
        mirror("st/model", "me/shared", cluster=machines.address, on_event=late, **SLOWLY)
        assert late.thread is not None
        late.thread.join()
    finally:
        machines.workers.pop().kill()
    assert any("gets nothing: it has tensorport-hub 0.0.9" in event.message for event in late.of(Warned))
    assert contents(hub, "me/shared") == contents(hub, "me/alone")


def test_without_access_to_the_source(hub: DevHub, tmp_path: Path) -> None:
    """A worker whose own account may not read a gated model is named, before anything is written."""
    hub.add_repo("st/model", models.bf16(2), gated=True)
    stranger = hub.add_user("stranger")
    hub.add_user("me", can_read_gated=["st/model"])
    hub.forget()
    with Machines(tmp_path / "machines") as machines:
        machines.add(1, HF_TOKEN=stranger)
        [worker] = machines.known()
        with pytest.raises(SourceError, match="gated") as caught:
            mirror("st/model", "me/shared", private=True, cluster=machines.address)
    assert worker in caught.value.message
    assert written(hub) == []


def test_an_executor_without_a_token(hub: DevHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told where the workers' token must come from."""
    hub.add_repo("st/model", models.bf16(2))
    monkeypatch.delenv("HF_TOKEN")
    with (
        ThreadPoolExecutor(1) as executor,
        pytest.raises(DestinationError, match="this worker has none") as caught,
    ):
        mirror("st/model", "me/shared", token=hub.token, cluster=executor)
    assert "HF_TOKEN" in caught.value.hint


def test_an_executor_of_another_version(hub: DevHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes a share compares its own version with the plan's."""
    hub.add_repo("st/model", models.bf16(2))
    monkeypatch.setattr(workplace, "__version__", "0.0.9")
    with ThreadPoolExecutor(1) as executor, pytest.raises(UseError, match=r"worker 1: it has tensorport-hub"):
        mirror("st/model", "me/shared", cluster=executor)


def test_a_folder_that_is_another_one(hub: DevHub, machines: Machines, tmp_path: Path) -> None:
    """A worker that sees another state of the folder makes nothing."""
    model = tmp_path / "model"
    model.mkdir()
    for path, data in models.bf16(2).items():
        (model / path).write_bytes(data)

    def touch(event: Event) -> None:
        if isinstance(event, Planned):
            (model / "config.json").write_bytes(b"{}")

    with pytest.raises(SourceError, match="is not what it is for the coordinator"):
        mirror(str(model), "me/shared", cluster=machines.address, on_event=touch)


def test_a_folder_that_workers_see(hub: DevHub, machines: Machines, tmp_path: Path) -> None:
    """A source folder will do where every worker sees the same files."""
    model = tmp_path / "model"
    model.mkdir()
    for path, data in models.bf16(3).items():
        (model / path).write_bytes(data)
    mirror(str(model), "me/alone")
    mirror(str(model), "me/shared", cluster=machines.address)
    assert contents(hub, "me/shared") == contents(hub, "me/alone")


@pytest.mark.parametrize(
    ("destination", "cluster", "said"),
    [
        ("./out", "local:2", "not on the Hub"),
        ("git+file:///srv/x.git", "local:2", "not on the Hub"),
        ("me/shared", "http://127.0.0.1:1", "no cluster"),
        ("me/shared", "local:0", "no cluster"),
        ("me/shared", "local", "no cluster"),
    ],
)
def test_what_can_not_be(
    hub: DevHub, capsys: pytest.CaptureFixture[str], destination: str, cluster: str, said: str
) -> None:
    """Exit 2, by `mirror` and `plan`, and nobody is asked anything."""
    hub.add_repo("st/model", models.bf16(2))
    hub.forget()
    for verb in ("mirror", "plan"):
        with pytest.raises(SystemExit) as ended:
            main([verb, "st/model", destination, "--cluster", cluster, "--no-progress"])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
    assert hub.seen == []


def test_what_is_no_cluster() -> None:
    """Neither an address, nor an executor, nor a client."""
    with pytest.raises(UseError, match="int is no cluster"):
        mirror("st/model", "me/shared", cluster=3)  # type: ignore[arg-type]


def test_convert_knows_no_cluster(tmp_path: Path) -> None:
    """A folder is no place for many machines."""
    with pytest.raises(UseError, match="not on the Hub"):
        convert("st/model", str(tmp_path / "out"), cluster="local:2")


def test_without_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra that is missing is named."""
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UseError, match="needs Dask") as caught:
        mirror("st/model", "me/shared", cluster="tcp://127.0.0.1:1")
    assert "[cluster]" in caught.value.hint


def test_nobody_answers(hub: DevHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address is named; exit 5."""
    monkeypatch.setattr(dask, "_CONNECT_SECONDS", 1)
    hub.add_repo("st/model", models.bf16(2))
    with pytest.raises(DestinationError, match=r"no scheduler answers at `tcp://127\.0\.0\.1:9`"):
        mirror("st/model", "me/shared", cluster="tcp://127.0.0.1:9")


def test_plan_says_how_it_would_be_divided(hub: DevHub, capsys: pytest.CaptureFixture[str]) -> None:
    """Shares and the largest one; files that hold several tensors leave one share, which is warned of."""
    files = models.bf16(6)
    hub.add_repo("st/model", files)
    seen = plan("st/model", "me/shared", cluster="tcp://127.0.0.1:9")
    largest = max(len(data) for path, data in files.items() if path.endswith(".safetensors"))
    assert (seen.shares, seen.largest_share) == (6, largest)
    with pytest.raises(SystemExit):
        main(["plan", "st/model", "me/shared", "--no-progress"])
    assert "in a cluster 6 shares, of at most" in capsys.readouterr().out
    assert plan("st/model", "me/shared", format="msgpack").shares == 1
    assert plan("st/model", "./out").shares == 0


def test_one_share_is_warned_of(hub: DevHub, machines: Machines) -> None:
    """The user learns that one worker does it all."""
    hub.add_repo("st/model", models.bf16(3))
    events: list[Event] = []
    mirror("st/model", "me/shared", format="msgpack", cluster=machines.address, on_event=events.append)
    assert any("one worker" in event.message for event in events if isinstance(event, Warned))
