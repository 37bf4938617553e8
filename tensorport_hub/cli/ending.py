"""How the program ends when it does not end well: what people and programs are told, and how to go on."""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import PurePath
from types import FrameType

import click

from tensorport_hub.errors import TensorportError


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def terminate(_signal: int, _frame: FrameType | None) -> None:
    """The handler of SIGTERM: it unwinds as Ctrl-C does."""
    raise Terminated


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


def tell(error: TensorportError, words: Sequence[str]) -> None:
    """An error for people on stderr; for programs also on stdout."""
    if "-v" in words or "--verbose" in words:
        traceback.print_exception(error)
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)
    if words and words[0] in ("mirror", "convert"):
        from tensorport_hub.cli.actions import step_failure

        step_failure(error)
    if "--json" in words:
        from tensorport_hub.cli.show import as_json

        as_json(
            {
                "error": type(error).__name__,
                "message": error.message,
                "hint": error.hint,
                "exit_code": error.exit_code,
            }
        )
