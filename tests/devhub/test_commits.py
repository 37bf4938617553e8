"""Commits: preupload, create_commit and its refusals, copies, branches, tags, squash."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RevisionNotFoundError,
)

from tensorport_hub.devhub import DevHub, commits

from .conftest import Fetch, random_bytes, sha256

COMMIT = "/api/models/me/out/commit/main"


@pytest.fixture(autouse=True)
def _out(api: HfApi, lfs_only: None) -> None:
    """An empty repository `me/out`, and a client without Xet."""
    api.create_repo("me/out")


def ndjson(*operations: tuple[str, dict[str, Any]], **header: Any) -> bytes:
    lines = [("header", {"summary": "s", "description": "", **header}), *operations]
    return b"".join(json.dumps({"key": key, "value": value}).encode() + b"\n" for key, value in lines)


def file(path: str, data: bytes = b"x") -> tuple[str, dict[str, Any]]:
    content = base64.b64encode(data).decode()
    return "file", {"path": path, "content": content, "encoding": "base64"}


def tip(hub: DevHub, revision: str = "main") -> str:
    return hub.commits("me/out", revision)[0].oid


def test_preupload_says_lfs_or_regular_as_the_hub_does(fetch: Fetch) -> None:
    """By rule, by size, by content; empty files are regular; what is there is told by its oid."""
    text, binary = base64.b64encode(b"text"), base64.b64encode(b"\0\1\2")
    asked = {
        "a.npy": (10, text, "lfs"),
        "deep/model.safetensors": (10, text, "lfs"),
        "saved_model/x/y": (10, text, "lfs"),
        "runs/events.out.tfevents": (10, text, "lfs"),
        "big.txt": (10_000_001, text, "lfs"),
        "limit.txt": (10_000_000, text, "regular"),
        "binary.dat": (3, binary, "lfs"),
        "config.json": (10, text, "regular"),
        "empty.npy": (0, b"", "regular"),
    }
    files = [
        {"path": path, "size": size, "sample": sample.decode()} for path, (size, sample, _) in asked.items()
    ]
    answer = fetch("POST", "/api/models/me/out/preupload/main", json={"files": files}).json()
    assert {row["path"]: row["uploadMode"] for row in answer["files"]} == {
        path: mode for path, (_, _, mode) in asked.items()
    }
    assert all(row["oid"] is None and row["shouldIgnore"] is False for row in answer["files"])


def test_preupload_tells_the_oid_of_the_existing_file(hub: DevHub, fetch: Fetch) -> None:
    """git blob id for a regular file, sha256 for an LFS file."""
    hub.add_repo("me/out", {"a.txt": b"", "w.npy": b"\0weights"})
    files = [{"path": path, "size": 8, "sample": ""} for path in ("a.txt", "w.npy")]
    rows = fetch("POST", "/api/models/me/out/preupload/main", json={"files": files}).json()["files"]
    assert [row["oid"] for row in rows] == [
        "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
        sha256(b"\0weights"),
    ]


def test_preupload_hears_the_gitignore(hub: DevHub, api: HfApi) -> None:
    """Ignored files are left out of the commit by the client."""
    additions = {".gitignore": b"*.log\n!keep.log\n/build/\n", "a.log": b"a", "keep.log": b"k"}
    operations = [CommitOperationAdd(path, data) for path, data in additions.items()]
    operations.append(CommitOperationAdd("build/x.txt", b"x"))
    api.create_commit("me/out", operations, commit_message="m")
    assert set(hub.files("me/out")) == {".gitattributes", ".gitignore", "keep.log"}


def test_preupload_refuses_files_without_path_or_size(fetch: Fetch) -> None:
    """400 for an entry that is not whole."""
    for row in ({}, {"path": "a"}, {"path": "a", "size": 1, "sample": "%"}):
        assert fetch("POST", "/api/models/me/out/preupload/main", json={"files": [row]}).status == 400


def test_create_commit_adds_regular_and_lfs_files(hub: DevHub, api: HfApi) -> None:
    """POST commit: oid, URL; the files are there, byte for byte."""
    weights = random_bytes(100_000)
    info = api.create_commit(
        "me/out",
        [CommitOperationAdd("a/b.txt", b"text"), CommitOperationAdd("w.npy", weights)],
        commit_message="Title",
        commit_description="Body",
    )
    assert info.oid == tip(hub)
    assert info.commit_url == f"{hub.endpoint}/me/out/commit/{info.oid}"
    assert hub.read("me/out", "a/b.txt") == b"text"
    assert hub.read("me/out", "w.npy") == weights
    assert hub.files("me/out")["w.npy"][:2] == (100_000, sha256(weights))
    commit = hub.commits("me/out")[0]
    assert (commit.title, commit.message, commit.author) == ("Title", "Body", "me")


def test_upload_folder_and_again_unchanged_makes_no_commit(hub: DevHub, api: HfApi, tmp_path: Path) -> None:
    """The client compares oids and stays quiet; a changed file alone is committed."""
    (tmp_path / "up" / "sub").mkdir(parents=True)
    (tmp_path / "up" / "a.txt").write_bytes(b"a")
    (tmp_path / "up" / "sub" / "w.npy").write_bytes(random_bytes(1000))
    first = api.upload_folder(repo_id="me/out", folder_path=tmp_path / "up")
    again = api.upload_folder(repo_id="me/out", folder_path=tmp_path / "up")
    assert first.oid == again.oid == tip(hub)
    (tmp_path / "up" / "a.txt").write_bytes(b"b")
    api.upload_folder(repo_id="me/out", folder_path=tmp_path / "up", delete_patterns="sub/*")
    assert hub.read("me/out", "a.txt") == b"b"
    assert len(hub.commits("me/out")) == 3


def test_deletes_of_files_and_folders(hub: DevHub, api: HfApi) -> None:
    """deletedFile and deletedFolder; what was not named stays."""
    hub.add_repo("me/out", {"a": b"a", "d/x": b"x", "d/e/y": b"y", "d.txt": b"d"})
    api.delete_file("a", "me/out")
    api.delete_folder("d", "me/out")
    assert set(hub.files("me/out")) == {".gitattributes", "d.txt"}


def test_deleting_what_is_not_there_is_entry_not_found(api: HfApi) -> None:
    """A missing file or folder is a 404, and nothing is committed."""
    for operation in (CommitOperationDelete("nowhere"), CommitOperationDelete("nowhere/")):
        with pytest.raises(EntryNotFoundError, match="doesn't exist"):
            api.create_commit("me/out", [operation], commit_message="m")


def test_parent_commit_must_be_the_tip(hub: DevHub, api: HfApi) -> None:
    """412 when somebody committed since; fine when nobody did."""
    before = tip(hub)
    add = [CommitOperationAdd("a.txt", b"a")]
    api.create_commit("me/out", add, commit_message="m", parent_commit=before)
    with pytest.raises(HfHubHTTPError) as error:
        api.create_commit(
            "me/out", [CommitOperationAdd("b.txt", b"b")], commit_message="m", parent_commit=before
        )
    assert error.value.response.status_code == 412
    assert "b.txt" not in hub.files("me/out")


def test_commits_at_the_same_time_all_arrive(hub: DevHub, api: HfApi) -> None:
    """Writers without a parent are taken one after the other."""
    threads = [
        threading.Thread(
            target=api.upload_file,
            kwargs={"path_or_fileobj": b"x", "path_in_repo": f"f{index}.txt", "repo_id": "me/out"},
        )
        for index in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hub.files("me/out")) == 7
    assert len(hub.commits("me/out")) == 7


def test_an_lfs_file_whose_bytes_never_came_is_refused(hub: DevHub, fetch: Fetch) -> None:
    """400 naming the file, also when another repository has the bytes; nothing is committed."""
    hub.add_repo("org/other", {"w.npy": b"\0bytes"})
    for oid in ("0" * 64, sha256(b"\0bytes")):
        operation = ("lfsFile", {"path": "w.npy", "algo": "sha256", "oid": oid, "size": 6})
        answer = fetch("POST", COMMIT, body=ndjson(operation))
        assert answer.status == 400
        assert "w.npy" in answer.json()["error"]
    assert len(hub.commits("me/out")) == 1


def test_an_lfs_file_of_another_size_is_refused(hub: DevHub, fetch: Fetch) -> None:
    """400 when the size is not the object's; without a size it is taken."""
    hub.add_repo("me/out", {"w.npy": b"\0bytes"})
    value = {"path": "v.npy", "algo": "sha256", "oid": sha256(b"\0bytes")}
    assert fetch("POST", COMMIT, body=ndjson(("lfsFile", {**value, "size": 7}))).status == 400
    assert fetch("POST", COMMIT, body=ndjson(("lfsFile", value))).status == 200
    assert hub.files("me/out")["v.npy"][0] == 6


def test_a_regular_file_above_ten_megabytes_is_refused(fetch: Fetch) -> None:
    """400: such files must come as LFS."""
    answer = fetch("POST", COMMIT, body=ndjson(file("big.txt", b"x" * 10_000_001)))
    assert answer.status == 400
    assert "big.txt" in answer.json()["error"]
    assert fetch("POST", COMMIT, body=ndjson(file("limit.txt", b"x" * 10_000_000))).status == 200


@pytest.mark.parametrize("path", ["", "/a", "a/../b", "a//b", ".git/config", "a/.git/x", "a/", "\n"])
def test_bad_paths_are_refused(fetch: Fetch, path: str) -> None:
    """400 for a path that may not stand in a tree."""
    assert fetch("POST", COMMIT, body=ndjson(file(path))).status == 400


def test_a_path_cannot_be_file_and_folder(hub: DevHub, fetch: Fetch) -> None:
    """400, in one commit or over two."""
    assert fetch("POST", COMMIT, body=ndjson(file("a"), file("a/b"))).status == 400
    hub.add_repo("me/out", {"d/x": b"x"})
    assert fetch("POST", COMMIT, body=ndjson(file("d"))).status == 400


def test_a_folder_holds_ten_thousand_entries(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    """400 above the limit, files and folders counted together (the limit made small here)."""
    monkeypatch.setattr(commits, "FOLDER_LIMIT", 5)
    fits = [file(f"d/{index}") for index in range(3)] + [file(f"d/sub{index}/x") for index in range(2)]
    assert fetch("POST", COMMIT, body=ndjson(*fits)).status == 200
    answer = fetch("POST", COMMIT, body=ndjson(file("d/one-more")))
    assert answer.status == 400
    assert "too many files per directory" in answer.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json\n",
        b'{"key": "file", "value": {"path": "a"}}\n',
        ndjson(summary=""),
        ndjson(("rename", {"path": "a"})),
        ndjson(("file", {"path": "a", "content": "%%%", "encoding": "base64"})),
        ndjson(("lfsFile", {"path": "a.npy", "algo": "md5", "oid": "x"})),
    ],
)
def test_a_malformed_commit_is_refused(hub: DevHub, fetch: Fetch, body: bytes) -> None:
    """400, and nothing is committed."""
    assert fetch("POST", COMMIT, body=body).status == 400
    assert len(hub.commits("me/out")) == 1


def test_commits_need_write_access(hub: DevHub, api: HfApi, stranger: HfApi) -> None:
    """403 for strangers, read tokens and nobody."""
    reader = HfApi(endpoint=hub.endpoint, token=hub.add_token("me", role="read"))
    for client, status in ((stranger, 403), (reader, 403)):
        with pytest.raises(HfHubHTTPError) as error:
            client.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="me/out")
        assert error.value.response.status_code == status
    assert len(hub.commits("me/out")) == 1


def test_commits_go_to_branches_only(hub: DevHub, api: HfApi) -> None:
    """An unknown branch is RevisionNotFound; a commit id or a tag is no place for a commit."""
    api.create_tag("me/out", tag="v1")
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="me/out", revision="nowhere")
    for revision in (tip(hub), "v1"):
        with pytest.raises(BadRequestError):
            api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="me/out", revision=revision)


def test_an_lfs_file_that_no_rule_covers_gets_one(hub: DevHub, api: HfApi) -> None:
    """The Hub appends a rule to .gitattributes; the next preupload follows it."""
    api.upload_file(path_or_fileobj=b"\0\1", path_in_repo="odd name[1].dat", repo_id="me/out")
    last = hub.read("me/out", ".gitattributes").decode().splitlines()[-1]
    assert last == r"odd[[:space:]]name\[1\].dat filter=lfs diff=lfs merge=lfs -text"
    api.upload_file(path_or_fileobj=b"text", path_in_repo="odd name[1].dat", repo_id="me/out")
    assert hub.files("me/out")["odd name[1].dat"][1] == sha256(b"text")


def test_readme_yaml_is_checked_before_a_commit(hub: DevHub, api: HfApi) -> None:
    """Bad YAML and bad fields stop the commit; a card without metadata warns."""
    for bad in (b"---\na: [\n---\n", b"---\nbase_model_relation: cousin\n---\n", b"---\n- a\n---\n"):
        with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
            api.upload_file(path_or_fileobj=bad, path_in_repo="README.md", repo_id="me/out")
    with pytest.warns(UserWarning, match="empty or missing yaml"):
        api.upload_file(path_or_fileobj=b"# Hello", path_in_repo="README.md", repo_id="me/out")
    good = b"---\nlicense: mit\nbase_model: a/b\nbase_model_relation: quantized\n---\n# Hello"
    api.upload_file(path_or_fileobj=good, path_in_repo="README.md", repo_id="me/out")
    assert "base_model:quantized:a/b" in (api.model_info("me/out").tags or [])


def test_copies_inside_a_repository(hub: DevHub, api: HfApi) -> None:
    """Regular files are sent again, LFS files are named again; a moved file keeps its bytes."""
    hub.add_repo("me/out", {"a.txt": b"a", "w.npy": b"\0weights"})
    hub.forget()
    operations = [
        CommitOperationCopy("a.txt", "b.txt"),
        CommitOperationCopy("w.npy", "v.npy"),
        CommitOperationDelete("w.npy"),
    ]
    api.create_commit("me/out", operations, commit_message="m")
    assert hub.read("me/out", "b.txt") == b"a"
    assert hub.read("me/out", "v.npy") == b"\0weights"
    assert "w.npy" not in hub.files("me/out")
    assert [seen.origin for seen in hub.seen] == ["hub"] * len(hub.seen)


def test_branches_are_made_listed_and_deleted(hub: DevHub, api: HfApi) -> None:
    """POST and DELETE branch, GET refs; 409 twice, main stays."""
    first = tip(hub)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="me/out")
    api.create_branch("me/out", branch="old", revision=first)
    api.create_branch("me/out", branch="feature/new")
    api.upload_file(path_or_fileobj=b"y", path_in_repo="y.txt", repo_id="me/out", revision="feature/new")
    assert "y.txt" in hub.files("me/out", "feature/new")
    assert "y.txt" not in hub.files("me/out")
    branches = {ref.name: ref.target_commit for ref in api.list_repo_refs("me/out").branches}
    assert branches == {"main": tip(hub), "old": first, "feature/new": tip(hub, "feature/new")}
    with pytest.raises(HfHubHTTPError) as error:
        api.create_branch("me/out", branch="old")
    assert error.value.response.status_code == 409
    api.create_branch("me/out", branch="old", exist_ok=True)
    api.delete_branch("me/out", branch="feature/new")
    assert not api.revision_exists("me/out", "feature/new")
    with pytest.raises(HfHubHTTPError) as error:
        api.delete_branch("me/out", branch="main")
    assert error.value.response.status_code == 403


def test_a_branch_from_nowhere_or_with_a_bad_name_is_refused(api: HfApi) -> None:
    """RevisionNotFound for the starting point, 400 for the name."""
    with pytest.raises(RevisionNotFoundError):
        api.create_branch("me/out", branch="b", revision="nowhere")
    for name in ("a..b", "a b", "-a", "a.lock"):
        with pytest.raises(BadRequestError):
            api.create_branch("me/out", branch=name)


def test_tags_are_made_listed_and_deleted(hub: DevHub, api: HfApi) -> None:
    """POST and DELETE tag; a tag stays where it is."""
    first = tip(hub)
    api.create_tag("me/out", tag="v1/rc", revision=first)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="me/out")
    refs = api.list_repo_refs("me/out")
    assert [(ref.name, ref.ref, ref.target_commit) for ref in refs.tags] == [
        ("v1/rc", "refs/tags/v1/rc", first)
    ]
    with pytest.raises(HfHubHTTPError) as error:
        api.create_tag("me/out", tag="v1/rc")
    assert error.value.response.status_code == 409
    api.delete_tag("me/out", tag="v1/rc")
    assert api.list_repo_refs("me/out").tags == []
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag("me/out", tag="v1/rc")


def test_super_squash_leaves_one_commit_and_every_file(hub: DevHub, api: HfApi) -> None:
    """POST super-squash: history is gone, files are not."""
    for index in range(3):
        api.upload_file(path_or_fileobj=b"%d" % index, path_in_repo="x.txt", repo_id="me/out")
    api.super_squash_history("me/out", commit_message="All of it")
    assert [commit.title for commit in hub.commits("me/out")] == ["All of it"]
    assert hub.read("me/out", "x.txt") == b"2"
    with pytest.raises(RevisionNotFoundError):
        api.super_squash_history("me/out", branch="nowhere")


def test_many_commits_of_many_files_stay_cheap(hub: DevHub, fetch: Fetch) -> None:
    """A commit costs its changes, not its tree: 60 commits on 2,000 files in a moment."""
    hub.add_repo("me/out", {f"shard/{index:04}.txt": b"x" for index in range(2000)})
    for index in range(60):
        assert fetch("POST", COMMIT, body=ndjson(file(f"n{index}.txt"))).status == 200
    assert len(hub.files("me/out")) == 2061
    assert len(hub.files("me/out", hub.commits("me/out")[30].oid)) == 2031
