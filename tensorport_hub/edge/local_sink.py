"""A folder of this machine as a sink.

Everything lies in a sibling folder `.NAME.tensorport` until the commit: the new folder `out`, the journal,
and a lock. Each file is written to a temporary name, flushed to the disk and renamed, then entered in the
journal; a run that was killed continues from it. The commit swaps `out` and the target in one step where the
system can (Linux, macOS): readers see the old folder or the complete new one. What it is about to swap in is
written down before, so that a run that died right after is known for one that had finished. A target that is
a link is followed: the folder that it points to is replaced.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.manifest import PATH
from tensorport_hub.edge.exchange import aside, exchange, locked, mend
from tensorport_hub.edge.journal import JournalFile
from tensorport_hub.edge.target import WHERE, check_folder, check_place, followed
from tensorport_hub.errors import DestinationError
from tensorport_hub.ports import Published, Receipt

_BLOCK = 1 << 20
_JOURNAL = "journal.jsonl"
_ANEW = "anew"
"""Is there where the run was begun by `--restart`."""
_PUBLISHING = "publishing"
"""Holds the sha256 of the manifest that is about to be swapped in: a target that has it was."""


class LocalSink:
    """A folder that becomes the mirror, and the journal of how far it is.

    Attributes:
        anew: begun by `restart`, now or by the run that is continued: what the target holds is not linked.
    """

    def __init__(
        self,
        target: Path,
        *,
        key: str,
        outputs: Collection[int],
        standing: Mapping[str, str],
        restart: bool,
    ) -> None:
        """Stage for `target`.

        Args:
            key: names the plan.
            outputs: the numbers of its output files.
            standing: sha256 -> path of what the target holds already.
            restart: give up what an interrupted run of whatever plan left.

        Raises:
            DestinationError: the target holds something else, another run writes to it, another plan's
                interrupted run is kept there, or the disk refuses.
        """
        check_place(target)
        target = followed(target)
        self._target = target
        self._work = _work_of(target)
        self._out, self._publishing = self._work / "out", self._work / _PUBLISHING
        self._standing = standing
        self._small: dict[str, Receipt] = {}
        self._keep = True
        try:
            self._work.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owner(self._work)
            lock = locked(self._work / "lock")
        except OSError as error:
            raise DestinationError(f"`{target.parent}` can't be written: {error.strerror}") from None
        if lock is None:
            raise DestinationError(
                f"another run writes to `{target}`", hint="wait for it, or choose another folder"
            )
        self._lock = lock
        try:
            mend(self._out, target)
            check_folder(target)
            if restart or self._was_published():
                self._clear()
            if restart:
                (self._work / _ANEW).touch()
            self.anew = (self._work / _ANEW).exists()
            self._publishing.unlink(missing_ok=True)
            self.journal = JournalFile(self._work / _JOURNAL, key=key, outputs=outputs)
            self._out.mkdir(exist_ok=True)
        except BaseException as error:
            if not (self._work / _JOURNAL).exists():
                shutil.rmtree(self._work, ignore_errors=True)
            self._lock.close()
            if isinstance(error, OSError):
                raise DestinationError(f"`{self._work}` can't be written: {error.strerror}") from None
            raise

    @staticmethod
    def is_begun_anew(target: Path) -> bool:
        """Whether a run that was to make everything itself was interrupted."""
        return _work_of(target, _ANEW).exists()

    def _was_published(self) -> bool:
        """Whether an earlier run ended between the swap and its clearing up."""
        try:
            return self._publishing.read_text("ascii") == _sha256(self._target / PATH)
        except (OSError, ValueError):
            return False

    def _clear(self) -> None:
        """Remove everything but the lock, the journal first."""
        (self._work / _JOURNAL).unlink(missing_ok=True)
        (self._work / _ANEW).unlink(missing_ok=True)
        for folder in (self._out, aside(self._out)):
            shutil.rmtree(folder, ignore_errors=True)

    def open(self, path: str, size: int) -> LocalWriter:
        return LocalWriter(self._out, path, size)

    def has(self, receipt: Receipt) -> bool:
        """Whether it is staged, byte for byte: it is hashed. What the target has is linked."""
        staged, path = self._out / receipt.path, self._standing.get(receipt.sha256)
        if _holds(staged, receipt):
            return True
        if path is None or not _holds(self._target / path, receipt):
            return False
        try:
            staged.unlink(missing_ok=True)
            staged.parent.mkdir(parents=True, exist_ok=True)
            os.link(self._target / path, staged)
        except OSError:
            return False  # no links there: it is made again
        return True

    def put(self, path: str, content: bytes) -> Receipt:
        writer = self.open(path, len(content))
        try:
            writer.write(memoryview(content))
            self._small[path] = writer.finish()
        finally:
            writer.abort()
        return self._small[path]

    def commit(self, receipts: Sequence[Receipt]) -> Published:
        target = self._target
        check_folder(target)  # again: somebody may have put a file there meanwhile
        self._settle([*receipts, *self._small.values()])
        try:
            for folder, _, _ in os.walk(self._out):
                _flush_folder(Path(folder))
            with open(self._publishing, "w", encoding="ascii") as file:
                file.write(self._small[PATH].sha256 if PATH in self._small else "")
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                self._out.chmod(stat.S_IMODE(target.stat().st_mode))
                exchange(self._out, target)
            else:
                os.rename(self._out, target)
            _flush_folder(target.parent)
        except OSError as error:
            raise DestinationError(
                f"`{target}` can't take the finished mirror: {error.strerror}", hint=WHERE
            ) from None
        self._keep = False
        return Published(str(target), None, None, changed=True)

    def _settle(self, receipts: Sequence[Receipt]) -> None:
        """Nothing but what is committed lies in the new folder, and all of it."""
        for receipt in receipts:
            path = self._out / receipt.path
            if not path.is_file() or path.stat().st_size != receipt.size:
                raise DestinationError(
                    f"staging folder `{self._out}` lost `{receipt.path}`",
                    hint="does another program clean up there?",
                )
        wanted = {receipt.path for receipt in receipts}
        for path in sorted(self._out.rglob("*"), reverse=True):
            if not path.is_dir() and path.relative_to(self._out).as_posix() not in wanted:
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()

    def discard(self) -> None:
        self._keep = False

    def close(self) -> None:
        """Keep the work folder where a part is finished in it; else leave nothing behind."""
        self.journal.close()
        if not self._keep or not self.journal.made:
            with suppress(OSError):
                self._clear()
            shutil.rmtree(self._work, ignore_errors=True)
        self._lock.close()


class LocalWriter:
    """One file in the staging folder."""

    def __init__(self, root: Path, path: str, size: int) -> None:
        self._path, self._size = path, size
        self._final = root / path
        # of its own: a thread that outlived an interrupted run may still abort its writer of this file
        self._part = self._final.with_name(f"{self._final.name}.{secrets.token_hex(4)}.partial")
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


def _holds(path: Path, receipt: Receipt) -> bool:
    try:
        same = not path.is_symlink() and path.stat().st_size == receipt.size
        return same and _sha256(path) == receipt.sha256
    except OSError:
        return False


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _work_of(target: Path, *names: str) -> Path:
    """Where everything lies until the commit."""
    target = followed(target)
    return target.parent.joinpath(f".{target.name}.tensorport", *names)


def _check_owner(folder: Path) -> None:
    """What another account put where we stage is not continued: its journal would vouch for its own parts."""
    found, me = folder.lstat(), getattr(os, "geteuid", None)
    if stat.S_ISDIR(found.st_mode) and (me is None or found.st_uid == me()):
        return
    what = "another account's" if stat.S_ISDIR(found.st_mode) else "no folder"
    raise DestinationError(f"staging folder `{folder}` is {what}", hint="remove it, or choose another folder")


def listing(folder: Path, *, hashed: bool) -> list[SourceFile]:
    """All files below a folder, by path; `hashed`: with their sha256."""
    return [
        SourceFile(
            path.relative_to(folder).as_posix(), path.stat().st_size, _sha256(path) if hashed else None
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def _refused(path: str, error: OSError) -> DestinationError:
    return DestinationError(f"`{path}` can't be written: {error.strerror}")


def _flush_folder(folder: Path) -> None:
    """Make renames in `folder` durable, where the platform can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
