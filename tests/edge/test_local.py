"""Folders as source and sink: what lies on the disk, when, and what is refused."""

from __future__ import annotations

import builtins
import errno
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.progress import MadeFile
from tensorport_hub.edge import exchange, local_sink
from tensorport_hub.edge.local import LocalSource, parse_folder
from tensorport_hub.edge.local_sink import LocalSink
from tensorport_hub.errors import DestinationError, SourceError, UseError
from tensorport_hub.ports import Receipt, Sink
from tests.contracts.sink import SinkContract, SinkOf
from tests.contracts.source import SourceContract, SourceOf


def write_files(root: Path, files: Mapping[str, bytes]) -> Path:
    """A folder with these files."""
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def open_sink(target: Path, *, key: str = "k", restart: bool = False) -> LocalSink:
    """A sink for a plan of ten parts."""
    return LocalSink(target, key=key, outputs=range(10), standing={}, restart=restart)


def files_of(root: Path) -> dict[str, bytes]:
    """Every file below a folder, by path."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


class TestLocalSource(SourceContract):
    """`LocalSource` is a source."""

    @pytest.fixture
    def source_of(self, tmp_path: Path) -> SourceOf:
        return lambda files: LocalSource(write_files(tmp_path / "model", files))


class TestLocalSink(SinkContract):
    """`LocalSink` is a sink."""

    @pytest.fixture
    def sink_of(self, tmp_path: Path) -> SinkOf:
        return lambda: open_sink(tmp_path / "out")

    def published(self, sink: Sink) -> Mapping[str, bytes]:
        assert isinstance(sink, LocalSink)
        return files_of(sink._target)


class TestSourceFolder:
    """What `LocalSource` adds to the contract."""

    def test_folder_has_no_repo_and_no_commit(self, tmp_path: Path) -> None:
        """A folder's `repo` is None and its `commit` empty, and it states no digest."""
        source = LocalSource(write_files(tmp_path, {"a.bin": b"1"}))
        assert (source.repo, source.commit) == (None, "")
        assert source.files == [SourceFile("a.bin", 1)]

    def test_hidden_folders_are_not_listed(self, tmp_path: Path) -> None:
        """`.git` and `.cache` are no part of the model; deep folders are, sorted by path."""
        files = {".git/x": b"", "sub/.cache/x": b"", "sub/deep/b": b"", "sub.b": b"", "a": b""}
        source = LocalSource(write_files(tmp_path, files))
        assert [f.path for f in source.files] == ["a", "sub.b", "sub/deep/b"]

    @pytest.mark.parametrize("make", [Path.touch, lambda path: None])
    def test_what_is_no_folder_is_refused(self, tmp_path: Path, make: Callable[[Path], None]) -> None:
        """A file, or nothing, in the folder's place is a `SourceError`."""
        make(tmp_path / "model")
        with pytest.raises(SourceError, match="is no folder"):
            LocalSource(tmp_path / "model")

    @pytest.mark.parametrize("change", ["longer", "shorter", "touched", "replaced", "gone"])
    def test_changed_file_is_an_error(self, tmp_path: Path, change: str) -> None:
        """A file that changed after the listing is an error when it is read, though its size be the same."""
        path = write_files(tmp_path, {"a.bin": b"0" * 100}) / "a.bin"
        source = LocalSource(tmp_path)
        stat = path.stat()
        if change == "gone":
            path.unlink()
        elif change == "replaced":
            (tmp_path / "new").write_bytes(b"1" * 100)
            os.utime(tmp_path / "new", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
            os.replace(tmp_path / "new", path)
        else:
            path.write_bytes({"longer": b"0" * 101, "shorter": b"0" * 99, "touched": b"1" * 100}[change])
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9 * (change == "touched")))
        with pytest.raises(SourceError, match=r"`a\.bin`"):
            source.read_into("a.bin", 0, memoryview(bytearray(10)))

    def test_links_to_files_are_followed(self, tmp_path: Path) -> None:
        """Linked files are read (the Hub's cache is made of links); broken links are not listed."""
        write_files(tmp_path, {"blobs/abc": b"weights"})
        root = tmp_path / "snapshot"
        root.mkdir()
        (root / "model.safetensors").symlink_to("../blobs/abc")
        (root / "broken.safetensors").symlink_to("../blobs/none")
        source = LocalSource(root)
        buffer = bytearray(7)
        source.read_into("model.safetensors", 0, memoryview(buffer))
        assert source.files == [SourceFile("model.safetensors", 7)]
        assert buffer == b"weights"

    def test_links_out_of_the_folder(self, tmp_path: Path) -> None:
        """What is no weight is not read through them: it would be published as the model's own."""
        write_files(tmp_path, {"other/secret": b"password", "disk/w": b"weights"})
        root = tmp_path / "model"
        root.mkdir()
        (root / "LICENSE").symlink_to("../other/secret")
        (root / "model.safetensors").symlink_to("../disk/w")
        source = LocalSource(root)
        source.read_into("model.safetensors", 0, memoryview(bytearray(7)))
        with pytest.raises(SourceError, match="a link out of the folder") as caught:
            source.read_into("LICENSE", 0, memoryview(bytearray(8)))
        assert "copy the file" in caught.value.hint

    def test_a_mirror_is_read_wherever_its_links_lead(self, tmp_path: Path) -> None:
        """Nothing of it is published; a linked folder is looked into only for what is asked for."""
        write_files(tmp_path, {"disk/a.npy": b"aa", "disk/other": b"b", "license": b"c"})
        root = tmp_path / "mirror"
        root.mkdir()
        (root / "shard_000").symlink_to("../disk")
        (root / "LICENSE").symlink_to("../license")
        source = LocalSource(root, is_mirror=True)
        source.look_for(["shard_000/a.npy", "LICENSE", "absent"])
        assert source.files == [SourceFile("LICENSE", 1), SourceFile("shard_000/a.npy", 2)]
        buffer = bytearray(3)
        source.read_into("LICENSE", 0, memoryview(buffer)[:1])
        source.read_into("shard_000/a.npy", 0, memoryview(buffer)[1:])
        assert buffer == b"caa"

    def test_linked_loop_ends(self, tmp_path: Path) -> None:
        """A link to a folder above is not walked."""
        write_files(tmp_path, {"a": b"1"})
        (tmp_path / "loop").symlink_to(".")
        assert [f.path for f in LocalSource(tmp_path).files] == ["a"]

    def test_linked_source_folder(self, tmp_path: Path) -> None:
        """The folder itself may be a link."""
        write_files(tmp_path / "real", {"a": b"1"})
        (tmp_path / "link").symlink_to("real")
        assert [f.path for f in LocalSource(tmp_path / "link").files] == ["a"]

    def test_name_that_is_no_text(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file name that is no Unicode text is exit code 4 and is shown printably, not a crash later on."""
        monkeypatch.setattr(os, "walk", lambda root: [(str(root), [], [os.fsdecode(b"tokenizer_\xff.json")])])
        with pytest.raises(SourceError, match=r"`tokenizer_\\xff\.json` is no Unicode text") as caught:
            LocalSource(tmp_path)
        assert caught.value.exit_code == 4

    def test_short_system_reads_are_continued(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the system returns fewer bytes than asked, reading goes on behind them."""
        data = bytes(range(256)) * 4
        source = LocalSource(write_files(tmp_path, {"a": data}))
        whole = os.preadv
        monkeypatch.setattr(os, "preadv", lambda fd, into, at: whole(fd, [into[0][:7]], at))
        buffer = bytearray(500)
        source.read_into("a", 100, memoryview(buffer))
        assert buffer == data[100:600]

    def test_file_cut_while_it_is_read_is_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An end of file before the range's end is an error, not a short read."""
        source = LocalSource(write_files(tmp_path, {"a": b"x" * 100}))
        monkeypatch.setattr(os, "preadv", lambda fd, into, at: 0)
        with pytest.raises(SourceError, match="past its end"):
            source.read_into("a", 0, memoryview(bytearray(100)))

    def test_failing_disk_is_a_source_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An error of the system becomes a `SourceError` with its words."""
        source = LocalSource(write_files(tmp_path, {"a": b"x" * 100}))
        monkeypatch.setattr(os, "preadv", _failing(errno.EIO))
        with pytest.raises(SourceError, match="Input/output error"):
            source.read_into("a", 0, memoryview(bytearray(100)))


OPEN = open
MANIFEST = json.dumps({"schema": "tensorport.manifest/1", "files": [{"path": "a.npy"}]}).encode()


class TestSinkFolder:
    """What `LocalSink` adds to the contract."""

    def test_everything_is_staged_in_one_sibling(self, tmp_path: Path) -> None:
        """Before the commit all bytes lie in the staging folder; after it that is gone."""
        target = tmp_path / "out"
        sink = open_sink(target)
        receipt = _write(sink, "shard_000/a.npy", b"abc")
        sink.put("README.md", b"hi")
        assert [p.name for p in tmp_path.iterdir()] == [".out.tensorport"]
        staged = files_of(tmp_path / ".out.tensorport" / "out")
        assert staged == {"shard_000/a.npy": b"abc", "README.md": b"hi"}
        sink.commit([receipt])
        sink.close()
        assert files_of(tmp_path) == {"out/shard_000/a.npy": b"abc", "out/README.md": b"hi"}

    def test_unfinished_file_has_a_temporary_name(self, tmp_path: Path) -> None:
        """A file carries its own name only when it is whole."""
        sink = open_sink(tmp_path / "out")
        writer = sink.open("a.npy", 3)
        writer.write(memoryview(b"abc"))
        assert "a.npy" not in {p.name for p in tmp_path.rglob("*")}
        writer.finish()
        assert [p.name for p in (tmp_path / ".out.tensorport" / "out").iterdir()] == ["a.npy"]

    def test_leftovers_of_a_killed_run_are_dropped(self, tmp_path: Path) -> None:
        """Files that an earlier run left in the staging folder don't get into the mirror."""
        killed = open_sink(tmp_path / "out")
        killed.open("old.npy", 3).write(memoryview(b"ab"))
        _write(killed, "unknown.npy", b"abc")
        killed._lock.close()
        sink = open_sink(tmp_path / "out")
        sink.commit([_write(sink, "a.npy", b"abc")])
        assert files_of(tmp_path / "out") == {"a.npy": b"abc"}

    def test_staging_of_another_account_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its journal would vouch for its own parts; a link would lead elsewhere."""
        staging, elsewhere = tmp_path / ".out.tensorport", tmp_path / "elsewhere"
        elsewhere.mkdir()
        staging.symlink_to(elsewhere)
        with pytest.raises(DestinationError, match="is no folder"):
            open_sink(tmp_path / "out")
        staging.unlink()
        staging.mkdir()
        me = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: me + 1)
        with pytest.raises(DestinationError, match="another account's") as caught:
            open_sink(tmp_path / "out")
        assert "choose another folder" in caught.value.hint
        assert list(elsewhere.iterdir()) == list(staging.iterdir()) == []

    @pytest.mark.parametrize("had", ["nothing", "empty", "mirror"])
    def test_failed_run_leaves_nothing_behind(self, tmp_path: Path, had: str) -> None:
        """Closing without a commit leaves exactly what was there before."""
        if had != "nothing":
            (tmp_path / "out").mkdir()
        if had == "mirror":
            write_files(tmp_path / "out", {"manifest.json": MANIFEST, "a.npy": b"old"})
        before = sorted(tmp_path.rglob("*"))
        sink = open_sink(tmp_path / "out")
        _write(sink, "shard_000/a.npy", b"abc")
        writer = sink.open("shard_000/b.npy", 10)
        writer.write(memoryview(b"half"))
        writer.abort()
        sink.close()
        assert sorted(tmp_path.rglob("*")) == before

    def test_missing_parents_are_made(self, tmp_path: Path) -> None:
        """The folder may lie in folders that don't exist yet."""
        sink = open_sink(tmp_path / "x" / "y" / "out")
        sink.commit([_write(sink, "a.npy", b"abc")])
        sink.close()
        assert files_of(tmp_path / "x") == {"y/out/a.npy": b"abc"}

    @pytest.mark.parametrize(
        "held",
        [
            {"notes.txt": b"mine"},
            {"sub/deep/notes.txt": b"mine"},
            {"manifest.json": b'{"schema": "other/1"}', "a.npy": b""},
            {"manifest.json": b"\xff{"},
            {"manifest.json": b"[]"},
        ],
    )
    def test_foreign_folder_is_refused(self, tmp_path: Path, held: dict[str, bytes]) -> None:
        """A folder that is no mirror of ours is exit code 5, and stays as it is."""
        write_files(tmp_path / "out", held)
        with pytest.raises(DestinationError, match="no mirror of ours") as caught:
            open_sink(tmp_path / "out")
        assert caught.value.exit_code == 5
        assert files_of(tmp_path) == {f"out/{path}": data for path, data in held.items()}

    @pytest.mark.parametrize("stranger", ["notes.txt", "shard_000/a.npy.bak", ".hidden", ".git/config"])
    def test_mirror_with_a_stranger_is_refused(self, tmp_path: Path, stranger: str) -> None:
        """A mirror of ours that holds a file which its manifest does not list would lose it: exit code 5."""
        held = {"manifest.json": MANIFEST, "a.npy": b"old", stranger: b"mine"}
        write_files(tmp_path / "out", held)
        with pytest.raises(DestinationError, match=f"`{stranger}`"):
            open_sink(tmp_path / "out")
        assert files_of(tmp_path / "out") == held

    @pytest.mark.parametrize("there", ["file", "broken link", "link to folder"])
    def test_mirror_with_a_foreign_link_is_refused(self, tmp_path: Path, there: str) -> None:
        """Links in a mirror's folder are strangers too, and a file in the folder's place is refused."""
        out = tmp_path / "out"
        if there == "file":
            out.write_bytes(b"mine")
        else:
            write_files(out, {"manifest.json": MANIFEST, "a.npy": b"old"})
            (tmp_path / "elsewhere").mkdir()
            (out / "link").symlink_to("../elsewhere" if there == "link to folder" else "../nowhere")
        with pytest.raises(DestinationError):
            open_sink(out)

    def test_old_mirror_is_replaced_whole(self, tmp_path: Path) -> None:
        """The files of an older mirror are gone after the commit, and are all there until then."""
        old = {"manifest.json": MANIFEST, "a.npy": b"old"}
        write_files(tmp_path / "out", old)
        sink = open_sink(tmp_path / "out")
        receipt = _write(sink, "b.npy", b"new")
        assert files_of(tmp_path / "out") == old
        sink.commit([receipt])
        sink.close()
        assert files_of(tmp_path) == {"out/b.npy": b"new"}

    @pytest.mark.parametrize("failing", ["exchange", "first rename", "second rename"])
    def test_failed_swap_leaves_the_old_mirror(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
    ) -> None:
        """Where the finished folder can't be moved in, the old mirror is where it was."""
        old = {"manifest.json": MANIFEST, "a.npy": b"old"}
        write_files(tmp_path / "out", old)
        sink = open_sink(tmp_path / "out")
        receipt = _write(sink, "b.npy", b"new")
        if failing == "exchange":
            monkeypatch.setattr(exchange, "_swap", _failing(errno.EACCES))
        else:
            monkeypatch.setattr(exchange, "_swap", _failing(errno.ENOSYS))
            rename, calls = os.rename, iter([failing == "first rename", failing == "second rename"])

            def fail(one: Path, other: Path) -> None:
                if next(calls, False):
                    raise OSError(errno.EACCES, "Permission denied")
                rename(one, other)

            monkeypatch.setattr(os, "rename", fail)
        with pytest.raises(DestinationError, match="can't take the finished mirror"):
            sink.commit([receipt])
        sink.close()
        assert files_of(tmp_path) == {f"out/{path}": data for path, data in old.items()}

    def test_swap_by_renames(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the system can't exchange two folders, two renames do, and nothing is left beside."""
        write_files(tmp_path / "out", {"manifest.json": MANIFEST, "a.npy": b"old"})
        monkeypatch.setattr(exchange, "_swap", _failing(errno.ENOSYS))
        sink = open_sink(tmp_path / "out")
        sink.commit([_write(sink, "b.npy", b"new")])
        sink.close()
        assert files_of(tmp_path) == {"out/b.npy": b"new"}

    def test_run_that_died_between_the_renames_is_mended(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The next run puts the old mirror back before it does anything else."""
        old = {"manifest.json": MANIFEST, "a.npy": b"old"}
        work = tmp_path / ".out.tensorport"
        write_files(work / "out.old", old)
        write_files(work / "out", {"b.npy": b"new"})
        sink = open_sink(tmp_path / "out")
        assert files_of(tmp_path / "out") == old
        sink.commit([_write(sink, "b.npy", b"new")])
        sink.close()
        assert files_of(tmp_path) == {"out/b.npy": b"new"}

    @pytest.mark.parametrize("slowly", [False, True])
    def test_run_that_died_after_the_swap(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slowly: bool
    ) -> None:
        """What it left is known for what it is: the next run, of whatever plan, begins anew."""
        old = open_sink(tmp_path / "out")
        old.put("manifest.json", b'{"schema": "tensorport.manifest/1", "files": []}')
        old.commit([])
        old.close()
        killed = open_sink(tmp_path / "out")
        killed.put("manifest.json", b'{"schema": "tensorport.manifest/1", "files": [ ]}')
        killed.journal.add(MadeFile(0, 3, "0" * 64))
        true, renames = os.rename, []

        def rename(source: Path, target: Path) -> None:
            renames.append(source)
            if len(renames) == 3:
                raise KeyboardInterrupt
            true(source, target)

        with monkeypatch.context() as patched:
            if slowly:
                patched.setattr(exchange, "_swap", _unable)
                patched.setattr(os, "rename", rename)
            else:
                patched.setattr(local_sink, "_flush_folder", _interrupt_at(tmp_path))
            with pytest.raises(KeyboardInterrupt):
                killed.commit([])
        killed.close()
        assert (tmp_path / ".out.tensorport").exists()
        sink = open_sink(tmp_path / "out", key="another")
        assert not sink.journal.progress.made
        sink.discard()
        sink.close()
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_mode_of_the_folder_stays(self, tmp_path: Path) -> None:
        """Who may enter the old folder may enter the new one, and nobody else."""
        (tmp_path / "out").mkdir(mode=0o700)
        sink = open_sink(tmp_path / "out")
        sink.commit([_write(sink, "a.npy", b"abc")])
        assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700

    def test_lock_that_was_removed_is_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Opened before its holder removed it, locked after: another run may hold the new one."""
        path, true = tmp_path / "lock", fcntl.flock
        first = exchange.locked(path)
        assert first is not None

        def flock(file: Any, how: int) -> None:
            path.unlink()
            first.close()
            path.touch()
            true(file, how)

        monkeypatch.setattr(fcntl, "flock", flock)
        assert exchange.locked(path) is None

    def test_folders_are_exchanged_in_one_step(self, tmp_path: Path) -> None:
        """At every moment a reader finds one of the two: no name is ever missing."""
        write_files(tmp_path / "a", {"file": b"a"})
        write_files(tmp_path / "b", {"file": b"b"})
        seen: set[bytes] = set()
        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                seen.add((tmp_path / "a" / "file").read_bytes())

        with ThreadPoolExecutor(1) as reader:
            reading = reader.submit(read)
            for _ in range(2000):
                exchange.exchange(tmp_path / "a", tmp_path / "b")
            stop.set()
            reading.result()
        assert seen == {b"a", b"b"}

    def test_lost_file_is_not_published(self, tmp_path: Path) -> None:
        """A mirror that lacks a file which was written is never swapped in, whoever removed it."""
        for lost in ("a.npy", "config.json"):
            sink = open_sink(tmp_path / "out")
            receipts = [_write(sink, "a.npy", b"abc"), sink.put("config.json", b"{}")]
            (tmp_path / ".out.tensorport" / "out" / lost).unlink()
            with pytest.raises(DestinationError, match=f"lost `{lost}`"):
                sink.commit(receipts[:1])
            sink.close()
            assert files_of(tmp_path) == {}

    @pytest.mark.parametrize("had", ["nothing", "mirror"])
    def test_file_that_came_during_the_run_is_kept(self, tmp_path: Path, had: str) -> None:
        """What somebody put into the target while the run went on is found at the commit, and not lost."""
        if had == "mirror":
            write_files(tmp_path / "out", {"manifest.json": MANIFEST, "a.npy": b"old"})
        sink = open_sink(tmp_path / "out")
        receipt = _write(sink, "a.npy", b"abc")
        write_files(tmp_path / "out", {"notes.txt": b"mine"})
        with pytest.raises(DestinationError, match="destination"):
            sink.commit([receipt])
        sink.close()
        assert (tmp_path / "out" / "notes.txt").read_bytes() == b"mine"

    @pytest.mark.parametrize("had", ["empty", "mirror", "nothing"])
    def test_linked_target_is_written_where_it_points(self, tmp_path: Path, had: str) -> None:
        """A target that is a link stays one: the mirror comes to the folder that it points to."""
        real = tmp_path / "disk" / "real"
        real.parent.mkdir()
        if had != "nothing":
            real.mkdir()
        if had == "mirror":
            write_files(real, {"manifest.json": MANIFEST, "a.npy": b"old"})
        (tmp_path / "out").symlink_to("disk/real")
        sink = open_sink(tmp_path / "out")
        sink.commit([_write(sink, "b.npy", b"new")])
        sink.close()
        assert (tmp_path / "out").is_symlink()
        assert files_of(real) == {"b.npy": b"new"}
        assert {p.name for p in [*tmp_path.iterdir(), *real.parent.iterdir()]} == {"out", "disk", "real"}

    def test_every_folder_is_flushed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before the swap all files and the folders that name them are on the disk, after it the parent."""
        flushed: list[int] = []
        swapped: list[int] = []
        fsync, rename = os.fsync, os.rename

        def record(handle: int) -> None:
            flushed.append(os.fstat(handle).st_ino)
            fsync(handle)

        def record_swap(old: Path, new: Path) -> None:
            if Path(new).name == "out":
                swapped.append(len(flushed))
            rename(old, new)

        monkeypatch.setattr(os, "fsync", record)
        monkeypatch.setattr(os, "rename", record_swap)
        sink = open_sink(tmp_path / "out")
        flushed.clear()  # of the journal
        paths = ("shard_000/a.npy", "shard_001/deep/b.npy")
        sink.commit([_write(sink, path, b"abc") for path in paths])
        (at,) = swapped
        mirror = [tmp_path / "out", *(tmp_path / "out").rglob("*")]
        assert {path.stat().st_ino for path in mirror} <= {*flushed[:at]}
        assert flushed[at:] == [tmp_path.stat().st_ino]

    @pytest.mark.parametrize("broken", ["open", "write", "fsync", "replace", "mkdir"])
    def test_full_disk_is_a_destination_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
    ) -> None:
        """No space left, at whichever step, is exit code 5 with the system's words; `abort` still works."""
        sink = open_sink(tmp_path / "out")
        full = _failing(errno.ENOSPC)
        if broken == "open":
            monkeypatch.setattr(builtins, "open", full)
        elif broken == "mkdir":
            monkeypatch.setattr(Path, "mkdir", full)
        elif broken == "write":
            monkeypatch.setattr(builtins, "open", lambda *args, **kw: _Full(OPEN(*args, **kw)))
        else:
            monkeypatch.setattr(os, broken, full)
        with pytest.raises(DestinationError, match="No space left") as caught:
            _write(sink, "shard_000/a.npy", b"abc")
        assert caught.value.exit_code == 5
        assert not caught.value.transient
        monkeypatch.undo()
        sink.close()
        assert files_of(tmp_path) == {}

    @pytest.mark.parametrize("broken", ["unlink", "close"])
    def test_abort_never_raises(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
        """`abort` keeps silent where the system refuses even that."""
        sink = open_sink(tmp_path / "out")
        monkeypatch.setattr(builtins, "open", lambda *args, **kw: _Full(OPEN(*args, **kw)))
        writer = sink.open("a.npy", 3)
        with monkeypatch.context() as patch:
            if broken == "unlink":
                patch.setattr(Path, "unlink", _failing(errno.EACCES))
            else:
                patch.setattr(_Full, "close", _failing(errno.EIO))
            writer.abort()
        sink.close()
        assert files_of(tmp_path) == {}

    def test_parent_that_can_not_be_written(self, tmp_path: Path) -> None:
        """A staging folder that can't be made is a `DestinationError`."""
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(DestinationError, match="is no folder that can be written"):
            open_sink(tmp_path / "file" / "out")

    def test_partial_system_writes_are_continued(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the system takes fewer bytes than given, the rest follows."""
        sink = open_sink(tmp_path / "out")
        monkeypatch.setattr(builtins, "open", lambda *args, **kw: _Slow(OPEN(*args, **kw)))
        receipt = _write(sink, "a.npy", bytes(range(100)))
        monkeypatch.undo()
        assert files_of(tmp_path / ".out.tensorport" / "out") == {"a.npy": bytes(range(100))}
        assert receipt.sha256 == hashlib.sha256(bytes(range(100))).hexdigest()


class TestParseFolder:
    """The folder that a user wrote."""

    @pytest.mark.parametrize("text", ["/", "/..", "/x/.."])
    def test_root_is_refused(self, text: str) -> None:
        """The root of a file system is exit code 2."""
        with pytest.raises(UseError, match="root"):
            parse_folder(text)

    @pytest.mark.parametrize(("text", "under"), [("out", "out"), ("./a/../out/", "out"), ("a//b", "a/b")])
    def test_relative_folders(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, under: str
    ) -> None:
        """Relative to the working folder, without dots."""
        monkeypatch.chdir(tmp_path)
        assert parse_folder(text) == tmp_path / under

    def test_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """`~` is the user's home."""
        monkeypatch.setenv("HOME", str(tmp_path))
        assert parse_folder("~/out") == tmp_path / "out"


def _write(sink: LocalSink, path: str, data: bytes) -> Receipt:
    writer = sink.open(path, len(data))
    try:
        writer.write(memoryview(data))
        return writer.finish()
    except BaseException:
        writer.abort()
        raise


def _failing(number: int) -> Callable[..., Any]:
    def fail(*_args: object, **_kw: object) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


class _Full:
    """A file on a full disk."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, block: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fileno(self) -> int:
        return int(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class _Slow(_Full):
    """A file that takes three bytes at a time."""

    def write(self, block: memoryview) -> int:
        return int(self._file.write(block[:3]))


def _unable(*_: object) -> None:
    raise OSError(errno.ENOSYS, "no")


def _interrupt_at(parent: Path) -> Callable[[Path], None]:
    def flush(folder: Path) -> None:
        if folder == parent:
            raise KeyboardInterrupt

    return flush
