"""Repositories: whoami, create, delete, move, settings, and who may do it."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tensorport_hub.devhub import DevHub

from .conftest import Fetch, random_bytes


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def test_whoami_tells_name_orgs_and_token_role(hub: DevHub, api: HfApi) -> None:
    """GET whoami-v2 has what `whoami` and the token role reader want."""
    hub.add_user("me", orgs={"org": "write"})
    said = api.whoami()
    assert said["name"] == "me"
    assert said["auth"]["accessToken"]["role"] == "write"
    assert [(org["name"], org["roleInOrg"]) for org in said["orgs"]] == [("org", "write")]


def test_whoami_refuses_a_token_it_does_not_know(hub: DevHub) -> None:
    """A wrong token is a 401, also one that was revoked."""
    token = hub.add_token("me")
    hub.revoke(token)
    for wrong in ("hf_nobody", token):
        with pytest.raises(HfHubHTTPError) as error:
            HfApi(endpoint=hub.endpoint, token=wrong).whoami()
        assert status_of(error) == 401


def test_a_wrong_token_is_refused_on_public_repositories_too(hub: DevHub) -> None:
    """401 for bad credentials wins over public access."""
    hub.add_repo("org/model", {"a": b"a"})
    with pytest.raises(HfHubHTTPError) as error:
        HfApi(endpoint=hub.endpoint, token="hf_nobody").model_info("org/model")
    assert status_of(error) == 401


def test_create_repo_makes_it_with_the_hubs_gitattributes(hub: DevHub, api: HfApi) -> None:
    """POST repos/create answers the URL; the first commit holds `.gitattributes`."""
    url = api.create_repo("me/out")
    assert url == f"{hub.endpoint}/me/out"
    assert url.repo_id == "me/out"
    assert list(hub.files("me/out")) == [".gitattributes"]
    assert hub.files("me/out")[".gitattributes"][2] == "a6344aac8c09253b3b630fb776ae94478aa0275b"


def test_create_repo_twice_is_a_conflict_unless_exist_ok(api: HfApi) -> None:
    """409 the second time; with exist_ok the client is satisfied with it."""
    api.create_repo("me/out")
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo("me/out")
    assert status_of(error) == 409
    assert api.create_repo("me/out", exist_ok=True).repo_id == "me/out"


def test_create_repo_in_a_foreign_namespace_is_forbidden(hub: DevHub, stranger: HfApi) -> None:
    """403 where the user has no role, or only reads."""
    hub.add_user("stranger", orgs={"org": "read"})
    for name in ("me/x", "org/x"):
        with pytest.raises(HfHubHTTPError) as error:
            stranger.create_repo(name)
        assert status_of(error) == 403


def test_create_repo_with_a_read_token_is_forbidden(hub: DevHub) -> None:
    """A read token changes nothing, not even in its user's namespace."""
    reader = HfApi(endpoint=hub.endpoint, token=hub.add_token("me", role="read"))
    with pytest.raises(HfHubHTTPError) as error:
        reader.create_repo("me/out")
    assert status_of(error) == 403


def test_a_bad_repository_name_is_refused(fetch: Fetch) -> None:
    """A name that the Hub does not allow is a 400."""
    assert fetch("POST", "/api/repos/create", json={"name": "a..b", "organization": "me"}).status == 400


def test_delete_repo_removes_it(api: HfApi) -> None:
    """DELETE repos/delete; afterwards it is not found, and deleting again is fine with missing_ok."""
    api.create_repo("me/out")
    api.delete_repo("me/out")
    assert not api.repo_exists("me/out")
    api.delete_repo("me/out", missing_ok=True)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("me/out")


def test_delete_repo_needs_write_access(hub: DevHub, api: HfApi, stranger: HfApi) -> None:
    """A stranger may not delete."""
    api.create_repo("me/out")
    with pytest.raises(HfHubHTTPError) as error:
        stranger.delete_repo("me/out")
    assert status_of(error) == 403


def test_a_new_repository_of_a_deleted_name_knows_nothing_of_the_old(hub: DevHub, api: HfApi) -> None:
    """Deleting and making again starts from nothing."""
    hub.add_repo("me/out", {"old.txt": b"old"})
    api.delete_repo("me/out")
    api.create_repo("me/out")
    assert list(hub.files("me/out")) == [".gitattributes"]


def test_move_repo_renames_and_the_old_name_redirects(hub: DevHub, api: HfApi) -> None:
    """POST repos/move; files are found under the new name, and under the old by a redirect."""
    hub.add_repo("me/old", {"a.txt": b"a"})
    api.move_repo("me/old", "me/new")
    assert hub.read("me/new", "a.txt") == b"a"
    assert api.model_info("me/old").id == "me/new"
    assert api.get_paths_info("me/new", "a.txt", revision="main")[0].path == "a.txt"


def test_move_repo_onto_another_is_a_conflict(hub: DevHub, api: HfApi) -> None:
    """409 where the target exists; 403 into a foreign namespace."""
    api.create_repo("me/a")
    api.create_repo("me/b")
    hub.add_repo("org/c", {"a": b"a"})
    with pytest.raises(HfHubHTTPError) as error:
        api.move_repo("me/a", "me/b")
    assert status_of(error) == 409
    with pytest.raises(HfHubHTTPError) as error:
        api.move_repo("me/a", "org/a")
    assert status_of(error) == 403


def test_settings_change_visibility_and_gate(hub: DevHub, api: HfApi, anonymous: HfApi) -> None:
    """PUT settings: private hides, a gate is told."""
    api.create_repo("me/out")
    api.update_repo_settings("me/out", gated="auto")
    assert anonymous.model_info("me/out").gated == "auto"
    api.update_repo_settings("me/out", visibility="private")
    assert not anonymous.repo_exists("me/out")


def test_a_private_repository_does_not_exist_for_strangers(
    hub: DevHub, api: HfApi, stranger: HfApi, anonymous: HfApi, fetch: Fetch
) -> None:
    """RepoNotFound: 404 with a token, 401 without, on the API and on files alike."""
    api.create_repo("me/secret", private=True)
    assert api.model_info("me/secret").private is True
    for client in (stranger, anonymous):
        with pytest.raises(RepositoryNotFoundError):
            client.model_info("me/secret")
    token = hub.add_token("stranger")
    for path in ("/api/models/me/secret", "/me/secret/resolve/main/.gitattributes"):
        with_token, without = fetch("GET", path, token=token), fetch("GET", path, token="")
        assert (with_token.status, with_token.headers["X-Error-Code"]) == (404, "RepoNotFound")
        assert (without.status, without.headers["X-Error-Code"]) == (401, "RepoNotFound")


def test_members_of_an_organization_see_its_private_repositories(hub: DevHub) -> None:
    """A member reads; only roles `write` and `admin` write."""
    hub.add_repo("org/secret", {"a.txt": b"a"}, private=True)
    reader = HfApi(endpoint=hub.endpoint, token=hub.add_user("reader", orgs={"org": "read"}))
    writer = HfApi(endpoint=hub.endpoint, token=hub.add_user("writer", orgs={"org": "write"}))
    assert reader.model_info("org/secret").private is True
    with pytest.raises(HfHubHTTPError) as error:
        reader.create_branch("org/secret", branch="b")
    assert status_of(error) == 403
    writer.create_branch("org/secret", branch="b")


def test_a_gated_repository_tells_its_facts_and_keeps_its_files(
    hub: DevHub, stranger: HfApi, anonymous: HfApi, fetch: Fetch
) -> None:
    """GatedRepo on /resolve/ (403, or 401 without a token) while model_info and the tree are public."""
    hub.add_repo("org/gated", {"w.safetensors": random_bytes(100), "a.txt": b"a"}, gated=True)
    for client in (stranger, anonymous):
        assert client.model_info("org/gated").gated == "auto"
        assert {file.path for file in client.list_repo_tree("org/gated")} >= {"a.txt", "w.safetensors"}
        with pytest.raises(GatedRepoError):
            client.get_hf_file_metadata(url=f"{hub.endpoint}/org/gated/resolve/main/a.txt")
        with pytest.raises(GatedRepoError):
            client.auth_check("org/gated")
    assert fetch("GET", "/org/gated/resolve/main/a.txt").status == 403
    assert fetch("GET", "/org/gated/resolve/main/a.txt", token="").status == 401


def test_a_gated_repository_opens_to_those_who_were_let_in(hub: DevHub) -> None:
    """`can_read_gated` lets one user read, and nobody else."""
    hub.add_repo("org/gated", {"a.txt": b"a"}, gated=True)
    token = hub.add_user("friend", can_read_gated=["org/gated"])
    metadata = HfApi(endpoint=hub.endpoint, token=token).get_hf_file_metadata(
        url=f"{hub.endpoint}/org/gated/resolve/main/a.txt"
    )
    assert metadata.size == 1


def test_auth_check_tells_read_from_write(hub: DevHub, api: HfApi, stranger: HfApi) -> None:
    """GET auth-check and auth-check/write."""
    api.create_repo("me/out")
    api.auth_check("me/out", write=True)
    stranger.auth_check("me/out")
    with pytest.raises(HfHubHTTPError):
        stranger.auth_check("me/out", write=True)


def test_an_unknown_revision_is_told_as_such(hub: DevHub, api: HfApi) -> None:
    """RevisionNotFound, on the API and on files."""
    hub.add_repo("org/model", {"a.txt": b"a"})
    with pytest.raises(RevisionNotFoundError):
        api.model_info("org/model", revision="nowhere")
    with pytest.raises(RevisionNotFoundError):
        api.get_hf_file_metadata(url=f"{hub.endpoint}/org/model/resolve/nowhere/a.txt")


def test_models_are_listed_by_author_and_search(hub: DevHub, api: HfApi, anonymous: HfApi) -> None:
    """GET /api/models: what the caller sees, newest first."""
    hub.add_repo("org/one", {"README.md": b"---\ntags: [x]\n---\n"})
    hub.add_repo("org/two", {"a": b"a"}, private=True)
    hub.add_repo("me/one", {"a": b"a"})
    assert [model.id for model in anonymous.list_models()] == ["me/one", "org/one"]
    assert [model.id for model in api.list_models(author="org")] == ["org/one"]
    assert [model.id for model in api.list_models(search="one", filter="x")] == ["org/one"]


def test_datasets_and_spaces_are_kinds_of_their_own(hub: DevHub, api: HfApi) -> None:
    """The same name may be a model and a dataset; URLs carry the kind."""
    api.create_repo("me/same")
    url = api.create_repo("me/same", repo_type="dataset")
    assert url == f"{hub.endpoint}/datasets/me/same"
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="me/same", repo_type="dataset")
    assert hub.read("me/same", "x.txt", kind="dataset") == b"x"
    assert "x.txt" not in hub.files("me/same")
    path = api.hf_hub_download("me/same", "x.txt", repo_type="dataset")
    assert Path(path).read_bytes() == b"x"


def test_nonsense_is_a_bad_request(fetch: Fetch, api: HfApi) -> None:
    """A body that is not a JSON object, a cursor that is not a number: 400, not a crash."""
    api.create_repo("me/out")
    assert fetch("POST", "/api/repos/create", body=b"[1]").status == 400
    assert fetch("POST", "/api/repos/create", body=b"{").status == 400
    assert fetch("GET", "/api/models/me/out/tree/main?cursor=x").status == 400
    assert fetch("GET", "/api/nowhere").status == 404


def test_update_settings_refuses_an_unknown_gate(fetch: Fetch, api: HfApi) -> None:
    """Only `auto`, `manual` and false are gates."""
    api.create_repo("me/out")
    assert fetch("PUT", "/api/models/me/out/settings", json={"gated": "maybe"}).status == 400
    with pytest.raises((BadRequestError, ValueError)):
        api.update_repo_settings("me/out", gated="maybe")  # type: ignore[arg-type]  # wrong on purpose
