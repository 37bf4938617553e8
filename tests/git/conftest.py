"""Git remotes of three kinds, with the real git and git-lfs, and what readers find there.

A bare repository in a folder; one behind `git http-backend` whose LFS server is giftless; one whose LFS
server is Mercurial's. What a machine does not have is skipped, and said; where `TENSORPORT_TEST_ALL` is set,
it fails.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tensorport_hub.devhub import DevHub
from tensorport_hub.edge import retry
from tensorport_hub.engine import part
from tests.git.front import Front, Lfs, giftless, mercurial
from tests.git.sizes import FULL, MODEL, SOURCE

KINDS = ("bare path", "giftless", "mercurial")


def require(name: str, found: object, hint: str) -> None:
    """Skip the test where something is not on this machine, or fail where nothing may be skipped."""
    if not found:
        said = f"{name} is not on this machine: {hint}"
        if os.environ.get("TENSORPORT_TEST_ALL"):
            pytest.fail(said)
        pytest.skip(said)


@dataclass
class Host:
    """A remote.

    Attributes:
        url: as a destination.
        path: where the bare repository lies.
        objects: the folder below which its LFS objects lie.
        front: the server before it; None: there is none.
    """

    kind: str
    url: str
    path: Path
    objects: Path
    front: Front | None

    def git(self, *words: str) -> str:
        """Run git in the bare repository itself."""
        return git(self.path, *words)

    def content(self, revision: str, path: str) -> bytes:
        """What git itself holds of a file."""
        words = ["git", "cat-file", "blob", f"{revision}:{path}"]
        return subprocess.run(words, cwd=self.path, capture_output=True, check=True, timeout=60).stdout

    def branches(self) -> dict[str, str]:
        """Branch -> commit."""
        lines = self.git("for-each-ref", "--format=%(refname:short) %(objectname)", "refs/heads").splitlines()
        return dict(line.split() for line in lines)

    def copies(self, oid: str) -> list[Path]:
        """Where the LFS server keeps an object."""
        return [path for path in self.objects.rglob(f"*{oid[-60:]}") if path.is_file()]

    def lose(self, oid: str) -> None:
        """The LFS server loses an object."""
        for path in self.copies(oid):
            path.unlink()

    def damage(self, oid: str) -> None:
        """One bit of an object flips."""
        copies = self.copies(oid)
        data = bytearray(copies[0].read_bytes())
        data[-1] ^= 1
        for path in copies:
            path.chmod(0o644)
            path.write_bytes(data)


def git(folder: Path, *words: str) -> str:
    """Run git in a folder; what it answers."""
    ended = subprocess.run(
        ["git", *words], cwd=folder, stdout=subprocess.PIPE, text=True, check=True, timeout=120
    )
    return ended.stdout.strip()


def commit_by_hand(
    host: Host, scratch: Path, files: Mapping[str, str | bytes | None], branch: str = "main"
) -> None:
    """Somebody pushes a commit that adds these files: path -> blob, or content; None: it says "theirs"."""
    clone = scratch / "by-hand"
    shutil.rmtree(clone, ignore_errors=True)
    git(scratch, "clone", "--quiet", "--no-checkout", host.url.removeprefix("git+"), str(clone))
    if branch in host.branches():
        git(clone, "read-tree", f"origin/{branch}")
    for path, blob in files.items():
        if not isinstance(blob, str):
            (clone / "theirs").write_bytes(blob or b"theirs")
            blob = git(clone, "hash-object", "-w", "--no-filters", "theirs")
        git(clone, "update-index", "--add", "--cacheinfo", f"100644,{blob},{path}")
    tree = git(clone, "write-tree")
    parents = ["-p", f"origin/{branch}"] if branch in host.branches() else []
    who = ("-c", "user.name=Other", "-c", "user.email=other@example.org")
    commit = git(clone, *who, "commit-tree", tree, *parents, "-m", "By hand")
    git(clone, "push", "--quiet", "--no-verify", "origin", f"{commit}:refs/heads/{branch}")


@pytest.fixture(autouse=True)
def _configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """git as on a new machine, with git-lfs installed; nothing is waited for long."""
    require("git-lfs", shutil.which("git-lfs"), "`apt-get install git-lfs`, or https://git-lfs.com")
    for name in [name for name in os.environ if name.startswith("GIT_") and name != "GIT_SSL_CAINFO"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_TERMINAL_PROMPT", "0")
    git(tmp_path, "lfs", "install", "--skip-repo")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr(retry, "_FIRST", 0.01)
    monkeypatch.setattr(part, "_PAUSE", 0.01)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DevHub]:
    """The Hub that the model comes from."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with DevHub(tmp_path / "hub") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        monkeypatch.setenv("HF_TOKEN", running.token)
        running.add_repo(SOURCE, MODEL)
        yield running


@pytest.fixture(scope="session")
def lfs_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], tuple[Path, Lfs]]]:
    """The LFS server of a kind, emptied, and the folder that holds its objects; one serves all tests."""
    running: dict[str, tuple[Path, Lfs]] = {}
    with ExitStack() as servers:

        def empty(kind: str) -> tuple[Path, Lfs]:
            if kind not in running:
                folder = tmp_path_factory.mktemp("lfs")
                begin = giftless if kind == "giftless" else mercurial
                running[kind] = folder, servers.enter_context(begin(folder))
            folder, lfs = running[kind]
            for kept in (folder / "storage", folder / "cache", folder / "store/.hg/store/lfs/objects"):
                shutil.rmtree(kept, ignore_errors=True)
            return folder, lfs

        yield empty


@pytest.fixture
def host_of(tmp_path: Path, lfs_of: Callable[[str], tuple[Path, Lfs]]) -> Iterator[Callable[[str], Host]]:
    """Makes an empty remote of a kind."""
    with ExitStack() as servers:

        def make(kind: str) -> Host:
            folder = tmp_path / "host"
            path = folder / "st" / "model.git"
            git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", str(path))
            if kind == "bare path":
                return Host(kind, f"git+file://{path}", path, path / "lfs", None)
            if kind == "giftless":
                found = importlib.util.find_spec("giftless") and importlib.util.find_spec("gunicorn")
                require("giftless", found, "`pip install -e '.[git-host]'`")
            else:
                require("Mercurial", shutil.which("hg"), "`apt-get install mercurial`")
            objects, lfs = lfs_of(kind)
            git(path, "config", "http.receivepack", "true")
            git(path, "config", "uploadpack.allowFilter", "true")
            front = servers.enter_context(Front(folder, lfs))
            return Host(kind, f"git+{front.url}/st/model.git", path, objects, front)

        yield make


@pytest.fixture(params=KINDS if FULL else KINDS[:2])
def host(host_of: Callable[[str], Host], request: pytest.FixtureRequest) -> Host:
    """An empty remote: in a folder, and behind a server; of each kind in the full set."""
    return host_of(request.param)


@pytest.fixture
def read_back(tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    """What somebody gets elsewhere by `git clone` and `git lfs pull`, without `.gitattributes`."""

    def read(host: Host, branch: str = "main") -> dict[str, bytes]:
        folder = tmp_path / "clone"
        shutil.rmtree(folder, ignore_errors=True)
        url = host.url.removeprefix("git+")
        git(tmp_path, "clone", "--quiet", "--branch", branch, url, str(folder))
        git(folder, "lfs", "pull")
        found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
        return {
            path: file.read_bytes()
            for path, file in found.items()
            if not path.startswith(".git/") and path != ".gitattributes"
        }

    return read
