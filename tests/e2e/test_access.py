"""Whose model, whose repository: what may be read, and where it may be published."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi

from tensorport_hub import inspect, mirror, plan
from tensorport_hub.devhub import DevHub
from tensorport_hub.errors import DestinationError, SourceError, UseError


def test_default_destination_is_mine(hub: DevHub, gptoss: Path) -> None:
    """Without DST, the mirror goes to `<me>/<model>-npy`."""
    hub.add_repo("openai/tiny", gptoss)
    assert mirror("openai/tiny").destination == "me/tiny-npy"


@pytest.mark.parametrize("kind", ["private", "gated"])
def test_closed_sources_stay_closed(hub: DevHub, client: HfApi, gptoss: Path, kind: str) -> None:
    """A private or gated source gives a private mirror, and an open one only to who says that he may."""
    token = hub.add_user("insider", orgs={"org": "write"}, can_read_gated=["org/closed"])
    hub.add_repo("org/closed", gptoss, private=kind == "private", gated=kind == "gated")
    mirror("org/closed", "insider/copy", token=token)
    assert HfApi(endpoint=hub.endpoint, token=token).model_info("insider/copy").private is True
    with pytest.raises(DestinationError, match="would be open"):
        mirror("org/closed", "insider/open", private=False, token=token)
    assert not HfApi(endpoint=hub.endpoint, token=token).repo_exists("insider/open")
    mirror("org/closed", "insider/open", private=False, i_have_rights=True, token=token)
    assert HfApi(endpoint=hub.endpoint, token=token).model_info("insider/open").private is False


def test_an_open_repository_is_no_place_for_a_closed_source(hub: DevHub, gptoss: Path) -> None:
    """An existing open mirror is not filled from a gated source."""
    token = hub.add_user("insider", orgs={"org": "write"}, can_read_gated=["org/closed"])
    hub.add_repo("org/open", gptoss)
    mirror("org/open", "insider/copy", token=token)
    hub.add_repo("org/closed", gptoss, gated=True)
    with pytest.raises(DestinationError, match="would be open"):
        mirror("org/closed", "insider/copy", token=token)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("org/nothing", "is not there"),
        ("org/hidden", "is not there"),
        ("org/gated", "is gated"),
        ("org/model@nowhere", "is not there"),
    ],
)
def test_sources_that_can_not_be_read(hub: DevHub, gptoss: Path, source: str, words: str) -> None:
    """Absent, private, gated, no such revision: a source error (4) that says which, with a hint."""
    token = hub.add_user("stranger")
    hub.add_repo("org/hidden", gptoss, private=True)
    hub.add_repo("org/gated", gptoss, gated=True)
    hub.add_repo("org/model", gptoss)
    with pytest.raises(SourceError, match=words) as caught:
        mirror(source, "stranger/copy", token=token)
    assert source.partition("@")[0] in str(caught.value)
    assert caught.value.hint
    assert caught.value.exit_code == 4


def test_a_bad_token_is_told_but_not_shown(hub: DevHub, gptoss: Path) -> None:
    """A token that the Hub does not know is an error that does not contain it."""
    hub.add_repo("openai/tiny", gptoss)
    with pytest.raises(SourceError, match="valid token") as caught:
        mirror("openai/tiny", "me/copy", token="hf_thisisnotatoken")
    assert "hf_thisisnotatoken" not in f"{caught.value}{caught.value.hint}"


def test_a_read_token_can_not_write(hub: DevHub, gptoss: Path) -> None:
    """A token without write access is a destination error (5)."""
    hub.add_repo("openai/tiny", gptoss)
    token = hub.add_token("me", role="read")
    with pytest.raises(DestinationError, match="forbidden") as caught:
        mirror("openai/tiny", "me/copy", token=token)
    assert caught.value.exit_code == 5


def test_a_foreign_repository_is_refused(hub: DevHub, client: HfApi, gptoss: Path) -> None:
    """An existing repository that is no mirror is left alone; an empty one is filled."""
    hub.add_repo("openai/tiny", gptoss)
    hub.add_repo("me/precious", {"notes.txt": b"mine"})
    for verb in (mirror, plan):
        with pytest.raises(DestinationError, match="no mirror of ours"):
            verb("openai/tiny", "me/precious")
    assert hub.read("me/precious", "notes.txt") == b"mine"
    client.create_repo("me/empty")
    assert mirror("openai/tiny", "me/empty").changed


def test_use_errors(hub: DevHub, gptoss: Path) -> None:
    """DST equal to SRC, and an SRC that is such a mirror, are use errors (2) with a hint."""
    hub.add_repo("openai/tiny", gptoss)
    mirror("openai/tiny", "me/tiny")
    with pytest.raises(UseError, match="the same") as caught:
        mirror("openai/tiny", "OpenAI/tiny")
    assert caught.value.hint
    with pytest.raises(UseError, match="`me/tiny` is a mirror made by this tool already") as caught:
        mirror("me/tiny", "me/again")
    assert caught.value.hint == "mirror the model it was made from"
    with pytest.raises(UseError, match="made by this tool already") as caught:
        inspect("me/tiny")
    assert caught.value.hint == "`tensorport-hub verify me/tiny` checks it"


def test_revisions_are_pinned(hub: DevHub, client: HfApi, gptoss: Path) -> None:
    """A branch, a tag and a commit are resolved once; what came later is not read."""
    commit = hub.add_repo("openai/tiny", gptoss)
    _tag(hub, commit)
    hub.add_repo("openai/tiny", {"config.json": b"{}"}, message="later")
    for i, source in enumerate((f"openai/tiny@{commit}", "openai/tiny@v1", "hf://openai/tiny@v1")):
        result = mirror(source, f"me/tiny-{i}")
        assert result.manifest["source"]["revision"] == commit
        assert "original_config" in result.manifest


def _tag(hub: DevHub, commit: str) -> None:
    """Tag as the organization's owner."""
    owner = HfApi(endpoint=hub.endpoint, token=hub.add_user("owner", orgs={"openai": "admin"}))
    owner.create_tag("openai/tiny", tag="v1", revision=commit)


def test_plan_creates_nothing(hub: DevHub, client: HfApi, gptoss: Path) -> None:
    """`plan` says what a run would do, and reads no weights."""
    hub.add_repo("openai/tiny", gptoss)
    result = plan("openai/tiny", "me/tiny", precision="float32")
    assert not client.repo_exists("me/tiny")
    assert (result.exists, result.private, result.parts) == (False, False, 20)
    assert result.bytes_again <= 0.1 * result.bytes_in
    made = mirror("openai/tiny", "me/tiny", precision="float32")
    assert made.stats.bytes_read == result.bytes_in
    assert made.stats.bytes_published == result.bytes_out
    assert plan("openai/tiny", "me/tiny").exists
