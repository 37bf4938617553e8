"""A git remote as a sink and its work branch as a journal: the contracts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tensorport_hub.core.digest import parse_pointer
from tensorport_hub.core.progress import MadeFile
from tensorport_hub.edge.git import NOBODY, Git
from tensorport_hub.edge.git_lfs import GitObjects
from tensorport_hub.edge.git_remote import GitRemote, Tree, Update
from tensorport_hub.edge.git_sink import GitSink, attributes
from tensorport_hub.edge.git_work import GitWork, work_ref
from tensorport_hub.edge.journal import Unkept
from tensorport_hub.edge.ref_journal import RefJournal
from tensorport_hub.errors import LimitError, TensorportError
from tensorport_hub.ports import Receipt, Sink
from tests.contracts.journal import JournalContract, JournalOf
from tests.contracts.sink import SinkContract, SinkOf
from tests.git.conftest import KINDS, Host, git

MAIN = "refs/heads/main"
KEY = "ab" * 32


def ignore(_: object) -> None:
    """Reports to nobody."""


def open_sink(host: Host, *, max_disk: int = 1 << 20) -> GitSink:
    """A sink that publishes in one commit on `main`."""
    remote = GitRemote(Git(host.url.removeprefix("git+")), ignore)
    refs, _ = remote.refs()
    base = remote.tree(MAIN) if MAIN in refs else Tree()
    return GitSink(
        remote,
        GitObjects(remote, max_disk=max_disk),
        base,
        Update(MAIN, base.commit, None),
        None,
        Unkept(),
        held=(),
        message="Mirror",
        author=NOBODY,
    )


class GitSinkContract(SinkContract):
    """The duties of every sink."""

    kind: str

    @pytest.fixture
    def sink_of(self, host_of: Callable[[str], Host]) -> Iterator[SinkOf]:
        self.host = host_of(self.kind)
        opened: list[GitSink] = []

        def make() -> GitSink:
            opened.append(open_sink(self.host))
            return opened[-1]

        yield make
        for sink in opened:
            sink.close()

    def published(self, sink: Sink) -> Mapping[str, bytes]:
        """By the repository and the LFS server themselves."""
        if "main" not in self.host.branches():
            return {}
        found = {}
        for path in self.host.git("ls-tree", "-r", "--name-only", "main").splitlines():
            data = self.host.content("main", path)
            pointed = parse_pointer(data)
            found[path] = self.host.copies(pointed[0])[0].read_bytes() if pointed else data
        del found[".gitattributes"]
        return found


class TestFolder(GitSinkContract):
    """Into a bare repository in a folder."""

    kind = "bare path"


class TestServer(GitSinkContract):
    """To a host with an LFS server."""

    kind = "mercurial"


class TestOwn:
    """What only this sink does."""

    def test_a_file_larger_than_the_staging_space(self, host_of: Callable[[str], Host]) -> None:
        """It can never be staged: exit 7, with what to do."""
        sink = open_sink(host_of("bare path"), max_disk=1000)
        with pytest.raises(LimitError, match="expected at most 1000 bytes, got 1001"):
            sink.open("shard_000/a.npy", 1001)
        sink.close()

    def test_names(self, host_of: Callable[[str], Host], tmp_path: Path) -> None:
        """Whatever a carried file is called, git holds it under that name, and attributes mean it alone."""
        host = host_of("bare path")
        sink = open_sink(host, max_disk=1 << 26)
        names = [
            "a b.txt",
            '"quoted".txt',
            "back\\slash",
            "new\nline",
            "ünïcode",
            "-dash",
            "sub/*.txt",
            "#hash",
        ]
        for name in names:
            sink.put(name, name.encode())
        large = ["big *.json", "[x] big.bin", '"big".bin', "sub/bïg.bin"]
        for name in large:
            sink.put(name, name.encode() + bytes(10_000_000))
        sink.commit([])
        sink.close()
        clone = tmp_path / "clone"
        git(tmp_path, "clone", "--quiet", host.url.removeprefix("git+"), str(clone))
        for name in names:
            assert (clone / name).read_bytes() == name.encode()
        for name in large:
            assert (clone / name).read_bytes() == name.encode() + bytes(10_000_000)
        assert git(clone, "status", "--porcelain") == ""
        assert set(git(clone, "-c", "core.quotePath=false", "lfs", "ls-files", "-n").splitlines()) == set(
            large
        )

    def test_an_empty_weight(self, host_of: Callable[[str], Host]) -> None:
        """git-lfs has no empty objects: git holds an empty file."""
        host = host_of("giftless")
        sink = open_sink(host)
        receipt = sink.open("shard_000/a.npy", 0).finish()
        sink.put("manifest.json", b"{}")
        sink.commit([receipt])
        sink.close()
        assert host.content("main", "shard_000/a.npy") == b""

    def test_attributes(self) -> None:
        """Bytes of regular files are never changed by git, of LFS files only git-lfs knows."""
        lfs = "filter=lfs diff=lfs merge=lfs -text"
        assert attributes(["x.npy"]).decode().splitlines() == ["* -text", f"*.npy {lfs}"]
        assert attributes(["a b.json"]).decode().splitlines()[2:] == [f'"/a b.json" {lfs}']

    def test_nothing_is_left(self, host_of: Callable[[str], Host], tmp_path: Path) -> None:
        """A closed sink has no file on the disk; what was not finished then never will be."""
        sink = open_sink(host_of("bare path"))
        writer = sink.open("a.npy", 4)
        writer.write(memoryview(b"1234"))
        sink.close()
        with pytest.raises(TensorportError):
            writer.finish()
        writer.abort()
        assert not list((tmp_path / "scratch").iterdir())


class TestJournal(JournalContract):
    """On a work branch; what is entered is an object that the LFS server holds."""

    @pytest.fixture
    def journal_of(self, host_of: Callable[[str], Host]) -> Iterator[JournalOf]:
        self.host = host_of("bare path")
        opened: list[Git] = []

        def make() -> RefJournal:
            opened.append(Git(self.host.url.removeprefix("git+")))
            remote = GitRemote(opened[-1], ignore)
            work = GitWork(
                remote, GitObjects(remote, max_disk=1 << 20), KEY, ref=work_ref(KEY, None), author=NOBODY
            )
            work.claim(restart=False)
            paths = {index: f"shard_000/{index}.npy" for index in range(10)}
            return RefJournal(work, outputs=paths, every=1 << 30, report=ignore)

        yield make
        for repository in opened:
            repository.close()

    def made(self, index: int, *, version: int = 0, overflow: int = 0) -> MadeFile:
        """As the contract's; the object lies there."""
        entry = super().made(index, version=version, overflow=overflow)
        where = self.host.path / "lfs" / "objects" / entry.sha256[:2] / entry.sha256[2:4]
        where.mkdir(parents=True, exist_ok=True)
        (where / entry.sha256).write_bytes(bytes(entry.size))
        return entry


def test_blobs_stay_where_they_are(host_of: Callable[[str], Host], tmp_path: Path) -> None:
    """Of what stands there one commit and its trees come, and of the blobs those that are read."""
    host = host_of("giftless")
    for content in (b"old", b"new"):
        sink = open_sink(host)
        for number in range(5):
            sink.put(f"{number}.json", content * 1000)
        sink.put("manifest.json", content)
        sink.commit([])
        sink.close()
    remote = GitRemote(Git(host.url.removeprefix("git+")), ignore)
    tree = remote.tree(MAIN)

    def kinds() -> list[str]:
        words = ("cat-file", "--batch-all-objects", "--batch-check=%(objecttype)")
        return sorted(remote.git.ask(*words, doing="listing").decode().split())

    assert kinds() == ["commit", "tree"]
    assert remote.read(tree, ["manifest.json"]) == [b"new"]
    assert kinds() == ["blob", "commit", "tree"]
    remote.git.close()


@pytest.mark.parametrize("host", KINDS, indirect=True)
def test_what_the_server_lacks(host: Host) -> None:
    """Asked for objects, a remote names those that it has not, whatever its branches say."""
    sink = open_sink(host)
    receipts = []
    for number in range(3):
        writer = sink.open(f"{number}.npy", 5)
        writer.write(memoryview(b"data%d" % number))
        receipts.append(writer.finish())
        writer.abort()
    sink.put("manifest.json", b'{"schema": "tensorport.manifest/1", "files": []}')
    sink.commit(receipts)
    host.lose(receipts[1].sha256)
    sink.close()
    again = open_sink(host)
    never, twin = Receipt("3.npy", 5, "ab" * 32), Receipt("twin.npy", 5, receipts[1].sha256)
    objects = GitObjects(again._remote, max_disk=0)
    assert {r.path for r in objects.missing([*receipts, never, twin])} == {"1.npy", "3.npy", "twin.npy"}
    assert objects.missing([]) == []
    again.close()
