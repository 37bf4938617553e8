"""Xet as the client sees it: tokens, uploads and downloads over HTTP and through `local://`."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest
from huggingface_hub import CommitOperationCopy, HfApi, constants, snapshot_download

from tensorport_hub.devhub import DevHub

from .conftest import Fetch, MakeHub, random_bytes, sha256

WEIGHTS = random_bytes(400_000)


@pytest.fixture(params=["http", "local"])
def hub(make_hub: MakeHub, request: pytest.FixtureRequest) -> Iterator[DevHub]:
    yield make_hub(xet=request.param)
    gc.collect()  # a local:// store stays locked until the objects that use it are gone


@pytest.fixture
def out(api: HfApi, tmp_path: Path) -> str:
    """`me/out` with two LFS files and a text, uploaded by Xet."""
    folder = tmp_path / "up"
    (folder / "sub").mkdir(parents=True)
    (folder / "w.npy").write_bytes(WEIGHTS)
    (folder / "sub" / "v.npy").write_bytes(random_bytes(1000, 1))
    (folder / "a.txt").write_bytes(b"a")
    api.create_repo("me/out")
    return str(api.upload_folder(repo_id="me/out", folder_path=folder).oid)


def test_upload_folder_by_xet(hub: DevHub, out: str) -> None:
    """The commit names a sha256 whose bytes came by Xet; no LFS batch, no token at the CDN."""
    assert hub.read("me/out", "w.npy") == WEIGHTS
    assert hub.files("me/out")["w.npy"][:2] == (400_000, sha256(WEIGHTS))
    assert not any("/info/lfs/" in seen.path for seen in hub.seen)
    assert not any(hub.token in (seen.authorization or "") for seen in hub.seen if seen.origin == "cdn")


def test_upload_of_bytes_by_xet(hub: DevHub, api: HfApi) -> None:
    """Bytes in memory go the same way."""
    api.create_repo("me/out")
    api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="w.npy", repo_id="me/out")
    assert hub.read("me/out", "w.npy") == WEIGHTS


def test_trees_and_resolve_tell_the_xet_hash(hub: DevHub, api: HfApi, out: str) -> None:
    """xetHash in trees; X-Xet-Hash and the token link on resolve; the same hash."""
    row = api.get_paths_info("me/out", "w.npy")[0]
    metadata = api.get_hf_file_metadata(url=f"{hub.endpoint}/me/out/resolve/main/w.npy")
    assert metadata.xet_file_data is not None
    assert metadata.xet_file_data.file_hash == row.xet_hash
    assert metadata.xet_file_data.refresh_route == f"{hub.endpoint}/api/models/me/out/xet-read-token/{out}"
    assert (metadata.etag, metadata.size) == (sha256(WEIGHTS), 400_000)


def test_downloads_by_xet(hub: DevHub, api: HfApi, out: str) -> None:
    """hf_hub_download and snapshot_download take the bytes from the Xet storage."""
    hub.forget()
    assert Path(api.hf_hub_download("me/out", "w.npy")).read_bytes() == WEIGHTS
    folder = Path(snapshot_download("me/out", endpoint=hub.endpoint, token=hub.token))
    assert (folder / "sub" / "v.npy").read_bytes() == random_bytes(1000, 1)
    assert any("/xet-read-token/" in seen.path for seen in hub.seen)
    assert not any(seen.path.startswith("/lfs/") for seen in hub.seen)


def test_bytes_from_xet_are_served_by_http_too(
    hub: DevHub, api: HfApi, out: str, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client without Xet follows the 302 and reads the same bytes, by range as well."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    assert Path(api.hf_hub_download("me/out", "w.npy")).read_bytes() == WEIGHTS
    url = fetch("HEAD", "/me/out/resolve/main/w.npy").headers["Location"]
    answer = fetch("GET", url, token="", headers={"Range": "bytes=70000-300000"})
    assert (answer.status, answer.data) == (206, WEIGHTS[70_000:300_001])


def test_the_same_bytes_again_make_no_commit(hub: DevHub, api: HfApi, out: str) -> None:
    """preupload tells the sha256; the client commits nothing."""
    assert api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="w.npy", repo_id="me/out").oid == out


def test_copies_across_repositories(hub: DevHub, api: HfApi, out: str) -> None:
    """LFS files are duplicated by their Xet hash, regular files are sent again."""
    api.create_repo("me/copy")
    operations = [
        CommitOperationCopy("w.npy", "x/w.npy", src_repo_id="me/out", src_repo_type="model"),
        CommitOperationCopy("a.txt", "a.txt", src_repo_id="me/out", src_repo_type="model"),
    ]
    api.create_commit("me/copy", operations, commit_message="m")
    assert hub.read("me/copy", "x/w.npy") == WEIGHTS
    assert hub.read("me/copy", "a.txt") == b"a"
    assert any(seen.path == "/api/models/me/out/lfs-files/duplicate" for seen in hub.seen)


def test_duplicating_what_is_not_there_fails_for_that_file(hub: DevHub, out: str, fetch: Fetch) -> None:
    """A wrong hash is named in `failed`; an unseen target is not found."""
    files = [{"sha256": sha256(WEIGHTS), "xetHash": "0" * 64, "filename": "w.npy"}]
    path = "/api/models/me/out/lfs-files/duplicate"
    said = {"target": {"type": "model", "name": "me/out"}, "files": files}
    assert fetch("POST", path, json=said).json()["failed"][0]["sha256"] == sha256(WEIGHTS)
    said["target"] = {"type": "model", "name": "me/nowhere"}
    assert fetch("POST", path, json=said).status == 404


def test_pull_requests_by_xet(hub: DevHub, api: HfApi, stranger: HfApi) -> None:
    """`create_pr` asks for a write token without a branch; a stranger may propose files."""
    hub.add_repo("org/model", {"a.txt": b"a"})
    info = stranger.upload_file(
        path_or_fileobj=WEIGHTS, path_in_repo="w.npy", repo_id="org/model", create_pr=True
    )
    assert info.pr_num == 1
    assert hub.read("org/model", "w.npy", revision="refs/pr/1") == WEIGHTS
    stranger.upload_file(
        path_or_fileobj=random_bytes(9), path_in_repo="v.npy", repo_id="org/model", revision="refs/pr/1"
    )
    assert "v.npy" in hub.files("org/model", "refs/pr/1")


def test_xet_tokens_come_as_json_and_headers(hub: DevHub, fetch: Fetch, out: str) -> None:
    """Both forms say the same; the revision may be `None`."""
    for scope, revision in (
        ("read", "main"),
        ("write", "main"),
        ("write", quote("refs/heads/main", safe="")),
    ):
        answer = fetch("GET", f"/api/models/me/out/xet-{scope}-token/{revision}")
        said = answer.json()
        assert said["casUrl"] == answer.headers["X-Xet-Cas-Url"]
        assert said["accessToken"] == answer.headers["X-Xet-Access-Token"]
        assert str(said["exp"]) == answer.headers["X-Xet-Token-Expiration"]
        assert hub.token not in answer.data.decode()
    assert fetch("GET", "/api/models/me/out/xet-write-token/None").status == 200
    assert fetch("GET", "/api/models/me/out/xet-read-token/nowhere").status == 404


def test_xet_write_tokens_need_write_access(hub: DevHub, fetch: Fetch, out: str) -> None:
    """403 for strangers and read tokens, unless they are about to open a pull request."""
    stranger, reader = hub.add_user("stranger"), hub.add_token("me", role="read")
    path = "/api/models/me/out/xet-write-token"
    assert fetch("GET", f"{path}/main", token=stranger).status == 403
    assert fetch("GET", f"{path}/None", token=stranger).status == 403
    assert fetch("GET", f"{path}/None?create_pr=1", token=stranger).status == 200
    assert fetch("GET", f"{path}/main", token=reader).status == 403
    assert fetch("GET", f"{path}/main", token="").status == 401


def test_xet_read_tokens_stop_at_the_gate(hub: DevHub, api: HfApi, fetch: Fetch, out: str) -> None:
    """A gated repository gives no read token to those who were not let in."""
    api.update_repo_settings("me/out", gated="auto")
    path = "/api/models/me/out/xet-read-token/main"
    answer = fetch("GET", path, token=hub.add_user("stranger"))
    assert (answer.status, answer.headers["X-Error-Code"]) == (403, "GatedRepo")
    assert fetch("GET", path).status == 200


def test_without_xet_there_is_no_token_and_no_hash(make_hub: MakeHub) -> None:
    """`off`: the token endpoint is 404."""
    hub = make_hub(xet="off")
    hub.add_repo("me/out", {"w.npy": WEIGHTS})
    headers = {"Authorization": f"Bearer {hub.token}"}
    for scope in ("read", "write"):
        url = f"{hub.endpoint}/api/models/me/out/xet-{scope}-token/main"
        assert httpx2.get(url, headers=headers).status_code == 404
    assert "X-Xet-Hash" not in httpx2.head(f"{hub.endpoint}/me/out/resolve/main/w.npy").headers


def test_an_unknown_xet_mode_is_refused(make_hub: MakeHub) -> None:
    """Only http, local and off."""
    with pytest.raises(ValueError, match="expected `http`, `local` or `off`"):
        make_hub(xet="maybe")


def test_the_storage_takes_no_other_token(make_hub: MakeHub) -> None:
    """The CAS refuses the Hub's own token and a changed one: 401."""
    hub = make_hub()
    hub.add_repo("me/out", {"a.txt": b"a"})
    url = f"{hub.cdn}/cas/v1/reconstructions/{'0' * 64}"
    headers = {"Authorization": f"Bearer {hub.token}"}
    token = httpx2.get(f"{hub.endpoint}/api/models/me/out/xet-read-token/main", headers=headers).json()
    good = token["accessToken"]
    assert httpx2.get(url, headers={"Authorization": f"Bearer {good}"}).status_code == 404
    for wrong in (hub.token, good[:-1] + ("0" if good[-1] != "0" else "1"), "xet_e30.0"):
        assert httpx2.get(url, headers={"Authorization": f"Bearer {wrong}"}).status_code == 401
