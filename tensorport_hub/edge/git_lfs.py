"""git-LFS objects: staged while they are hashed, pushed one by one, and dropped; the disk holds few of them.

git-lfs finds the server, says who the user is, and transfers. Its word that an object has arrived is not
taken: before a commit names objects, the server is asked for them. git-lfs does that when it is to push a
commit whose objects are not here: it names those that the server lacks, and can send none.

Source: git-lfs "Batch API" (an object that the server has comes without an upload action); objects lie in
`lfs/objects/aa/bb/OID` of a bare repository.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from tensorport_hub.core.digest import pointer
from tensorport_hub.edge.git import failure
from tensorport_hub.edge.git_remote import GitRemote, Tree
from tensorport_hub.edge.retry import retried
from tensorport_hub.edge.staging import Spool, Staging
from tensorport_hub.errors import DestinationError, LimitError
from tensorport_hub.ports import Receipt

_PUSHES = 4
"""Programs that send at a time: each is tens of megabytes, and a connection to the host."""
_CHECK = "refs/heads/check"
_SLOWEST = 100_000
"""Bytes a second below which a transfer is given up; git-lfs itself ends one that stands still."""
_UNPROCESSABLE = "Uploading failed due to unsupported Content-Type"
_OID = re.compile(r"\b[0-9a-f]{64}\b")


class GitObjects:
    """The LFS objects of a remote."""

    def __init__(self, remote: GitRemote, *, max_disk: int) -> None:
        self._remote, self._git = remote, remote.git
        self._staging = Staging(max_disk=max_disk, otherwise="raise `--max-disk`, or lower `--shard-size`")
        self._folder = self._git.folder / "staged"
        self._store = self._git.repository / "lfs" / "objects"
        for folder in (self._folder, self._store):
            folder.mkdir(parents=True, exist_ok=True)
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._pushes = threading.Semaphore(_PUSHES)

    def open(self, path: str, size: int) -> GitSpool:
        """Wait until `size` bytes of staging are free.

        Raises:
            LimitError: they never will be, or the disk refuses.
        """
        self._staging.reserve(path, size)
        try:
            # closed by `abort`, which every writer ends with
            file = tempfile.NamedTemporaryFile(dir=self._folder, buffering=0, delete=False)  # noqa: SIM115
        except OSError as error:
            self._staging.release(size)
            raise LimitError(f"staging `{path}` failed: {error.strerror}", hint="free disk space") from None
        return GitSpool(self, self._staging, path, size, file)

    def send(self, receipt: Receipt, staged: Path) -> None:
        """Push one object, from a staged file that is gone afterwards.

        Raises:
            DestinationError: the server refuses it, or can't be reached.
        """
        git = self._git
        object_path = self._path(receipt.sha256)
        with self._alone(receipt.sha256):
            try:
                for folder in (object_path.parent.parent, object_path.parent):
                    folder.mkdir(exist_ok=True)  # but nothing above, where everything is closed and gone
                os.replace(staged, object_path)
            except OSError as error:
                raise LimitError(
                    f"staging `{receipt.path}` failed: {error.strerror}", hint="free disk space"
                ) from None
            try:
                with self._pushes:
                    retried(lambda: self._push(receipt), self._remote.report, git.closed)
            finally:
                object_path.unlink(missing_ok=True)

    def _push(self, receipt: Receipt) -> None:
        ended = self._git.run(
            *("lfs", "push", "--object-id", "origin", receipt.sha256), seconds=_seconds(receipt.size)
        )
        said = ended.said
        if _UNPROCESSABLE in said:  # and git-lfs 3.3 is content
            said = "the LFS server refused it as unprocessable (HTTP 422)"
        if ended.code or said != ended.said:
            what = f"sending `{receipt.path}` ({receipt.size} bytes) to `{self._remote.name}`"
            raise failure(what, said)

    def missing(self, receipts: Iterable[Receipt]) -> list[Receipt]:
        """Those that the server does not have, by its own word.

        Raises:
            DestinationError: it can't be asked.
        """
        asked = [receipt for receipt in receipts if receipt.size]  # git itself holds the empty ones
        if not asked:
            return []
        in_a_folder = self._remote.name.startswith("file://")
        lacking = (self._not_lying_there if in_a_folder else self._not_on_the_server)(asked)
        return [receipt for receipt in asked if receipt.sha256 in lacking]

    def confirm(self, receipts: Iterable[Receipt]) -> None:
        """Ask the server whether it has all of these, and refuse to go on where it has not.

        Raises:
            DestinationError: no, though it took them; the first is named.
        """
        lost = self.missing(receipts)
        if lost:
            raise DestinationError(
                f"`{self._remote.name}` has not kept `{lost[0].path}` ({lost[0].size} bytes), one of"
                f" {len(lost)} files that it was sent",
                hint="its LFS server may refuse files by size or quota, or have dropped them; run again",
            )

    def _not_on_the_server(self, receipts: Iterable[Receipt]) -> set[str]:
        pointers = {receipt.sha256: pointer(receipt.sha256, receipt.size) for receipt in receipts}
        with self._alone(_CHECK):
            commit = self._remote.commit(Tree(), pointers, message="Objects", author="nobody <>")
            self._git.ask("update-ref", _CHECK, commit, doing="setting a ref")
            said = retried(self._ask, self._remote.report, self._git.closed)
        return set(_OID.findall(said))

    def _ask(self) -> str:
        ended = self._git.run("lfs", "push", "origin", _CHECK.removeprefix("refs/heads/"))
        if ended.code:
            raise failure(f"asking `{self._remote.name}` for its objects", ended.said)
        return ended.out.decode("utf-8", "replace") + ended.said

    def _not_lying_there(self, receipts: Iterable[Receipt]) -> set[str]:
        """Of a repository in a folder, which has no server: whose files are not there."""
        where = Path(unquote(urlsplit(self._remote.name).path))
        places = (where, where / ".git", where.with_name(f"{where.name}.git"))
        found = next((place for place in places if (place / "objects").is_dir()), where)
        said = self._git.ask(f"--git-dir={found}", "lfs", "env", doing=f"looking into `{where}`")
        media = re.search(r"^LocalMediaDir=(.+)$", said.decode("utf-8", "replace"), re.MULTILINE)
        if media is None:
            raise DestinationError(f"`{where}` has no place for LFS objects")
        return {r.sha256 for r in receipts if _size(_object(Path(media[1]), r.sha256)) != r.size}

    def fetch(self, receipt: Receipt) -> IO[bytes]:
        """Get one object, whose bytes git-lfs compares; it takes its room on the disk until it is closed.

        Raises:
            DestinationError: the server does not have it, or other bytes.
        """
        doing = f"getting `{receipt.path}` from `{self._remote.name}`"
        path = self._path(receipt.sha256)
        with self._alone(receipt.sha256):
            retried(lambda: self._fetch(receipt, doing), self._remote.report, self._git.closed)
            try:
                file = open(path, "rb", buffering=0)  # noqa: SIM115 (the caller's)
                path.unlink()
            except OSError as error:
                raise DestinationError(f"{doing} failed: {error.strerror}") from None
        return file

    def _fetch(self, receipt: Receipt, doing: str) -> None:
        ended = self._git.run(
            *("lfs", "smudge"),
            given=pointer(receipt.sha256, receipt.size),
            seconds=_seconds(receipt.size),
            answers=False,
        )
        if ended.code:
            raise failure(doing, ended.said)

    def _path(self, oid: str) -> Path:
        return _object(self._store, oid)

    def _alone(self, name: str) -> threading.Lock:
        """What keeps two threads from the same object."""
        with self._lock:
            return self._locks.setdefault(name, threading.Lock())


class GitSpool(Spool):
    """One file on its way to a git remote."""

    def __init__(self, objects: GitObjects, staging: Staging, path: str, size: int, file: IO[bytes]) -> None:
        super().__init__(staging, path, size, file)
        self._objects = objects

    def send(self, receipt: Receipt) -> None:
        if receipt.size:  # git-lfs knows no empty objects
            self._objects.send(receipt, Path(self._file.name))

    def abort(self) -> None:
        Path(self._file.name).unlink(missing_ok=True)
        super().abort()


def _object(folder: Path, oid: str) -> Path:
    return folder / oid[:2] / oid[2:4] / oid


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _seconds(size: int) -> float:
    return 600 + size / _SLOWEST
