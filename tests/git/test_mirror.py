"""Mirrors on git remotes, read back elsewhere by git and git-lfs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from tensorport_hub import mirror, plan, verify
from tensorport_hub.core import manifest
from tensorport_hub.core.encode.table import ENCODINGS
from tensorport_hub.devhub import DevHub
from tensorport_hub.errors import DestinationError, LimitError, UseError, VerificationError
from tensorport_hub.results import MirrorResult
from tests.e2e.reading import folder_contents
from tests.git.conftest import KINDS, Host, commit_by_hand, git
from tests.git.sizes import EVERY, FILES, MODEL, SOURCE, TENSORS, few

ALL = list(ENCODINGS)
ReadBack = Callable[..., dict[str, bytes]]


@pytest.fixture
def expected(hub: DevHub, tmp_path: Path) -> dict[str, bytes]:
    """The same mirror in a folder."""
    mirror(SOURCE, str(tmp_path / "expected"))
    return folder_contents(tmp_path / "expected")


def run(host: Host, **options: Any) -> MirrorResult:
    return mirror(SOURCE, host.url, **{"workers": 2, **options})


@pytest.mark.parametrize("host", KINDS, indirect=True)
@pytest.mark.parametrize("every", [EVERY, "1GB"], ids=["checkpoints", "one commit"])
def test_the_mirror_is_that_of_a_folder(
    host: Host, expected: dict[str, bytes], read_back: ReadBack, every: Any
) -> None:
    """Byte for byte, weights as LFS objects and the rest as files; only the branch is there afterwards."""
    result = run(host, checkpoint_every=every)
    assert read_back(host) == expected
    assert host.branches() == {"main": result.commit}
    assert result.changed
    assert result.destination == host.url.removeprefix("git+")
    pointer = host.git("show", "main:shard_000/layers.0.w0.npy")
    assert pointer.startswith("version https://git-lfs.github.com/spec/v1\noid sha256:")
    assert host.git("show", "main:config.json") == "{}"
    assert not host.git("log", "--format=%H", "--", ".tensorport")


@few(
    "host, every",
    [("bare path", "1GB"), ("giftless", EVERY)],
    [("bare path", EVERY), ("giftless", "1GB"), ("mercurial", EVERY), ("mercurial", "1GB")],
    indirect=["host"],
)
def test_again_there_is_nothing_to_do(hub: DevHub, host: Host, every: Any) -> None:
    """A second run reads no weights, sends nothing, and commits nothing; `restart` makes it again, and finds
    it the same."""
    first = run(host, checkpoint_every=every)
    hub.forget()
    second = run(host, checkpoint_every=every)
    assert (second.changed, second.commit, second.stats.bytes_read) == (False, first.commit, 0)
    assert second.manifest == first.manifest
    assert plan(SOURCE, host.url, checkpoint_every=every).standing
    third = run(host, checkpoint_every=every, restart=True)
    assert (third.changed, third.commit) == (False, first.commit)
    assert third.stats.bytes_read > 0
    assert host.branches() == {"main": first.commit}


def test_a_new_plan_replaces_the_old(hub: DevHub, host: Host, read_back: ReadBack) -> None:
    """One more commit on the first; what vanished is gone, what is the same is not sent again."""
    first = run(host)
    if host.front is not None:
        host.front.seen.clear()
    second = run(host, include=["layers.0.*", "layers.1.*"])
    names = [path for path in read_back(host) if path.endswith(".npy")]
    assert len(names) == 2 * TENSORS
    assert host.git("rev-parse", "main^") == first.commit
    assert second.changed
    if host.front is not None:
        assert not [seen for seen in host.front.seen if seen.method == "PUT"]


@pytest.mark.parametrize("host", ["bare path", "giftless"], indirect=True)
def test_a_source_that_moved(hub: DevHub, host: Host, tmp_path: Path, read_back: ReadBack) -> None:
    """Only the parts of files that changed are made and sent; one that the LFS server lost is made again."""
    first = run(host)
    tensors = {f"layers.0.w{i}": np.full((250, 100), i, np.float32) for i in range(TENSORS)}
    hub.add_repo(SOURCE, {f"model-00001-of-{FILES:05d}.safetensors": save(tensors)}, message="new")
    host.lose(_files(first)["shard_000/layers.2.w1.npy"]["sha256"])
    if host.front is not None:
        host.front.seen.clear()
    second = run(host)
    assert second.stats.parts_kept == (FILES - 1) * TENSORS - 1
    assert host.git("rev-parse", "main^") == first.commit
    mirror(SOURCE, str(tmp_path / "fresh"))
    assert read_back(host) == folder_contents(tmp_path / "fresh")
    if host.front is not None:
        assert len([seen for seen in host.front.seen if seen.method == "PUT"]) == TENSORS + 1


def test_all_formats(
    hub: DevHub, host_of: Callable[[str], Host], tmp_path: Path, read_back: ReadBack
) -> None:
    """Weights of every format are LFS objects, within the staging space of what is written at a time."""
    host = host_of("bare path")
    mirror(SOURCE, str(tmp_path / "all"), format=ALL)
    expected = folder_contents(tmp_path / "all")
    with pytest.raises(LimitError, match="at the same time do not fit the staging space"):
        plan(SOURCE, host.url, format=ALL, max_disk=300_000)
    made = plan(SOURCE, host.url, format=ALL, max_disk="2MB", shard_size="500kB")
    mirror(SOURCE, host.url, format=ALL, max_disk=made.plan.bytes_at_once, shard_size="500kB", workers=4)
    mirror(SOURCE, host.url, format=ALL, checkpoint_every=EVERY)
    assert read_back(host) == expected
    large = [path for path in expected if path.endswith((".npy", ".msgpack", ".pkl", ".safetensors"))]
    assert sorted(git(tmp_path / "clone", "lfs", "ls-files", "-n").splitlines()) == sorted(large)
    assert git(tmp_path / "clone", "status", "--porcelain") == ""
    assert verify(host.url, deep=True, against_source=True).ok


def test_verify(host: Host, expected: dict[str, bytes], tmp_path: Path, read_back: ReadBack) -> None:
    """A remote is proven as a folder is: by its listing, every byte, and its source; a clone too."""
    result = run(host)
    for options in ({}, {"deep": True}, {"deep": True, "against_source": True}):
        proven = verify(host.url, **options)
        assert (proven.ok, proven.faults, proven.commit) == (True, (), result.commit)
        assert proven.files == len(expected) - 1
    assert verify(host.url, revision=result.commit).ok
    read_back(host)
    assert verify(str(tmp_path / "clone"), deep=True, against_source=True).ok
    assert not [*(tmp_path / "scratch").glob("tensorport-git-*")]


def test_verify_finds_what_is_wrong(host: Host, hub: DevHub, tmp_path: Path, read_back: ReadBack) -> None:
    """An object that is gone, one with other bytes, a pointer to another, a file too many: each is named."""
    result = run(host)
    stored = {path: entry for path, entry in _files(result).items() if path.endswith(".npy")}
    gone, damaged, pointed = list(stored)[:3]
    host.lose(stored[gone]["sha256"])
    host.damage(stored[damaged]["sha256"])
    assert verify(host.url).ok
    faults = {fault.what: fault.message for fault in verify(host.url, deep=True).faults}
    assert faults.keys() == {gone, damaged}
    pointer = host.git("rev-parse", f"main:{damaged}")
    commit_by_hand(host, tmp_path, {pointed: pointer, "more.txt": pointer})
    faults = {fault.what: fault.message for fault in verify(host.url).faults}
    assert faults.keys() == {pointed, "more.txt"}
    assert "does not list it" in faults["more.txt"]
    assert "wrong sha256" in faults[pointed]


def _files(result: MirrorResult) -> dict[str, Any]:
    return {entry["path"]: entry for entry in result.manifest["files"]}


def test_a_damaged_mirror_is_made_again(host: Host, expected: dict[str, bytes], read_back: ReadBack) -> None:
    """Where the LFS server has lost an object, a run is not skipped, though the branch needs no commit."""
    result = run(host)
    entry = next(entry for path, entry in _files(result).items() if path.endswith(".npy"))
    host.lose(entry["sha256"])
    again = run(host)
    assert (again.changed, again.commit) == (False, result.commit)
    assert read_back(host) == expected


def test_branch_author_and_message(host: Host, read_back: ReadBack, expected: dict[str, bytes]) -> None:
    """A branch is made where it is missing, on what the default branch holds; who and what is as told."""
    first = run(host)
    second = run(
        host, branch="half/x", precision="float16", author="A B. C <a@b.org>", commit_message="As told\n\nyes"
    )
    assert host.branches() == {"main": first.commit, "half/x": second.commit}
    assert (
        host.git("log", "-1", "--format=%an|%ae|%cn|%B", "half/x") == "A B. C|a@b.org|A B. C|As told\n\nyes"
    )
    assert host.git("rev-parse", "half/x^") == first.commit
    assert read_back(host) == expected
    manifest = json.loads(read_back(host, "half/x")["manifest.json"])
    assert manifest["options"]["precision"] == "float16"


def test_who_commits(hub: DevHub, host_of: Callable[[str], Host], tmp_path: Path) -> None:
    """Nobody in particular where git knows no name; git's own name where it does."""
    host = host_of("bare path")
    run(host)
    assert host.git("log", "-1", "--format=%an <%ae>") == "tensorport-hub <tensorport-hub@localhost>"
    git(tmp_path, "config", "--global", "user.name", "Jo")
    git(tmp_path, "config", "--global", "user.email", "jo@example.org")
    run(host, precision="float16")
    assert host.git("log", "-1", "--format=%an <%ae>|%cn") == "Jo <jo@example.org>|Jo"


def test_the_default_branch_has_any_name(
    hub: DevHub, host_of: Callable[[str], Host], read_back: ReadBack
) -> None:
    """An empty repository's default branch is found, whatever it is called, with and without checkpoints."""
    host = host_of("giftless")
    host.git("symbolic-ref", "HEAD", "refs/heads/trunk")
    run(host, checkpoint_every=EVERY)
    assert list(host.branches()) == ["trunk"]
    assert "manifest.json" in read_back(host, "trunk")


def test_a_strangers_repository_is_refused(hub: DevHub, host: Host, tmp_path: Path) -> None:
    """One that holds something else: exit 5, and nothing is written, not even on another branch."""
    commit_by_hand(host, tmp_path, {"code.py": None})
    before = host.branches()
    for options in ({}, {"branch": "npy"}):
        with pytest.raises(DestinationError, match="no mirror of ours"):
            run(host, **options)
        with pytest.raises(DestinationError, match="no mirror of ours"):
            plan(SOURCE, host.url, **options)
    assert host.branches() == before


@pytest.mark.parametrize("host", ["giftless"], indirect=True)
def test_a_manifest_too_large_to_be_one(
    hub: DevHub, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands there is read only where it may be a manifest, whole or as a pointer: exit 6, or 7 where
    the staging space does not hold it."""
    run(host)
    before = host.branches()
    with monkeypatch.context() as patched:
        patched.setattr(manifest, "LARGEST", 100)
        with pytest.raises(VerificationError, match="is too large: expected at most 100 bytes"):
            run(host)
    assert host.branches() == before
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize {{}}\n"
    for size, error, said in (
        (manifest.LARGEST + 1, VerificationError, "`manifest.json` is too large"),
        (manifest.LARGEST, LimitError, "does not fit the staging space"),
    ):
        commit_by_hand(host, tmp_path, {"manifest.json": pointer.format(size).encode()})
        with pytest.raises(error, match=said):
            run(host, max_disk="100MB", shard_size="10MB")


@pytest.mark.parametrize("host", ["giftless"], indirect=True)
def test_files_of_others_in_a_mirror(
    hub: DevHub, host: Host, tmp_path: Path, expected: dict[str, bytes], read_back: ReadBack
) -> None:
    """They are named and nothing is written: exit 5; `restart` makes the mirror without them."""
    run(host)
    commit_by_hand(host, tmp_path, {"notes.txt": None})
    before = host.branches()
    with pytest.raises(DestinationError, match=r"not of the mirror, among them `notes\.txt`") as caught:
        run(host)
    assert "--restart" in caught.value.hint
    assert host.branches() == before
    assert run(host, restart=True).changed
    assert read_back(host) == expected


def test_use_errors(hub: DevHub, host_of: Callable[[str], Host]) -> None:
    """What means nothing on a git remote, and the other way round, is said before anything is done."""
    host = host_of("bare path")
    for options, words in (
        ({"create_pr": True}, "no pull requests"),
        ({"transfer": "xet"}, "takes LFS"),
        ({"author": "me"}, "Name <mail>"),
        ({"author": "me <a>\ncommitter x <y>"}, "Name <mail>"),
        ({"branch": "tensorport/x"}, "interrupted runs"),
        ({"branch": "a..b"}, "is no branch"),
    ):
        with pytest.raises(UseError, match=words):
            run(host, **options)
    with pytest.raises(UseError, match="--author"):
        mirror(SOURCE, "me/x", author="Me <me@x>")
    assert host.branches() == {}


def test_a_plan_checks_what_can_be_known(hub: DevHub, host_of: Callable[[str], Host], tmp_path: Path) -> None:
    """Staging space, no such repository, and one that takes no pushes, before weights are read."""
    host = host_of("giftless")
    made = plan(SOURCE, host.url, max_disk="1MB")
    assert (made.exists, made.disk, made.private) == (False, 200_256, None)
    with pytest.raises(LimitError, match="staging space"):
        plan(SOURCE, host.url, max_disk=100_000)
    assert host.front is not None
    with pytest.raises(DestinationError) as caught:
        plan(SOURCE, f"git+{host.front.url}/st/other.git")
    assert "not found" in caught.value.message
    assert "make the repository first" in caught.value.hint
    host.git("config", "http.receivepack", "false")
    with pytest.raises(DestinationError, match="403"):
        plan(SOURCE, host.url)
    assert host.branches() == {}


def test_a_closed_source_needs_a_word(hub: DevHub, host_of: Callable[[str], Host]) -> None:
    """Who may read a git host can't be seen: a private source goes there only with `private` or rights."""
    hub.add_repo("me/closed", MODEL, private=True)
    host = host_of("giftless")
    with pytest.raises(DestinationError, match="gated or private") as caught:
        plan("me/closed", host.url)
    assert "--private" in caught.value.hint
    plan("me/closed", host.url, private=True)
    plan("me/closed", host.url, i_have_rights=True)


def test_another_model(hub: DevHub, host_of: Callable[[str], Host]) -> None:
    """The mirror of another repository is replaced by `restart` alone; a new branch replaces nothing."""
    host = host_of("bare path")
    hub.add_repo("org/other", MODEL)
    first = run(host).commit
    for verb in (plan, mirror):
        with pytest.raises(DestinationError, match=f"holds the mirror of `{SOURCE}`, not of `org/other`"):
            verb("org/other", host.url)
    mirror("org/other", host.url, branch="other")
    with pytest.raises(DestinationError, match=f"holds the mirror of `org/other`, not of `{SOURCE}`"):
        plan(SOURCE, host.url, branch="other")
    assert host.branches()["main"] == first
    assert mirror("org/other", host.url, restart=True).manifest["source"]["repo"] == "org/other"
