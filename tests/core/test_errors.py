"""The error tree: whose fault, which exit code, and words as they are printed."""

from __future__ import annotations

import pytest

from tensorport_hub import TensorportError as exported
from tensorport_hub.errors import (
    CheckpointError,
    DestinationError,
    LimitError,
    SourceError,
    TensorportError,
    UseError,
    VerificationError,
    gather,
)

CODES = {
    UseError: 2,
    CheckpointError: 3,
    SourceError: 4,
    DestinationError: 5,
    VerificationError: 6,
    LimitError: 7,
}


@pytest.mark.parametrize("kind", CODES, ids=lambda kind: kind.__name__)
def test_each_class_has_its_exit_code_and_keeps_its_words(kind):
    """A class per whose fault it is: documented exit code, text as given, hint apart from it."""
    error = kind("`x`: expected 1, got 2", hint="try 1", transient=True, retry_after=2.5)
    assert isinstance(error, TensorportError)
    assert error.exit_code == CODES[kind]
    assert str(error) == error.message == "`x`: expected 1, got 2"
    assert (error.hint, error.transient, error.retry_after) == ("try 1", True, 2.5)


def test_errors_are_final_and_without_hint_unless_told():
    """By default nothing says that trying again may help."""
    error = SourceError("gone")
    assert (error.hint, error.transient, error.retry_after) == ("", False, None)


def test_the_base_is_exported():
    """`tensorport_hub.TensorportError` catches them all."""
    assert exported is TensorportError


def test_codes_are_those_of_the_specification():
    """No two classes share an exit code, and 1 is only the base's."""
    assert set(TensorportError.__subclasses__()) >= set(CODES)
    assert len({kind.exit_code for kind in TensorportError.__subclasses__()}) == len(
        TensorportError.__subclasses__()
    )
    assert TensorportError("").exit_code == 1


def test_one_problem_is_told_as_it_is():
    """A single problem needs no list."""
    error = gather(LimitError, ["row of `x` is too large"], hint="raise it")
    assert type(error) is LimitError
    assert (error.message, error.hint) == ("row of `x` is too large", "raise it")


def test_all_problems_are_told():
    """Several problems are counted and listed, a line each."""
    error = gather(CheckpointError, ["one", "two", "three"])
    assert type(error) is CheckpointError
    assert error.message == "3 problems:\n  - one\n  - two\n  - three"


def test_a_flood_of_problems_is_cut_and_counted():
    """Beyond `most` they are only counted."""
    error = gather(CheckpointError, [f"p{i}" for i in range(1000)], most=3)
    assert error.message == "1000 problems:\n  - p0\n  - p1\n  - p2\n  - and 997 more"
    assert gather(CheckpointError, ["a"] * 20).message.count("\n  - ") == 20
    assert gather(CheckpointError, ["a"] * 21).message.endswith("- and 1 more")


def test_control_characters_are_shown_not_sent():
    """A message never moves the reader's cursor, whatever a file or server put into it; lines stay."""
    error = CheckpointError("`a\x1b[2Jb`\0 and `\u202ec`\nnext", hint="x\r")
    assert error.message == "`a\\x1b[2Jb`\\x00 and `\\u202ec`\nnext"
    assert error.hint == "x\\r"
