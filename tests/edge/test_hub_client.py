"""The Hub's own client, adapted: how long a Hub that says nothing is waited for."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx2
import pytest
from huggingface_hub import close_session
from huggingface_hub.utils import get_session

from tensorport_hub.edge import hub_client
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.errors import DestinationError, SourceError


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An endpoint that takes connections and says nothing; a short limit, and a client that has none yet."""
    monkeypatch.setattr(hub_client, "_SILENCE", httpx2.Timeout(0.2))
    close_session()
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    close_session()


def test_a_silent_hub_is_given_up(silent: str) -> None:
    """By our own requests and by those of its client: an error that may pass, of whom was asked."""
    client = HubClient(endpoint=silent, token="hf_x")
    with pytest.raises(SourceError, match="repository `org/model` can't be reached: ReadTimeout") as listed:
        client.repo_state("org/model", None, SourceError)
    with pytest.raises(DestinationError, match="the account can't be reached: ReadTimeout") as asked:
        client.whoami()
    assert listed.value.transient
    assert asked.value.transient


def test_the_limit_of_whoever_shares_the_client_stays(silent: str) -> None:
    """A program that set one for the client that all share in its process keeps it."""
    theirs = httpx2.Timeout(0.1)
    get_session().timeout = theirs
    with pytest.raises(DestinationError):
        HubClient(endpoint=silent, token="hf_x").whoami()
    assert get_session().timeout == theirs
