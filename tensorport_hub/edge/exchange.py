"""Two things that the operating system does and Python's library does not offer: swap folders, lock a run.

`renameat2(RENAME_EXCHANGE)` (Linux 3.15, most file systems) and `renamex_np(RENAME_SWAP)` (macOS 10.12) swap
two folders in one step. Where neither is to be had, two renames leave a moment without the target; a run
that dies in it is mended by the next one, which finds the old folder and puts it back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path
from typing import IO

_AT_FDCWD = -100
_SWAP = 2
_UNABLE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


def exchange(one: Path, other: Path) -> None:
    """Give each of two folders the other's name.

    Raises:
        OSError: neither has changed.
    """
    try:
        _swap(one, other)
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
        _swap_slowly(one, other)


def _swap(one: Path, other: Path) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        result = library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _SWAP)
    elif sys.platform == "darwin":
        result = library.renamex_np(*names, _SWAP)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(other))


def aside(one: Path) -> Path:
    """Where `other` waits during an `exchange` by renames."""
    return one.with_name(one.name + ".old")


def _swap_slowly(one: Path, other: Path) -> None:
    os.rename(other, aside(one))
    try:
        os.rename(one, other)
    except BaseException:
        os.rename(aside(one), other)
        raise
    os.rename(aside(one), one)


def mend(one: Path, other: Path) -> None:
    """After a run that died within an `exchange` by renames: put the old folder back."""
    if aside(one).exists() and not other.exists():
        os.rename(aside(one), other)


def locked(path: Path) -> IO[bytes] | None:
    """A file that is locked until it is closed or this process ends; None where another one holds it."""
    file = open(path, "ab")  # noqa: SIM115 (held open: that is the lock)
    try:
        import fcntl
    except ImportError:  # Windows
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise FileNotFoundError  # whoever held it removed it meanwhile, and another may hold a new one
    except OSError:
        file.close()
        return None
    return file
