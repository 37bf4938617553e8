"""What all runs of an account share: commits within the hour, and windows that are closed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tensorport_hub.devhub import DevHub
from tensorport_hub.edge import pace
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.edge.pace import Pace, pace_of
from tensorport_hub.edge.retry import retried
from tensorport_hub.errors import DestinationError, SourceError, TensorportError
from tensorport_hub.ports import Event, Waiting


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands still until a test moves it."""
    moment = [1000.0]
    monkeypatch.setattr(pace, "monotonic", lambda: moment[0])
    return moment


def test_one_account_has_one_pace() -> None:
    """Clients of the same endpoint and token share it, whoever made them; others don't."""
    one, two = (HubClient(endpoint="http://127.0.0.1:9", token="hf_a") for _ in range(2))
    assert one.pace is two.pace
    assert HubClient(endpoint="http://127.0.0.1:9", token="hf_b").pace is not one.pace
    assert pace_of("http://127.0.0.1:8", "hf_a") is not one.pace


def test_commits_are_counted_for_an_hour(now: list[float]) -> None:
    """A commit counts for an hour; past the number, the next waits until the oldest is over."""
    shared = Pace()
    for _ in range(pace.COMMITS_AN_HOUR):
        shared.committed()
        now[0] += 1
    assert shared.commits() == pace.COMMITS_AN_HOUR
    assert shared.commit_seconds() == 3600 - pace.COMMITS_AN_HOUR
    now[0] += 3600 - pace.COMMITS_AN_HOUR
    assert (shared.commits(), shared.commit_seconds()) == (pace.COMMITS_AN_HOUR - 1, 0)


@pytest.mark.parametrize(
    ("status", "said", "closed"),
    [
        (429, '"api";r=0;t=20', {"api": 20, "resolvers": 0}),
        (429, '"resolvers";r=0;t=3', {"api": 0, "resolvers": 3}),
        (429, '"resolvers";r=5;t=9, "api";r=0;t=4', {"api": 4, "resolvers": 0}),
        (429, '"api";r=0;t=99999999', {"api": 900}),
        (429, '"api";r=7;t=20', {"api": 0}),
        (429, "", {"api": 0}),
        (200, '"api";r=0;t=20', {"api": 0}),
    ],
)
def test_an_exhausted_window_is_closed(
    now: list[float], status: int, said: str, closed: dict[str, float]
) -> None:
    """A refusal that names an exhausted window closes that one, for as long as it says, and no other."""
    shared = Pace()
    shared.hear(status, {"RateLimit": said})
    assert {window: shared.closed_seconds(window) for window in closed} == closed
    now[0] += 900
    assert shared.closed_seconds("api") == 0


def test_a_full_hour_holds_the_commit_back(hub: DevHub, now: list[float]) -> None:
    """The commit isn't sent; the error says for how long, and that it passes."""
    client = HubClient(endpoint=hub.endpoint, token=hub.token)
    client.create_repo("me/x", private=False)
    for _ in range(pace.COMMITS_AN_HOUR):
        client.pace.committed()
    hub.forget()
    with pytest.raises(DestinationError, match="within the hour") as caught:
        client.commit("me/x", "main", uploaded=[], small=[], deleted=[], parent="0" * 40, message="m")
    assert (caught.value.transient, caught.value.retry_after) == (True, 3600)
    assert hub.seen == []


def test_a_window_is_waited_out_once(tmp_path: Path) -> None:
    """Of many threads past the limit, one is refused by the server; all come through after the window."""
    with DevHub(tmp_path / "limited", rate_limits={"api": 3}, rate_window=6) as hub:
        hub.add_repo("a/b", {"config.json": b"{}"})
        client = HubClient(endpoint=hub.endpoint, token=hub.token)
        events: list[Event] = []
        for _ in range(3):
            client.repo_state("a/b", None, SourceError)
        with pytest.raises(TensorportError):
            client.repo_state("a/b", None, SourceError)
        others = [HubClient(endpoint=hub.endpoint, token=hub.token) for _ in range(3)]
        threads = [
            threading.Thread(
                target=lambda c=c: retried(lambda: c.repo_state("a/b", None, SourceError), events.append)
            )
            for c in others
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [seen.status for seen in hub.seen].count(429) == 1
        assert [seen.status for seen in hub.seen].count(200) == 6
        assert all("rate limit `api`" in event.reason for event in events if isinstance(event, Waiting))
        assert len(events) == 3


def test_the_other_window_stays_open(tmp_path: Path) -> None:
    """While the API's window is closed, files can still be read."""
    with DevHub(tmp_path / "limited", rate_limits={"api": 1}, rate_window=60) as hub:
        commit = hub.add_repo("a/b", {"config.json": b"{}"})
        client = HubClient(endpoint=hub.endpoint, token=hub.token)
        client.repo_state("a/b", None, SourceError)
        with pytest.raises(SourceError, match="429"):
            client.repo_state("a/b", None, SourceError)
        with pytest.raises(SourceError, match="waits for the rate limit"):
            client.repo_state("a/b", None, SourceError)
        events: list[Event] = []
        read = retried(lambda: client.read_file("a/b", "config.json", commit), events.append)
        assert read == b"{}"
        assert not [e for e in events if isinstance(e, Waiting) and "rate limit" in e.reason]


def test_a_share_of_a_window(now: list[float]) -> None:
    """Past its share a process holds back until half of it is free again; other windows are not concerned."""
    shared = Pace()
    shared.deal({"api": (4, 300.0)})
    for _ in range(4):
        assert shared.closed_seconds("api") == 0
        shared.asked("api")
        shared.asked("resolvers")
        now[0] += 10
    assert shared.closed_seconds("api") == 300 - 20
    assert shared.closed_seconds("resolvers") == 0
    now[0] += 280
    assert shared.closed_seconds("api") == 0
    shared.deal({"api": (1, 300.0)})
    assert shared.closed_seconds("api") == 10
    shared.deal({})
    assert shared.closed_seconds("api") == 0


def test_a_client_keeps_to_its_share(hub: DevHub, now: list[float]) -> None:
    """What is past it isn't sent; the error says for how long, and that it passes."""
    hub.add_repo("a/b", {"config.json": b"{}"})
    client = HubClient(endpoint=hub.endpoint, token=hub.token)
    client.pace.deal({"api": (2, 60.0)})
    for _ in range(2):
        client.repo_state("a/b", None, SourceError)
    hub.forget()
    with pytest.raises(SourceError, match="rate limit `api`") as caught:
        client.repo_state("a/b", None, SourceError)
    assert (caught.value.transient, caught.value.retry_after) == (True, 60)
    assert hub.seen == []
