"""The one error tree: a class per whose fault it is, each with the exit code the command line answers.

Wording, everywhere: what, which object, expected X, got Y; literals in backticks; no full stop; what the
reader can do about it goes into `hint`, which is printed on a line of its own. A fault that may pass by
itself (a dropped connection, a busy server) carries `transient`, which is all that the retry policy asks.
"""

from __future__ import annotations

from collections.abc import Sequence


class TensorportError(Exception):
    """Base of all errors that this package raises on purpose.

    Attributes:
        hint: what the reader can do, or "".
        transient: the same call may succeed later.
        retry_after: seconds the other side asked us to wait, if it did.
        exit_code: what the command line exits with.
    """

    exit_code = 1

    def __init__(
        self, message: str, *, hint: str = "", transient: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(_printable(message))
        self.hint = _printable(hint)
        self.transient = transient
        self.retry_after = retry_after

    @property
    def message(self) -> str:
        return str(self.args[0])


def _printable(text: str) -> str:
    """What a hostile file or server put into a message can't move the reader's cursor."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


class UseError(TensorportError):
    """The call or the command line is wrong."""

    exit_code = 2


class CheckpointError(TensorportError):
    """The checkpoint is malformed, or in a scheme that is not supported."""

    exit_code = 3


class SourceError(TensorportError):
    """The source can't be reached or read: absent, gated, unauthorized, or answering wrongly."""

    exit_code = 4


class DestinationError(TensorportError):
    """The destination refuses or can't be reached."""

    exit_code = 5


class VerificationError(TensorportError):
    """Bytes are not what their digest says."""

    exit_code = 6


class LimitError(TensorportError):
    """A limit of ours: memory, disk, file count, or a value that the target precision can't hold."""

    exit_code = 7


class LossError(LimitError):
    """A value that the target precision can't hold: the same run can never succeed."""


def gather(
    kind: type[TensorportError], problems: Sequence[str], *, hint: str = "", most: int = 20
) -> TensorportError:
    """One error of `kind` that lists all `problems` (the first `most` in full), not only the first."""
    if len(problems) == 1:
        return kind(problems[0], hint=hint)
    shown = "".join(f"\n  - {problem}" for problem in problems[:most])
    rest = f"\n  - and {len(problems) - most} more" if len(problems) > most else ""
    return kind(f"{len(problems)} problems:{shown}{rest}", hint=hint)
