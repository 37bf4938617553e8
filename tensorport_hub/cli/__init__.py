"""The command line: argv to `api`, events to a display, errors to exit codes.

The only place that prints. Results go to stdout, everything else to stderr. Modules that cost time (the Hub's
client, numpy) are imported by the command that needs them, so that `--help` answers at once.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click

from tensorport_hub import __version__
from tensorport_hub.cli import local, many
from tensorport_hub.errors import TensorportError, VerificationError

F = TypeVar("F", bound=Callable[..., Any])


class _Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def _group(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, shown in this order."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_source_options = _group(
    click.option("--revision", metavar="REV", help="Source branch, tag or commit (main)."),
    click.option("--subfolder", metavar="DIR", help="Folder of the source that holds the model."),
    click.option(
        "--allow-patterns", metavar="GLOB", multiple=True, help="Files that are the model; may be repeated."
    ),
    click.option("--include", metavar="GLOB", multiple=True, help="Only these tensors; may be repeated."),
    click.option("--exclude", metavar="GLOB", multiple=True, help="Not these tensors; may be repeated."),
)
_content_options = _group(
    click.option(
        "--precision",
        type=click.Choice(["keep", "bfloat16", "float16", "float32"]),
        default="keep",
        show_default=True,
        help="What floats are rounded to, once.",
    ),
    click.option(
        "--quantized",
        type=click.Choice(["decode", "keep"]),
        default="decode",
        show_default=True,
        help="Decode packed weights, or copy them as they are stored.",
    ),
    click.option(
        "--on-overflow",
        type=click.Choice(["error", "inf", "saturate"]),
        default="error",
        show_default=True,
        help="A finite value that the precision can't hold.",
    ),
    click.option(
        "--on-underflow",
        type=click.Choice(["report", "error"]),
        default="report",
        show_default=True,
        help="Non-zero values that become 0.",
    ),
    click.option(
        "--shard-size", metavar="SIZE", default="1.8GB", show_default=True, help="Bytes a shard may hold."
    ),
    click.option("--allow-large-shards", is_flag=True, help="Let shards pass 2 GB."),
    click.option(
        "--verify-source",
        type=click.Choice(["auto", "whole", "no"]),
        default="auto",
        show_default=True,
        help="Check the sha256 of whole source files.",
    ),
)
_limit_options = _group(
    click.option("--workers", type=int, metavar="N", help="Parts in flight (number of processors)."),
    click.option(
        "--max-memory", metavar="SIZE", default="1GB", show_default=True, help="Cap on peak memory."
    ),
    click.option("--max-disk", metavar="SIZE", help="Cap on staging bytes (two shards)."),
)
_hub_options = _group(
    click.option(
        "--transfer",
        type=click.Choice(["auto", "xet", "lfs"]),
        default="auto",
        show_default=True,
        help="How the Hub gets the bytes.",
    ),
    click.option(
        "--private/--public", default=None, help="Visibility of a new repository (as the source's)."
    ),
    click.option("--i-have-rights", is_flag=True, help="A gated or private source may be published openly."),
    click.option(
        "--checkpoint-every",
        metavar="SIZE",
        default="20GB",
        show_default=True,
        help="How much a crash may cost.",
    ),
    click.option("--pr", "create_pr", is_flag=True, help="Leave an open pull request."),
    click.option("--branch", metavar="B", help="Publish on this branch (main)."),
)
_restart_option = click.option(
    "--restart/--resume", default=False, help="Begin anew, or continue an interrupted run (--resume)."
)
_token_option = click.option("--token", metavar="T", help="Hub token (HF_TOKEN, or `hf auth login`).")
_output_options = _group(
    click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout at the end."),
    click.option("-q", "--quiet", is_flag=True, help="Errors and warnings only."),
    click.option("-v", "--verbose", is_flag=True, help="Logs, and tracebacks of errors."),
    click.option("--no-progress", is_flag=True, help="No live bar."),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="tensorport-hub")
def cli() -> None:
    """Mirror a Hugging Face checkpoint as plain arrays: remote, decoded, published."""


@cli.command()
@click.argument("src", required=False)
@click.argument("dst", required=False)
@many.from_file_option
@_source_options
@_content_options
@_limit_options
@_hub_options
@_restart_option
@click.option("--commit-message", metavar="TEXT", help="Message of the commit.")
@_token_option
@_output_options
def mirror(src: str | None, dst: str | None, from_file: str | None, **options: Any) -> None:
    """Read SRC range by range, decode it, publish it as DST.

    SRC is org/model, org/model@revision, hf://org/model@revision/subfolder or a folder. DST is org/name
    on the Hub (default: YOU/model-npy) or a folder such as ./out.
    """
    if from_file is not None:
        many.mirror(from_file, src, options, _display)
    elif src is not None:
        _mirror(src, dst, options)
    else:
        raise click.UsageError("Missing argument 'SRC' (or --from-file FILE)")


@cli.command()
@click.option("--input", "src", required=True, metavar="PATH|ID", help="A folder, or org/model.")
@click.option("--output", "dst", required=True, metavar="DIR", help="The folder to make.")
@_source_options
@_content_options
@_limit_options
@_restart_option
@_token_option
@_output_options
def convert(src: str, dst: str, **options: Any) -> None:
    """Decode a model into a local folder."""
    from tensorport_hub.edge.local import parse_folder

    _mirror(src, str(parse_folder(dst)), options)


def _mirror(src: str, dst: str | None, options: dict[str, Any]) -> None:
    as_json, quiet = options.pop("as_json"), bool(options["quiet"])
    with _display(options) as show:
        from tensorport_hub import api
        from tensorport_hub.cli import show as shown

        result = api.mirror(src, dst, on_event=show, **options)
    shown.step_summary(result)
    if as_json:
        shown.as_json(shown.mirror_json(result))
    elif not quiet:
        click.echo(shown.mirror_text(result))


@cli.command()
@click.argument("src")
@click.argument("dst", required=False)
@_source_options
@_content_options
@_limit_options
@_hub_options
@_token_option
@_output_options
def plan(src: str, dst: str | None, **options: Any) -> None:
    """Say what `mirror` would do; read no weights, write nothing."""
    as_json = options.pop("as_json")
    with _display(options) as show:
        from tensorport_hub import api
        from tensorport_hub.cli import show as shown

        result = api.plan(src, dst, on_event=show, **options)
    if as_json:
        shown.as_json(shown.plan_json(result))
    else:
        click.echo(shown.plan_text(result))


@cli.command()
@click.argument("src")
@_source_options
@click.option("--all", "every", is_flag=True, help="List every tensor.")
@_token_option
@_output_options
def inspect(src: str, every: bool, **options: Any) -> None:
    """Show tensors, dtypes, schemes and true parameter counts of SRC, from headers alone."""
    as_json = options.pop("as_json")
    with _display(options) as show:
        from tensorport_hub import api
        from tensorport_hub.cli import show as shown

        result = api.inspect(src, on_event=show, **options)
    if as_json:
        from dataclasses import asdict

        shown.as_json(asdict(result))
    else:
        click.echo(shown.inspection_text(result, every=every))


@cli.command()
@click.argument("dst")
@click.option("--revision", metavar="REV", help="Branch, tag, commit or refs/pr/N of the mirror (main).")
@click.option("--deep", is_flag=True, help="Read every byte.")
@click.option("--against-source", is_flag=True, help="Compare with the source, and make tensors again.")
@click.option("--source", metavar="SRC", help="Where the source is now (as the manifest says).")
@click.option("--sample", type=int, metavar="N", help="Make so many tensors again, drawn at random (all).")
@click.option("--seed", type=int, metavar="N", help="Of the draw (a new one, which is printed).")
@click.option("--workers", type=int, metavar="N", help="Parts in flight (number of processors).")
@click.option("--max-memory", metavar="SIZE", default="1GB", show_default=True, help="Cap on peak memory.")
@_token_option
@_output_options
def verify(dst: str, **options: Any) -> None:
    """Prove that DST (org/name, a folder, a git clone) is what its manifest says.

    Without options nothing of it is downloaded: sizes and digests are those that the Hub states itself.
    """
    as_json = options.pop("as_json")
    with _display(options) as show:
        from tensorport_hub import api
        from tensorport_hub.cli import show as shown

        result = api.verify(dst, on_event=show, **options)
    if as_json:
        from dataclasses import asdict

        shown.as_json({**asdict(result), "ok": result.ok})
    else:
        click.echo(shown.verification_text(result))
    if not result.ok:
        raise click.exceptions.Exit(VerificationError.exit_code)


cli.add_command(local.devhub)
cli.add_command(local.demo)


def _display(options: dict[str, Any]) -> Any:
    """Take the output options out of `options`; the display that they ask for."""
    quiet, verbose = options.pop("quiet"), options.pop("verbose")
    no_progress = options.pop("no_progress")
    if verbose:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    from tensorport_hub.cli.progress import display

    return display(quiet=quiet, no_progress=no_progress)


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the program and exit with its code."""
    words = sys.argv[1:] if argv is None else argv
    signal.signal(signal.SIGTERM, _terminate)
    try:
        ended = cli.main(words, prog_name="tensorport-hub", standalone_mode=False)
        code = ended if isinstance(ended, int) else 0
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except TensorportError as error:
        code = error.exit_code
        _tell(error, words)
    except click.Abort as error:  # how click passes an interrupt on
        code = 143 if isinstance(error.__cause__, _Terminated) else 130
        click.echo("interrupted: readers see nothing of it", err=True)
        if words[0] in ("mirror", "convert"):
            click.echo(f"hint: `{_again(words)}` continues", err=True)
        sys.stderr.flush()
        os._exit(code)  # threads may still wait for a silent server
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the interpreter's own flush)
        code = 141
    sys.stdout.flush()
    sys.exit(code)


def _again(words: Sequence[str]) -> str:
    """The command that continues an interrupted one; without the token, which belongs on no screen."""
    kept: list[str] = []
    hidden = False
    for word in words:
        if not hidden and word != "--restart" and not word.startswith("--token="):
            kept += [] if word == "--token" else [word]
        hidden = word == "--token"
    return shlex.join(["tensorport-hub", *kept])


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise _Terminated


def _tell(error: TensorportError, words: list[str]) -> None:
    """An error for people on stderr; for programs also on stdout."""
    if "-v" in words or "--verbose" in words:
        traceback.print_exception(error)
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)
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
