"""Trusted publishers: identities, tokens, and what these are good for."""

from __future__ import annotations

import time

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub._oidc import exchange_oidc_token
from huggingface_hub.errors import HfHubHTTPError

from tensorport_hub.devhub import DevHub, publishers

CLAIMS = {"repository": "me/bot", "ref": "refs/heads/main", "workflow": "mirror"}


@pytest.fixture
def trusting(hub: DevHub) -> DevHub:
    hub.add_repo("me/mirror", {"a.txt": b"1"})
    hub.add_repo("me/other", {"a.txt": b"1"})
    hub.add_repo("me/closed", {"a.txt": b"1"}, private=True)
    hub.trust("me/mirror", {"repository": "me/bot", "workflow": "mirror"})
    return hub


def exchanged(hub: DevHub, id_token: str, resource: str = "me/mirror") -> str:
    said = exchange_oidc_token(subject_token=id_token, resource=resource, endpoint=hub.endpoint)
    assert (said["token_type"], said["expires_in"]) == ("bearer", 3600)
    return str(said["access_token"])


def test_a_token_writes_to_its_repository_alone(trusting: DevHub) -> None:
    """It commits and opens pull requests there, reads what strangers read elsewhere, and makes nothing."""
    token = exchanged(trusting, trusting.id_token(CLAIMS, trusting.endpoint))
    api = HfApi(endpoint=trusting.endpoint, token=token)
    upload = {"path_or_fileobj": b"2", "path_in_repo": "b.txt"}
    api.upload_file(repo_id="me/mirror", **upload)
    assert api.create_pull_request("me/mirror", title="more").num == 1
    assert api.file_exists("me/other", "a.txt")
    assert not api.repo_exists("me/closed")
    for refused in (
        lambda: api.upload_file(repo_id="me/other", **upload),
        lambda: api.upload_file(repo_id="me/other", create_pr=True, **upload),
        lambda: api.create_repo("me/new"),
        lambda: api.delete_repo("me/other"),
    ):
        with pytest.raises(HfHubHTTPError):
            refused()
    assert list(trusting.files("me/other")) == [".gitattributes", "a.txt"]


def test_who_gets_none(trusting: DevHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another repository, other claims, another audience, an old or foreign identity: 400, and no reason."""
    good = trusting.id_token(CLAIMS, trusting.endpoint)
    with pytest.raises(HfHubHTTPError, match="invalid_grant"):
        exchanged(trusting, good, "me/other")
    for token in (
        trusting.id_token({**CLAIMS, "workflow": "evil"}, trusting.endpoint),
        trusting.id_token({"repository": "me/bot"}, trusting.endpoint),
        trusting.id_token(CLAIMS, "https://elsewhere.example"),
        good[:-1] + ("0" if good[-1] != "0" else "1"),
        "nonsense",
    ):
        with pytest.raises(HfHubHTTPError, match="invalid_grant"):
            exchanged(trusting, token)
    answer = httpx2.post(f"{trusting.endpoint}/oauth/token", json={"subject_token": good})
    assert (answer.status_code, answer.json()) == (400, {"error": "invalid_request"})
    later = time.time() + 301
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(HfHubHTTPError, match="invalid_grant"):
        exchanged(trusting, good)


def test_a_token_dies(trusting: DevHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its hour it is as good as a wrong one."""
    token = exchanged(trusting, trusting.id_token(CLAIMS, trusting.endpoint))
    later = time.time() + publishers.SECONDS + 1
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(endpoint=trusting.endpoint, token=token).whoami()
