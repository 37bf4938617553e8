"""Uploads by LFS: basic and in parts, what is verified, what is refused."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info

from tensorport_hub.devhub import DevHub, Fault

from .conftest import Fetch, MakeHub, random_bytes, sha256

BATCH = "/me/out.git/info/lfs/objects/batch"


@pytest.fixture
def hub(make_hub: MakeHub) -> DevHub:
    """A hub that wants objects above 100 kB in parts of 40 kB."""
    return make_hub(multipart_above=100_000, part_size=40_000)


@pytest.fixture(autouse=True)
def _out(api: HfApi, lfs_only: None) -> None:
    api.create_repo("me/out")


def ask(fetch: Fetch, data: bytes, token: str | None = None, **fields: Any) -> dict[str, Any]:
    """The batch answer for one object."""
    said = {
        "operation": "upload",
        "transfers": ["basic", "multipart"],
        "objects": [{"oid": sha256(data), "size": len(data)}],
        "hash_algo": "sha256",
        **fields,
    }
    row: dict[str, Any] = fetch("POST", BATCH, token=token, json=said).json()["objects"][0]
    return row


def test_lfs_basic_uploads_a_file(hub: DevHub, api: HfApi) -> None:
    """Batch, one PUT to the CDN without the token, verify, commit."""
    data = random_bytes(90_000)
    api.upload_file(path_or_fileobj=data, path_in_repo="w.npy", repo_id="me/out")
    assert hub.read("me/out", "w.npy") == data
    puts = [seen for seen in hub.seen if seen.method == "PUT"]
    assert [(seen.origin, seen.status, seen.authorized, seen.bytes_in) for seen in puts] == [
        ("cdn", 200, False, 90_000)
    ]
    assert any(seen.path.endswith("/objects/verify") and seen.status == 200 for seen in hub.seen)


def test_lfs_multipart_uploads_a_file(hub: DevHub, api: HfApi) -> None:
    """A PUT a part, the completion with every ETag, verify, commit."""
    data = random_bytes(130_001)
    api.upload_file(path_or_fileobj=data, path_in_repo="w.npy", repo_id="me/out")
    assert hub.read("me/out", "w.npy") == data
    sizes = [seen.bytes_in for seen in hub.seen if seen.method == "PUT"]
    assert sizes == [40_000, 40_000, 40_000, 10_001]
    assert not any(seen.authorized for seen in hub.seen if seen.origin == "cdn")


def test_file_objects_go_by_lfs(hub: DevHub, api: HfApi) -> None:
    """A buffer is uploaded like a file."""
    data = random_bytes(1000)
    operation = CommitOperationAdd("w.npy", io.BytesIO(data))
    api.create_commit("me/out", [operation], commit_message="m")
    assert hub.read("me/out", "w.npy") == data


def test_an_object_that_is_there_has_no_actions(hub: DevHub, api: HfApi, fetch: Fetch) -> None:
    """What this repository was given is not uploaded again; another repository's object is."""
    data = random_bytes(1000)
    api.upload_file(path_or_fileobj=data, path_in_repo="w.npy", repo_id="me/out")
    assert "actions" not in ask(fetch, data)
    other = random_bytes(1000, 1)
    hub.add_repo("org/other", {"w.npy": other})
    assert "upload" in ask(fetch, other)["actions"]


def test_the_batch_of_the_client_is_understood(hub: DevHub) -> None:
    """`post_lfs_batch_info` of huggingface_hub parses every row."""
    infos = [UploadInfo.from_bytes(random_bytes(1000, seed)) for seed in range(3)]
    actions, errors, transfer = post_lfs_batch_info(
        infos, hub.token, "model", "me/out", revision="main", endpoint=hub.endpoint
    )
    assert (len(actions), errors, transfer) == (3, [], "basic")


def test_an_object_without_a_sha256_is_an_error_of_its_own(fetch: Fetch) -> None:
    """The batch answers 422 for the row, not for the call."""
    for row in ({"oid": "x", "size": 1}, {"oid": "0" * 64}, {"oid": "0" * 64, "size": -1}):
        assert ask(fetch, b"", objects=[row])["error"]["code"] == 422
    assert fetch("POST", BATCH, json={"operation": "dance"}).status == 400


def test_the_batch_needs_the_right_to_push(hub: DevHub, fetch: Fetch) -> None:
    """403 for a stranger on a branch; without a ref (a pull request) anyone may."""
    stranger = hub.add_user("stranger")
    said = {"operation": "upload", "objects": [], "ref": {"name": "main"}}
    assert fetch("POST", BATCH, token=stranger, json=said).status == 403
    del said["ref"]
    assert fetch("POST", BATCH, token=stranger, json=said).status == 200
    assert fetch("POST", BATCH, token="", json=said).status == 401


def test_other_bytes_than_announced_are_refused(hub: DevHub, api: HfApi, fetch: Fetch) -> None:
    """400 for a wrong sha256 of the right size, a short body, a long body; nothing is kept."""
    data = random_bytes(1000)
    for wrong in (random_bytes(1000, 1), data[:-1], data + b"x", b""):
        href = ask(fetch, data)["actions"]["upload"]["href"]
        assert fetch("PUT", href, token="", body=wrong).status == 400
    said = {"oid": sha256(data), "size": len(data)}
    assert fetch("POST", "/me/out.git/info/lfs/objects/verify", json=said).status == 404
    assert "upload" in ask(fetch, data)["actions"]


def test_a_byte_flipped_on_the_way_in_is_found(hub: DevHub, api: HfApi) -> None:
    """The fault `wrong_bytes` on an upload: the client's upload fails, nothing is committed."""
    hub.faults.add(Fault("wrong_bytes", method="PUT", origin="cdn", at=500))
    with pytest.raises(RuntimeError, match="Error while uploading"):
        api.upload_file(path_or_fileobj=random_bytes(1000), path_in_repo="w.npy", repo_id="me/out")
    assert "w.npy" not in hub.files("me/out")


def test_verify_checks_the_size(fetch: Fetch, api: HfApi) -> None:
    """422 when the client believes in another size."""
    data = random_bytes(1000)
    api.upload_file(path_or_fileobj=data, path_in_repo="w.npy", repo_id="me/out")
    said = {"oid": sha256(data), "size": 999}
    assert fetch("POST", "/me/out.git/info/lfs/objects/verify", json=said).status == 422


class Parts:
    """A multipart upload by hand."""

    def __init__(self, fetch: Fetch, data: bytes) -> None:
        self.fetch = fetch
        self.oid = sha256(data)
        action = ask(fetch, data)["actions"]["upload"]
        self.href = action["href"]
        self.size = int(action["header"].pop("chunk_size"))
        self.urls = [action["header"][name] for name in sorted(action["header"])]
        self.parts = [data[start : start + self.size] for start in range(0, len(data), self.size)]

    def put(self, index: int, body: bytes | None = None) -> str:
        answer = self.fetch("PUT", self.urls[index], token="", body=body or self.parts[index])
        assert answer.status == 200, answer.data
        return str(answer.headers["ETag"])

    def complete(self, etags: list[str]) -> int:
        parts = [{"partNumber": number, "etag": etag} for number, etag in enumerate(etags, 1)]
        said = {"oid": self.oid, "parts": parts}
        return int(self.fetch("POST", self.href, token="", json=said).status)


def test_parts_may_come_in_any_order_and_again(hub: DevHub, fetch: Fetch) -> None:
    """Backwards, with one part sent twice; the object is whole."""
    data = random_bytes(130_000)
    upload = Parts(fetch, data)
    etags = [""] * 4
    for index in (3, 0, 2, 1, 0):
        etags[index] = upload.put(index)
    assert upload.complete(etags) == 200
    stored = hub.root / "objects" / upload.oid[:2] / upload.oid[2:4] / upload.oid
    assert hashlib.sha256(stored.read_bytes()).hexdigest() == upload.oid


def test_a_part_that_came_wrong_first_is_replaced(fetch: Fetch) -> None:
    """A second PUT of a part replaces the first, also for what was hashed on the way."""
    upload = Parts(fetch, random_bytes(130_000))
    upload.put(0, b"x" * upload.size)
    etags = [upload.put(index) for index in range(4)]
    assert upload.complete(etags) == 200


def test_completion_checks_every_etag(fetch: Fetch) -> None:
    """400 for a missing part, a missing ETag, an old ETag; then the right ones still work."""
    upload = Parts(fetch, random_bytes(130_000))
    etags = [upload.put(index) for index in range(3)]
    assert upload.complete([*etags, "x"]) == 400
    old = upload.put(3)
    etags.append(upload.put(3))
    assert upload.complete(etags[:3]) == 400
    assert upload.complete([*etags[:3], old]) == 400
    assert upload.complete(etags) == 200
    assert upload.complete(etags) == 404


def test_completion_checks_the_sha256(fetch: Fetch) -> None:
    """400 when the parts are there and their bytes are others."""
    upload = Parts(fetch, random_bytes(130_000))
    etags = [upload.put(index) for index in range(3)]
    etags.append(upload.put(3, b"x" * 10_000))
    assert upload.complete(etags) == 400


def test_parts_of_a_wrong_size_are_refused(fetch: Fetch) -> None:
    """400 for a part too short or too long."""
    upload = Parts(fetch, random_bytes(130_000))
    for body in (b"short", b"x" * (upload.size + 1)):
        assert fetch("PUT", upload.urls[0], token="", body=body).status == 400


def test_signed_upload_urls_serve_nothing_else(hub: DevHub, fetch: Fetch) -> None:
    """403 for an unsigned PUT, a changed size, an unsigned completion."""
    data = random_bytes(1000)
    href = ask(fetch, data)["actions"]["upload"]["href"]
    for wrong in (href.partition("?")[0], href.replace("size=1000", "size=9999")):
        assert fetch("PUT", wrong, token="", body=data).status == 403
    assert fetch("POST", "/api/complete_multipart/me/out/x", json={"parts": []}).status == 403


def test_lfs_download_batch_gives_signed_urls(hub: DevHub, api: HfApi, fetch: Fetch) -> None:
    """What git-lfs asks for: a download href; 404 for what this repository does not have."""
    data = random_bytes(1000)
    api.upload_file(path_or_fileobj=data, path_in_repo="w.npy", repo_id="me/out")
    href = ask(fetch, data, operation="download")["actions"]["download"]["href"]
    assert httpx2.get(href).content == data
    assert ask(fetch, b"else", operation="download")["error"]["code"] == 404
