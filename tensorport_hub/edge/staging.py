"""Room for files on their way: what is written waits in a folder, hashed as it comes, until it is sent.

All that is staged at a time, together, stays within `max_disk`; whoever opens a file that does not fit waits
for others to go.
"""

from __future__ import annotations

import hashlib
import threading
from abc import ABC, abstractmethod
from typing import IO

from tensorport_hub.errors import DestinationError, LimitError
from tensorport_hub.ports import Receipt


class Staging:
    """The bytes that may be staged at a time.

    Args:
        otherwise: what the user may do where a file can never fit.
    """

    def __init__(self, *, max_disk: int, otherwise: str) -> None:
        self._max_disk, self._used, self._otherwise = max_disk, 0, otherwise
        self._changed = threading.Condition()

    def reserve(self, path: str, size: int) -> None:
        """Wait until `size` bytes of staging are free.

        Raises:
            LimitError: they never will be.
        """
        if size > self._max_disk:
            raise LimitError(
                f"`{path}` does not fit the staging space: expected at most {self._max_disk} bytes,"
                f" got {size}",
                hint=self._otherwise,
            )
        with self._changed:
            self._changed.wait_for(lambda: self._used + size <= self._max_disk)
            self._used += size

    def release(self, size: int) -> None:
        """So many bytes are gone."""
        with self._changed:
            self._used -= size
            self._changed.notify_all()


class Spool(ABC):
    """One file: written to `file`, hashed on the way, sent when finished. What sends it subclasses."""

    def __init__(self, staging: Staging, path: str, size: int, file: IO[bytes]) -> None:
        self._staging, self._path, self._size, self._file = staging, path, size, file
        self._sha256 = hashlib.sha256()
        self._written = 0
        self._open = True

    def write(self, block: memoryview) -> None:
        try:
            done = 0
            while done < block.nbytes:
                done += self._file.write(block[done:])
        except OSError as error:
            raise LimitError(
                f"staging `{self._path}` failed: {error.strerror}", hint="free disk space"
            ) from None
        self._sha256.update(block)
        self._written += block.nbytes

    def finish(self) -> Receipt:
        if self._written != self._size:
            raise DestinationError(
                f"`{self._path}` has the wrong length: expected {self._size} bytes, got {self._written}"
            )
        receipt = Receipt(self._path, self._size, self._sha256.hexdigest())
        self.send(receipt)
        self.abort()
        return receipt

    @abstractmethod
    def send(self, receipt: Receipt) -> None:
        """Bring the file to where it goes.

        Raises:
            DestinationError: it can't be brought there.
        """

    def abort(self) -> None:
        if self._open:
            self._open = False
            self._file.close()
            self._staging.release(self._size)
