"""Buffers that several readers share and that go back to their pool when the last one is done."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np

from tensorport_hub.core.decode.decoder import Bytes


class Stopped(Exception):
    """The run was stopped while waiting; never leaves the engine."""


class StopFlag:
    """Set once, by whoever fails first; everything that waits in the engine looks at it."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self.error: BaseException | None = None

    def __bool__(self) -> bool:
        return self._event.is_set()

    def fail(self, error: BaseException) -> None:
        """Stop the run because of `error`; the first one is kept."""
        with self._lock:
            if self.error is None and not isinstance(error, Stopped):
                self.error = error
        self._event.set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but not past a stop; True where it was one."""
        return self._event.wait(seconds)


class SharedBlock:
    """A filled buffer. `hold` before handing it on, `release` when done; the last release recycles it."""

    def __init__(self, pool: BlockPool, buffer: Bytes, nbytes: int) -> None:
        self._pool, self._buffer = pool, buffer
        self._holders = 1
        self._lock = threading.Lock()
        self.data = buffer[:nbytes]

    def hold(self) -> SharedBlock:
        with self._lock:
            self._holders += 1
        return self

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders:
                return
        self._pool.give(self._buffer)


class BlockPool:
    """At most `count` buffers, each made when first needed; `take` waits for one."""

    def __init__(self, count: int, size: int, stop: StopFlag) -> None:
        self._free: deque[Bytes] = deque()
        self._unmade, self._size, self._stop = count, size, stop
        self._changed = threading.Condition()

    def take(self, nbytes: int) -> SharedBlock:
        """A buffer for `nbytes` (larger than the usual size where one grain is).

        Raises:
            Stopped: the run stopped meanwhile.
        """
        with self._changed:
            while not self._free and not self._unmade:
                if self._stop:
                    raise Stopped
                self._changed.wait(0.2)
            if self._free:
                buffer = self._free.popleft()
            else:
                self._unmade -= 1
                buffer = np.empty(self._size, np.uint8)
        if buffer.size < nbytes:
            buffer = np.empty(nbytes, np.uint8)
        return SharedBlock(self, buffer, nbytes)

    def give(self, buffer: Bytes) -> None:
        with self._changed:
            self._free.append(buffer)
            self._changed.notify()


class Room:
    """Bytes that held parts may hold; they take their share before they are fed or read, in order."""

    def __init__(self, nbytes: int, stop: StopFlag) -> None:
        self._free, self._stop = nbytes, stop
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    def take(self, nbytes: int) -> None:
        """Wait for so many bytes; who came first gets them first.

        Raises:
            Stopped: the run stopped meanwhile.
        """
        if not nbytes:
            return
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            while self._waiting[0] is not ticket or self._free < nbytes:
                if self._stop:
                    raise Stopped
                self._changed.wait(0.2)
            self._waiting.popleft()
            self._free -= nbytes
            self._changed.notify_all()

    def give(self, nbytes: int) -> None:
        with self._changed:
            self._free += nbytes
            self._changed.notify_all()
