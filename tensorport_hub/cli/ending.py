"""How the program ends when it does not end well: what people and programs are told, and how to go on."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Sequence

import click

from tensorport_hub.errors import DestinationError, TensorportError, UseError


def use_error(error: click.ClickException) -> UseError:
    """What click says of the command line, in our words."""
    near = getattr(error, "possibilities", None)
    said = error.message if near else error.format_message()
    said = re.sub(r"'([^']*)'", r"`\1`", said.rstrip("."))
    context = getattr(error, "ctx", None)
    usage = f"`{context.command_path} --help` says what is expected" if context is not None else ""
    return UseError(said[:1].lower() + said[1:], hint=f"did you mean `{near[0]}`?" if near else usage)


def unsaid(error: OSError) -> int:
    """The exit code where stdout did not take the result of what was done."""
    if error.errno == errno.EPIPE:
        return 141  # as of every program whose reader leaves the pipe: 128 and SIGPIPE
    refused = DestinationError(
        f"stdout can't be written: {error.strerror}",
        hint="what was to be done is done: only its result is lost",
    )
    tell(refused, ())
    return refused.exit_code


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
        from tensorport_hub.cli.show import as_json, error_json

        as_json(error_json(error))
