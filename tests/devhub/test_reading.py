"""Reading: model_info, trees, paths-info, /resolve/ with ranges, downloads."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RemoteEntryNotFoundError

from tensorport_hub.devhub import DevHub

from .conftest import CdnUrl, Fetch, MakeHub, random_bytes, safetensors_bytes, sha256

BIG = random_bytes(300_000)
FILES = {
    "README.md": b"---\nlicense: mit\nlibrary_name: x\nbase_model: org/base\ntags: [a]\n---\n# Hello\n",
    "config.json": b"{}",
    "empty.txt": b"",
    "model.safetensors": BIG,
    "sub/deep/a.npy": random_bytes(100, 1),
    "sub/b.txt": b"b",
}


@pytest.fixture
def model(hub: DevHub) -> str:
    """The commit of a seeded repository `org/model`."""
    return hub.add_repo("org/model", FILES)


def test_model_info_tells_commit_card_and_files(hub: DevHub, api: HfApi, model: str) -> None:
    """GET model: sha, card data, tags, siblings by name only."""
    info = api.model_info("org/model")
    assert info.sha == model
    assert info.siblings is not None
    assert {sibling.rfilename for sibling in info.siblings} == {*FILES, ".gitattributes"}
    assert all(sibling.size is None for sibling in info.siblings)
    assert info.card_data is not None
    assert info.card_data["license"] == "mit"
    assert info.tags == ["x", "a", "base_model:org/base", "base_model:finetune:org/base", "license:mit"]


def test_model_info_with_blobs_tells_sizes_and_digests(api: HfApi, model: str) -> None:
    """?blobs=true adds size, blobId and lfs{sha256, size, pointerSize}."""
    info = api.model_info("org/model", files_metadata=True)
    found = {sibling.rfilename: sibling for sibling in info.siblings or []}
    weights = found["model.safetensors"]
    assert weights.lfs is not None
    assert (weights.size, weights.lfs.sha256, weights.lfs.size) == (len(BIG), sha256(BIG), len(BIG))
    assert weights.lfs.pointer_size == 131
    assert found["empty.txt"].lfs is None
    assert found["empty.txt"].blob_id == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


def test_model_info_at_a_revision_and_expanded(hub: DevHub, api: HfApi, model: str) -> None:
    """GET revision/{rev} by branch, tag, commit, short commit; `expand` narrows the answer."""
    later = hub.add_repo("org/model", {"new.txt": b"new"})
    api.create_repo("me/x")
    hub.add_user("me", orgs={"org": "write"})
    api.create_tag("org/model", tag="v1", revision=model)
    api.create_branch("org/model", branch="feature/x", revision=model)
    assert api.model_info("org/model").sha == later
    for revision in (model, model[:8], "v1", "feature/x", "refs/tags/v1", "refs/heads/feature/x"):
        assert api.model_info("org/model", revision=revision).sha == model
    narrowed = api.model_info("org/model", expand=["sha"])
    assert (narrowed.sha, narrowed.siblings) == (later, None)


def test_tree_of_the_root_and_of_a_folder(api: HfApi, model: str) -> None:
    """GET tree: files and folders of one level, with git ids, sizes and lfs facts."""
    root = {row.path: row for row in api.list_repo_tree("org/model")}
    assert set(root) == {*(name for name in FILES if "/" not in name), ".gitattributes", "sub"}
    assert root["model.safetensors"].lfs.sha256 == sha256(BIG)
    inner = {row.path for row in api.list_repo_tree("org/model", "sub")}
    assert inner == {"sub/b.txt", "sub/deep"}


def test_tree_recursive_lists_folders_too(api: HfApi, model: str) -> None:
    """?recursive: every depth, folders included, each path once and in order."""
    paths = [row.path for row in api.list_repo_tree("org/model", recursive=True)]
    assert paths == sorted({*FILES, ".gitattributes", "sub", "sub/deep"})


def test_tree_expand_tells_the_last_commit_of_each_file(hub: DevHub, api: HfApi, model: str) -> None:
    """?expand: the commit that last changed the file, not the tip."""
    hub.add_repo("org/model", {"new.txt": b"new"}, message="Second")
    rows = {row.path: row for row in api.list_repo_tree("org/model", expand=True)}
    assert rows["config.json"].last_commit.oid == model
    assert rows["new.txt"].last_commit.title == "Second"


def test_tree_comes_in_pages_that_stay_on_one_commit(make_hub: MakeHub) -> None:
    """Link rel=next until the end; a push between two pages changes nothing."""
    hub = make_hub(tree_page=3)
    names = {f"f{index:02}.txt": b"x" for index in range(10)}
    hub.add_repo("org/model", names)
    rows = HfApi(endpoint=hub.endpoint, token=False).list_repo_tree("org/model", recursive=True)
    first = next(iter(rows)).path
    hub.add_repo("org/model", {"a.txt": b"first in order"})
    rest = [row.path for row in rows]
    assert [first, *rest] == sorted([*names, ".gitattributes"])
    assert len([seen for seen in hub.seen if "/tree/" in seen.path]) == 4


def test_tree_of_a_missing_folder_is_entry_not_found(api: HfApi, model: str) -> None:
    """A folder that is not there, and a file taken for one."""
    for path in ("nowhere", "config.json"):
        with pytest.raises(EntryNotFoundError):
            list(api.list_repo_tree("org/model", path))


def test_folder_ids_are_gits_tree_ids(hub: DevHub, api: HfApi, model: str, tmp_path: Path) -> None:
    """Every file and folder id is the one that git computes for the same tree."""
    git = ["git", "-C", str(tmp_path / "git"), "-c", "init.defaultBranch=main"]
    (tmp_path / "git").mkdir()
    subprocess.run([*git, "init", "-q"], check=True)
    for path, data in {"sub/b.txt": b"b", "sub/deep/c.txt": b"c", "sub.txt": b"s", "sub-x/d": b"d"}.items():
        file = tmp_path / "git" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        hub.add_repo("org/plain", {path: data})
    subprocess.run([*git, "add", "."], check=True)
    tree = subprocess.run([*git, "write-tree"], check=True, capture_output=True, text=True).stdout.strip()
    listed = subprocess.run(
        [*git, "ls-tree", "-r", "-t", tree], check=True, capture_output=True, text=True
    ).stdout
    expected = {line.split("\t")[1]: line.split()[2] for line in listed.splitlines()}
    rows = api.list_repo_tree("org/plain", recursive=True)
    found = {row.path: getattr(row, "tree_id", None) or row.blob_id for row in rows}
    del found[".gitattributes"]
    assert found == expected


def test_paths_info_omits_what_is_missing(api: HfApi, model: str) -> None:
    """POST paths-info: files and folders asked for, each once, missing ones left out."""
    rows = api.get_paths_info("org/model", ["config.json", "sub", "nowhere", "config.json"], expand=True)
    assert [(row.path, type(row).__name__) for row in rows] == [
        ("config.json", "RepoFile"),
        ("sub", "RepoFolder"),
    ]


def test_paths_info_takes_a_thousand_paths(api: HfApi, model: str) -> None:
    """413 above 1,000 paths."""
    assert api.get_paths_info("org/model", [f"p{index}" for index in range(1000)]) == []
    with pytest.raises(HfHubHTTPError) as error:
        api.get_paths_info("org/model", [f"p{index}" for index in range(1001)])
    assert error.value.response.status_code == 413


def test_commits_are_listed_newest_first_in_pages(hub: DevHub, api: HfApi) -> None:
    """GET commits: every page, authors by name."""
    for index in range(60):
        hub.add_repo("org/model", {"a.txt": b"%d" % index}, message=f"Commit {index}")
    listed = api.list_repo_commits("org/model")
    assert len(listed) == 61
    assert (listed[0].title, listed[0].authors, listed[-1].title) == ("Commit 59", ["me"], "initial commit")
    assert [commit.oid for commit in hub.commits("org/model")] == [commit.commit_id for commit in listed]


def test_file_metadata_of_a_regular_file(hub: DevHub, api: HfApi, model: str) -> None:
    """HEAD resolve of a regular file: 200, ETag is the git blob id, X-Repo-Commit."""
    metadata = api.get_hf_file_metadata(url=f"{hub.endpoint}/org/model/resolve/main/empty.txt")
    assert metadata.etag == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert (metadata.commit_hash, metadata.size) == (model, 0)


def test_file_metadata_of_an_lfs_file(hub: DevHub, api: HfApi, model: str) -> None:
    """HEAD resolve of an LFS file: 302 to the other origin, size and sha256 in X-Linked-*."""
    metadata = api.get_hf_file_metadata(url=f"{hub.endpoint}/org/model/resolve/main/model.safetensors")
    assert (metadata.etag, metadata.size, metadata.commit_hash) == (sha256(BIG), len(BIG), model)
    assert urlsplit(metadata.location).netloc == urlsplit(hub.cdn).netloc
    assert metadata.xet_file_data is None


def test_a_missing_file_is_entry_not_found_and_names_the_commit(
    hub: DevHub, api: HfApi, fetch: Fetch, model: str
) -> None:
    """404 EntryNotFound with X-Repo-Commit, which the client caches; `file_exists` is False."""
    assert not api.file_exists("org/model", "nowhere.txt")
    assert api.file_exists("org/model", "sub/b.txt")
    answer = fetch("HEAD", "/org/model/resolve/main/nowhere.txt")
    assert (answer.status, answer.headers["X-Error-Code"]) == (404, "EntryNotFound")
    assert answer.headers["X-Repo-Commit"] == model
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("org/model", "nowhere.txt", endpoint=hub.endpoint)


def test_odd_paths_are_found(hub: DevHub, api: HfApi) -> None:
    """Blanks, percent signs, plus signs and letters beyond ASCII survive the URL."""
    names = ["with blank.txt", "100%25.txt", "a+b&c=d.txt", "größe/ünï#1.txt", "q?.txt"]
    hub.add_repo("org/odd", {name: name.encode() for name in names} | {"w ü.npy": b"\0lfs"})
    for name in names:
        assert Path(api.hf_hub_download("org/odd", name)).read_bytes() == name.encode()
    assert Path(api.hf_hub_download("org/odd", "w ü.npy")).read_bytes() == b"\0lfs"
    assert {row.path for row in api.list_repo_tree("org/odd", "größe")} == {"größe/ünï#1.txt"}


def test_hf_hub_download_of_regular_and_lfs_files(hub: DevHub, api: HfApi, model: str) -> None:
    """The whole file by HEAD and GET; the token goes to the Hub and never to the CDN."""
    for name, data in FILES.items():
        assert Path(api.hf_hub_download("org/model", name)).read_bytes() == data
    cdn = [seen for seen in hub.seen if seen.origin == "cdn"]
    assert cdn
    assert not any(seen.authorized for seen in cdn)


def test_snapshot_download_of_everything(hub: DevHub, model: str) -> None:
    """GET revision, GET tree, then each file; and only what the patterns allow."""
    folder = Path(snapshot_download("org/model", endpoint=hub.endpoint, token=hub.token))
    assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == {
        **FILES,
        ".gitattributes": hub.read("org/model", ".gitattributes"),
    }
    hub.add_repo("org/model", {"x.txt": b"x", "y.bin": b"\0"})
    folder = Path(snapshot_download("org/model", endpoint=hub.endpoint, allow_patterns=["x.*"]))
    assert [p.name for p in folder.rglob("*")] == ["x.txt"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md"])
def test_ranges_are_answered_byte_for_byte(hub: DevHub, fetch: Fetch, model: str, name: str) -> None:
    """206, Content-Range, exact bytes: from the start, inside, open-ended, the last n."""
    data = FILES[name]
    url = f"/org/model/resolve/main/{name}"
    answer = fetch("GET", url)
    url = answer.headers.get("Location", url)
    size = len(data)
    spans = {
        "bytes=0-0": (0, 1),
        "bytes=1-": (1, size),
        f"bytes=0-{size + 99}": (0, size),
        "bytes=-1": (size - 1, size),
        f"bytes=-{size + 5}": (0, size),
        f"bytes={size // 2}-{size - 1}": (size // 2, size),
    }
    for asked, (start, stop) in spans.items():
        answer = fetch("GET", url, token="", headers={"Range": asked})
        assert answer.status == 206
        assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
        assert answer.data == data[start:stop]
        assert int(answer.headers["Content-Length"]) == stop - start


def test_a_range_past_the_end_is_416(fetch: Fetch, hub: DevHub, model: str) -> None:
    """416 with the size in Content-Range; a malformed Range is as none."""
    answer = fetch("GET", "/org/model/resolve/main/config.json", headers={"Range": "bytes=2-5"})
    assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */2")
    for nonsense in ("bytes=x-", "rows=1-2", "bytes=0-0,1-1"):
        answer = fetch("GET", "/org/model/resolve/main/config.json", headers={"Range": nonsense})
        assert (answer.status, answer.data) == (200, b"{}")


def test_if_range_of_another_version_gets_the_whole_file(fetch: Fetch, model: str) -> None:
    """If-Range: the range for this ETag, everything for another."""
    url = "/org/model/resolve/main/config.json"
    etag = fetch("HEAD", url).headers["ETag"]
    same = fetch("GET", url, headers={"Range": "bytes=0-0", "If-Range": etag})
    other = fetch("GET", url, headers={"Range": "bytes=0-0", "If-Range": '"x"'})
    assert (same.status, same.data, other.status, other.data) == (206, b"{", 200, b"{}")


def test_the_redirect_is_followed_for_ranges(hub: DevHub, api: HfApi, model: str) -> None:
    """A client that follows the 302 keeps its Range and leaves its token behind."""
    url = f"{hub.endpoint}/org/model/resolve/main/model.safetensors"
    headers = {"Range": "bytes=10-19", "Authorization": f"Bearer {hub.token}"}
    answer = httpx2.get(url, headers=headers, follow_redirects=True)
    assert (answer.status_code, answer.content) == (206, BIG[10:20])
    last = hub.seen[-1]
    assert (last.origin, last.range, last.authorized, last.bytes_out) == ("cdn", "bytes=10-19", False, 10)


@pytest.mark.parametrize("header_nbytes", [None, 99_992, 99_993, 99_994, 100_000, 100_001, 250_000])
def test_safetensors_metadata_at_every_header_length(
    hub: DevHub, api: HfApi, header_nbytes: int | None
) -> None:
    """`get_safetensors_metadata` reads headers around its 100,000-byte first guess."""
    hub.add_repo("org/model", {"model.safetensors": safetensors_bytes(header_nbytes)})
    metadata = api.get_safetensors_metadata("org/model")
    assert metadata.weight_map == {"w": "model.safetensors"}
    assert next(seen.range for seen in hub.seen if seen.origin == "cdn") == "bytes=0-100000"


def test_a_signed_url_expires(make_hub: MakeHub) -> None:
    """403 once its time is over; the next resolve gives one that works."""
    hub = make_hub(url_seconds=0.3)
    hub.add_repo("org/model", {"w.npy": b"\0bytes"})
    resolve = f"{hub.endpoint}/org/model/resolve/main/w.npy"
    url = httpx2.get(resolve).headers["Location"]
    assert httpx2.get(url).status_code == 200
    time.sleep(0.4)
    assert httpx2.get(url).status_code == 403
    assert httpx2.get(httpx2.get(resolve).headers["Location"]).status_code == 200


def test_a_signed_url_serves_nothing_else(hub: DevHub, fetch: Fetch, cdn_url: CdnUrl, model: str) -> None:
    """Another path, another method, a changed time or no signature: 403."""
    url = cdn_url("org/model", "model.safetensors")
    other = url.replace(sha256(BIG), sha256(FILES["sub/deep/a.npy"]))
    later = url.replace("Expires=", "Expires=9")
    for wrong in (other, later, url.partition("?")[0]):
        assert fetch("GET", wrong, token="").status == 403
    assert fetch("PUT", url, token="", body=b"x").status in (403, 405)
    assert fetch("HEAD", url, token="").status == 200
