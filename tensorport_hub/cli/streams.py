"""Standard streams that nobody may be there to take.

stdout and stderr may be closed when the program begins, lie on a full disk, or be a pipe whose reader leaves:
`head` when it has enough, `tee` at the Ctrl-C that comes to us as well. None of that disturbs a run, or the
code that it ends with: what can't be taken is dropped, the first error kept for the end, and the descriptor
becomes the null device's, so that nothing written later fails, or lands in what took the descriptor's place.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast


class Stream:
    """A text stream whose writes don't fail; `error` is the first one that would have."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


@contextmanager
def standing() -> Iterator[Stream]:
    """All three streams are there, and what is written never fails; gives stdout."""
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115 (for as long as the process lives)
    out, err = (Stream(stream or open(os.devnull, "w")) for stream in before[1:])  # noqa: SIM115 (the same)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdin, sys.stdout, sys.stderr = before
