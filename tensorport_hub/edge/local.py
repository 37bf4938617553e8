"""Folders of this machine, as a source and as a sink.

Reading uses `pread`: mapped pages would count as this process's memory. A symbolic link may point anywhere
for a file that the user's folder holds (the Hub's cache is made of links), but names come from a listing,
never from a checkpoint.

Writing stages everything in a sibling folder `.NAME.tensorport-...`, each file written to a temporary name,
flushed to the disk and renamed; the commit swaps the staging folder in. Readers see the old folder or the
complete new one. A target that is a link is followed: the folder that it points to is replaced.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.manifest import listed_files
from tensorport_hub.errors import DestinationError, SourceError, UseError
from tensorport_hub.ports import Published, Receipt


class LocalSource:
    """A folder, listed once when it is opened; a file that changes afterwards is an error when it is read."""

    repo = None
    commit = ""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise SourceError(f"source `{root}` is no folder")
        self._root = root
        self._stats: dict[str, tuple[int, int]] = {}
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                path = Path(folder, name)
                _check_name(path.relative_to(root).as_posix())
                if path.is_file():
                    stat = path.stat()
                    self._stats[path.relative_to(root).as_posix()] = (stat.st_size, stat.st_mtime_ns)
        self.files: Sequence[SourceFile] = [
            SourceFile(path, size) for path, (size, _) in sorted(self._stats.items())
        ]

    def read_into(self, path: str, start: int, buffer: memoryview) -> None:
        if path not in self._stats:
            raise SourceError(f"`{path}` is not in the source folder")
        if start < 0:
            raise SourceError(f"range {start}:{start + len(buffer)} of `{path}` lies before its start")
        try:
            with open(self._root / path, "rb", buffering=0) as file:
                stat = os.fstat(file.fileno())
                if (stat.st_size, stat.st_mtime_ns) != self._stats[path]:
                    raise SourceError(f"`{path}` changed since the run began")
                self._fill(file.fileno(), path, start, buffer)
        except OSError as error:
            raise SourceError(f"`{path}` can't be read: {error.strerror}") from None

    def _fill(self, handle: int, path: str, start: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            got = os.preadv(handle, [buffer[done:]], start + done)
            if got == 0:
                raise SourceError(
                    f"range {start}:{start + len(buffer)} of `{path}` lies past its end at {start + done}"
                )
            done += got

    def close(self) -> None:
        """Nothing is held between reads."""


def _check_name(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise SourceError(
            f"file name `{shown}` is no Unicode text", hint="rename or remove the file"
        ) from None


class LocalSink:
    """A folder that becomes the mirror."""

    def __init__(self, target: Path, *, key: str) -> None:
        """Stage for `target`; `key` makes the staging folder's name."""
        target = Path(os.path.realpath(target)) if target.is_symlink() else target
        self._target = target
        self._staging = target.parent / f".{target.name}.tensorport-{key}"
        self._small: dict[str, Receipt] = {}
        check_folder(target)
        try:
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging.mkdir(parents=True)
        except OSError as error:
            raise DestinationError(f"`{target.parent}` can't be written: {error.strerror}") from None

    def open(self, path: str, size: int) -> LocalWriter:
        return LocalWriter(self._staging, path, size)

    def put(self, path: str, content: bytes) -> Receipt:
        writer = self.open(path, len(content))
        try:
            writer.write(memoryview(content))
            self._small[path] = writer.finish()
        finally:
            writer.abort()
        return self._small[path]

    def commit(self, receipts: Sequence[Receipt]) -> Published:
        target, old = self._target, self._staging.with_name(self._staging.name + ".old")
        check_folder(target)  # again: somebody may have put a file there meanwhile
        self._check_staged([*receipts, *self._small.values()])
        try:
            for folder, _, _ in os.walk(self._staging):
                _flush_folder(Path(folder))
            shutil.rmtree(old, ignore_errors=True)
            if target.exists() and any(target.iterdir()):
                os.rename(target, old)
            try:
                os.replace(self._staging, target)
            except BaseException:
                if old.exists():
                    os.rename(old, target)
                raise
            _flush_folder(target.parent)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise DestinationError(
                f"`{target}` can't take the finished mirror: {error.strerror}",
                hint="choose a folder whose parent can be written, and which is no mount point",
            ) from None
        return Published(str(target), None, None, changed=True)

    def _check_staged(self, receipts: Sequence[Receipt]) -> None:
        for receipt in receipts:
            path = self._staging / receipt.path
            if not path.is_file() or path.stat().st_size != receipt.size:
                raise DestinationError(
                    f"staging folder `{self._staging}` lost `{receipt.path}`",
                    hint="does another run write to the same folder?",
                )

    def close(self) -> None:
        shutil.rmtree(self._staging, ignore_errors=True)


class LocalWriter:
    """One file in the staging folder."""

    def __init__(self, root: Path, path: str, size: int) -> None:
        self._path, self._size = path, size
        self._final = root / path
        self._part = self._final.with_name(self._final.name + ".partial")
        self._sha256 = hashlib.sha256()
        self._written = 0
        try:
            self._final.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._part, "wb", buffering=0)  # noqa: SIM115 (closed by finish or abort)
        except OSError as error:
            raise _refused(path, error) from None

    def write(self, block: memoryview) -> None:
        try:
            done = 0
            while done < block.nbytes:
                done += self._file.write(block[done:])
        except OSError as error:
            raise _refused(self._path, error) from None
        self._sha256.update(block)
        self._written += block.nbytes

    def finish(self) -> Receipt:
        if self._written != self._size:
            self.abort()
            raise DestinationError(
                f"`{self._path}` has the wrong length: expected {self._size} bytes, got {self._written}"
            )
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._part, self._final)
        except OSError as error:
            raise _refused(self._path, error) from None
        return Receipt(self._path, self._size, self._sha256.hexdigest())

    def abort(self) -> None:
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._part.unlink()


def _refused(path: str, error: OSError) -> DestinationError:
    return DestinationError(f"`{path}` can't be written: {error.strerror}")


def check_folder(target: Path) -> None:
    """Only an empty folder, or a mirror of ours with nothing else in it, may be replaced."""
    if not target.exists():
        return
    if not target.is_dir():
        raise DestinationError(f"destination `{target}` exists and is no folder")
    found = {path.relative_to(target).as_posix() for path in target.rglob("*") if _is_entry(path)}
    if not found:
        return
    manifest = target / "manifest.json"
    listed = listed_files(manifest.read_bytes()) if manifest.is_file() else None
    if listed is None:
        raise DestinationError(
            f"destination `{target}` is not empty and holds no mirror of ours", hint="choose an empty folder"
        )
    strangers = sorted(found - listed - {"manifest.json"})
    if strangers:
        raise DestinationError(
            f"destination `{target}` holds {len(strangers)} files that its manifest does not list,"
            f" the first is `{strangers[0]}`",
            hint="they would be lost: move them away first",
        )


def _is_entry(path: Path) -> bool:
    """Whether something would be lost with it: anything but a folder; a link to one is an entry too."""
    return path.is_symlink() or not path.is_dir()


def _flush_folder(folder: Path) -> None:
    """Make renames in `folder` durable, where the platform can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def parse_folder(text: str) -> Path:
    """The folder that a user wrote, absolute.

    Raises:
        UseError: the root of a file system.
    """
    path = Path(text).expanduser().absolute()
    path = Path(os.path.normpath(path))
    if path == path.parent:
        raise UseError(f"`{text}` is the root of a file system: expected a folder")
    return path
