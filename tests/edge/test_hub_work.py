"""Work refs: who may give one up."""

from __future__ import annotations

import pytest

from tensorport_hub.devhub import DevHub, Fault
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.edge.hub_find import open_work
from tensorport_hub.edge.hub_ref import HubRef
from tensorport_hub.edge.hub_work import Request, Work


@pytest.mark.parametrize("by", ["pull request", "branch"])
def test_a_run_that_was_taken_over_gives_nothing_up(hub: DevHub, by: str) -> None:
    """The one that claimed last may; for any earlier one the ref is another's."""
    client = HubClient(endpoint=hub.endpoint, token=hub.token)
    client.create_repo("me/mirror", private=False)
    if by == "branch":
        hub.faults.add(Fault("status", "POST", "hub", "*/discussions", status=403, times=None))

    def claimed() -> Work:
        target = HubRef.of(client, "me/mirror", "main", lambda event: None)
        work = open_work(
            target,
            Request("0" * 64, "Mirror", "me", None, offer=False, anew=False),
            restart=False,
            needed=True,
        )
        assert work is not None
        work.claim()
        return work

    earlier, later = claimed(), claimed()
    assert earlier.ref.revision == later.ref.revision
    earlier.discard("this plan can't be carried out")
    assert claimed().ref.revision == later.ref.revision
    last = claimed()
    kept = client.call(lambda api: api.list_repo_commits("me/mirror", revision=last.ref.commit), "")
    assert later.ref.commit in [commit.commit_id for commit in kept]
    last.discard("this plan can't be carried out")
    anew = claimed()
    assert len(hub.commits("me/mirror", anew.ref.revision)) == 2
    assert (anew.ref.revision == last.ref.revision) == (by == "branch")
