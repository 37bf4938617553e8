"""How the program ends when it is interrupted: by SIGINT with 130, by SIGTERM with 143, at whatever moment.

While the program starts nothing is held, and libraries that are being imported make all sorts of errors of an
exception that comes from nowhere: there the handler itself says so and ends the process. From `unwind` on it
raises, so that what is open is closed and what is finished is kept. This module is imported before all
others, so it imports nothing that takes time.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import PurePath
from types import FrameType
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def end_at_once() -> None:
    """From now on a signal ends the process where it is."""
    _answer(_end)


def unwind() -> None:
    """From now on a signal raises: KeyboardInterrupt, or `Terminated`."""
    _answer(_raise)


def say(words: Sequence[str]) -> None:
    """What people are told, and how to go on, on stderr."""
    told = "interrupted: readers see nothing of it\n"
    if words and words[0] in ("mirror", "convert"):
        told += f"hint: `{again(words)}` continues\n"
    _write(told.encode(errors="surrogateescape"))


def program() -> str:
    """What the user typed to get here; as an extension of `hf` the program is called `hf-tensorport`."""
    return "hf tensorport" if PurePath(sys.argv[0]).stem == "hf-tensorport" else "tensorport-hub"


def again(words: Sequence[str]) -> str:
    """The command that continues an interrupted one; without the token, which belongs on no screen."""
    kept: list[str] = []
    hidden = False
    for word in words:
        if not hidden and word != "--restart" and not word.startswith("--token="):
            kept += [] if word == "--token" else [word]
        hidden = word == "--token"
    return f"{program()} {shlex.join(kept)}"


def _write(told: bytes) -> None:
    """On stderr, whose reader may be gone: a Ctrl-C ends `tee` as well."""
    with suppress(OSError):
        os.write(2, told)


def _answer(handler: Callable[[int, FrameType | None], NoReturn]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as in the background of a shell
            signal.signal(number, handler)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    if os.isatty(2):
        _write(b"\n")  # after the terminal's own `^C`
    say(sys.argv[1:])
    os._exit(128 + number)


def _raise(number: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
