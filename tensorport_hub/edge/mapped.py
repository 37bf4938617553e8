"""Files of this machine as memory: mapped read-only, so that only the pages that are used are read.

A mapping of Python before 3.13 keeps a handle of its file open. So that a checkpoint of thousands of files
leaves its user enough of them, at most half of the handles that this process may have are used; what can't
be mapped is read.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from tensorport_hub.core.digest import POINTER_NBYTES, parse_pointer
from tensorport_hub.errors import SourceError

_FULL = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)


class _Handles:
    """How many mappings hold a handle now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held = 0

    def take(self) -> bool:
        """Whether one more may be held."""
        with self._lock:
            if self._held >= _most():
                return False
            self._held += 1
            return True

    def give(self) -> None:
        with self._lock:
            self._held -= 1


_HANDLES = _Handles()


def _most() -> int:
    """Half of the handles that this process may have."""
    if sys.platform == "win32":
        return sys.maxsize
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft // 2


def map_file(path: Path, size: int) -> mmap.mmap | None:
    """The file's bytes, mapped while the result or a view of it lives; None where no more can be mapped.

    Raises:
        SourceError: it can't be read, or has another size.
    """
    with _opened(path, size) as file:
        try:
            return _mapped(file, size)
        except OSError as error:
            if error.errno in _FULL:
                return None
            raise


def _mapped(file: FileIO, size: int) -> mmap.mmap | None:
    if sys.version_info >= (3, 13):
        return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ, trackfd=False)
    if not _HANDLES.take():
        return None
    try:
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except BaseException:
        _HANDLES.give()
        raise
    weakref.finalize(mapped, _HANDLES.give)
    return mapped


def read_into(path: Path, size: int, start: int, buffer: memoryview) -> None:
    """Fill `buffer` with exactly the file's bytes from `start`.

    Raises:
        SourceError: it can't be read, or has another size.
    """
    with _opened(path, size) as file:
        file.seek(start)
        done = 0
        while done < len(buffer):
            got = file.readinto(buffer[done:])
            if not got:
                raise SourceError(f"`{path}` ended at byte {start + done}: expected {size} bytes")
            done += got


@contextmanager
def _opened(path: Path, size: int) -> Iterator[FileIO]:
    """The file, if it has this size; whatever the system says against reading it is its fault."""
    try:
        with open(path, "rb", buffering=0) as file:
            found = os.fstat(file.fileno()).st_size
            if found != size:
                raise _other_size(path, size, found, file.read(POINTER_NBYTES))
            yield file
    except OSError as error:
        raise SourceError(f"`{path}` can't be read: {error.strerror}") from None


def _other_size(path: Path, expected: int, found: int, begin: bytes) -> SourceError:
    if found <= POINTER_NBYTES and parse_pointer(begin) is not None:
        return SourceError(f"`{path}` is only a git-LFS pointer", hint="`git lfs pull` gets the file")
    return SourceError(f"`{path}` has the wrong size: expected {expected} bytes, got {found}")
