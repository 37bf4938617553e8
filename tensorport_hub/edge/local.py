"""Folders of this machine, as a source.

Reading uses `pread`: mapped pages would count as this process's memory. Names come from a listing, never from
a checkpoint. A symbolic link is followed within the folder, into the blobs of a Hub cache that the folder is
a snapshot of, and, for weights, anywhere: what else it points to would be published as the model's own.

A Hub cache is `<cache>/models--org--name/snapshots/<commit>`, whose files are links into the model's `blobs`;
what came by Xet is from there a link once more, into `<cache>/blobs`, which all models share.

A mirror that is held against its manifest publishes nothing: there links are followed wherever they lead, as
they are where it is opened for reading; those to folders only for files that the manifest names.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from tensorport_hub.core.digest import POINTER_NBYTES, SourceFile, parse_pointer
from tensorport_hub.errors import SourceError, UseError

_WEIGHTS = ".safetensors"


class LocalSource:
    """A folder, listed once when it is opened; a file that changes afterwards is an error when it is read."""

    repo = None
    commit = ""

    def __init__(self, root: Path, *, is_mirror: bool = False) -> None:
        """List the folder; in a mirror a git-LFS pointer counts as the file that it stands for."""
        if not os.path.isdir(root):
            raise SourceError(f"source `{root}` is no folder")
        if not os.access(root, os.R_OK | os.X_OK):
            raise SourceError(f"folder `{root}` can't be read: its permissions forbid it")
        self._root, self._is_mirror = root, is_mirror
        self._stats: dict[str, tuple[int, int]] = {}
        self._pointers: set[str] = set()
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                path = Path(folder, name).relative_to(root).as_posix()
                _check_name(path)
                self._note(path)
        self.files = self._list()

    def look_for(self, paths: Iterable[str]) -> None:
        """List these files too: the walk through the folder does not enter links to others."""
        for path in paths:
            if path not in self._stats:
                self._note(path)
        self.files = self._list()

    def _note(self, path: str) -> None:
        found = self._root / path
        if os.path.isfile(found):
            stat = found.stat()
            self._stats[path] = (stat.st_size, stat.st_mtime_ns)

    def _list(self) -> Sequence[SourceFile]:
        listed = [SourceFile(path, size) for path, (size, _) in sorted(self._stats.items())]
        return [self._pointed(file) for file in listed] if self._is_mirror else listed

    def _pointed(self, file: SourceFile) -> SourceFile:
        """What a git-LFS pointer says; reading the file itself then says that it is one."""
        if file.size > POINTER_NBYTES:
            return file
        said = parse_pointer((self._root / file.path).read_bytes())
        if said is None:
            return file
        self._pointers.add(file.path)
        return SourceFile(file.path, said[1], said[0])

    @property
    def stamp(self) -> str:
        """Digest (hex) of names, sizes and times: another one where a file was written anew."""
        listing = "".join(f"{path}\0{size}\0{time}\0" for path, (size, time) in self._stats.items())
        return hashlib.sha256(listing.encode()).hexdigest()

    def read_into(self, path: str, start: int, buffer: memoryview) -> None:
        if path not in self._stats:
            raise SourceError(f"`{path}` is not in the source folder")
        if path in self._pointers:
            raise SourceError(f"`{path}` is only a git-LFS pointer", hint="`git lfs pull` gets the file")
        if not self._is_mirror and not self._is_own(path):
            raise SourceError(
                f"`{path}` is a link out of the folder, to `{os.path.realpath(self._root / path)}`",
                hint="copy the file, if it is to be published",
            )
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

    def _is_own(self, path: str) -> bool:
        root, real = self._root.resolve(), (self._root / path).resolve()
        own = [root]
        if root.parent.name == "snapshots":
            model = root.parent.parent
            own.append(model / "blobs")
            if model.name.startswith("models--"):
                own.append(model.parent / "blobs")
        return path.endswith(_WEIGHTS) or any(real.is_relative_to(folder) for folder in own)

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


def parse_folder(text: str) -> Path:
    """The folder that a user wrote, absolute.

    Raises:
        UseError: nothing was written, or the root of a file system.
    """
    if not text.strip():
        raise UseError("the name of a folder is empty: expected one such as `./out`")
    path = Path(os.path.abspath(os.path.expanduser(text)))
    if path == path.parent:
        raise UseError(f"`{text}` is the root of a file system: expected a folder")
    return path
