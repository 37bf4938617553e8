"""The command line: argv to `api`, events to a display, errors to exit codes.

The only place that prints. Results go to stdout, everything else to stderr. Modules that cost time (the Hub's
client, numpy) are imported by the command that needs them, so that `--help` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, NoReturn

import click

from tensorport_hub import __version__, interrupt
from tensorport_hub.cli import ending, local, many, options, streams
from tensorport_hub.errors import TensorportError, UseError, VerificationError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def cli() -> None:
    """Mirror a Hugging Face checkpoint as plain arrays: remote, decoded, published."""


@cli.command()
@click.argument("src", required=False)
@click.argument("dst", required=False)
@many.from_file_option
@options.source
@options.content
@options.read
@options.limit
@options.hub
@options.cluster
@options.restart
@click.option("--commit-message", metavar="TEXT", help="Message of the commit.")
@options.report
@options.token
@options.output
def mirror(src: str | None, dst: str | None, from_file: str | None, **given: Any) -> None:
    """Read SRC range by range, decode it, publish it as DST.

    SRC is org/model, org/model@revision, hf://org/model@revision/subfolder or a folder. DST is org/name
    on the Hub (default: YOU/model-npy), a folder such as ./out, or a git remote with LFS:
    git+https://host/repo.git, git@host:repo.git, git+file:///path/repo.git.
    """
    if from_file is not None:
        many.mirror(from_file, src, given, _display)
    elif src is not None:
        _mirror(src, dst, given)
    else:
        raise UseError("argument `SRC` is missing", hint="a model, a folder, or `--from-file FILE`")


@cli.command()
@click.option("--input", "src", required=True, metavar="PATH|ID", help="A folder, or org/model.")
@click.option("--output", "dst", required=True, metavar="DIR", help="The folder to make.")
@options.source
@options.content
@options.read
@options.limit
@options.restart
@options.report
@options.token
@options.output
def convert(src: str, dst: str, **given: Any) -> None:
    """Decode a model into a local folder."""
    from tensorport_hub.edge.local import parse_folder

    _mirror(src, str(parse_folder(dst)), given)


def _mirror(src: str, dst: str | None, given: dict[str, Any]) -> None:
    as_json, quiet = given.pop("as_json"), bool(given["quiet"])
    from tensorport_hub import api
    from tensorport_hub.cli import actions
    from tensorport_hub.cli import show as shown

    with _display(given) as show:
        result = api.mirror(src, dst, on_event=show, **given)
    actions.step_results(result)
    if as_json:
        shown.as_json(shown.mirror_json(result))
    elif not quiet:
        click.echo(shown.mirror_text(result))


@cli.command()
@click.argument("src")
@click.argument("dst", required=False)
@options.source
@options.content
@options.read
@options.limit
@options.hub
@options.cluster
@click.option("--rate", metavar="SIZE", help="Bytes a second to expect, for a forecast of the time.")
@click.option("--probe", is_flag=True, help="Measure that rate: read some blocks, 64 MB at most.")
@click.option("--strict", is_flag=True, help="Warnings and recommended limits are errors (exit 7).")
@options.token
@options.output
def plan(src: str, dst: str | None, **given: Any) -> None:
    """Say what `mirror` would do; read no weights, write nothing.

    It exits with 0 where a run could begin, else with the code that the run would have ended with. What an
    interrupted run left is not counted: `mirror` continues it.
    """
    as_json = given.pop("as_json")
    from tensorport_hub import api
    from tensorport_hub.cli import show as shown

    with _display(given) as show:
        result = api.plan(src, dst, on_event=show, **given)
    if as_json:
        shown.as_json(shown.plan_json(result))
    else:
        click.echo(shown.plan_text(result))


@cli.command()
@click.argument("src")
@options.source
@click.option("--all", "every", is_flag=True, help="List every tensor.")
@options.report
@options.token
@options.output
def inspect(src: str, every: bool, **given: Any) -> None:
    """Show tensors, dtypes, schemes and true parameter counts of SRC, from headers alone."""
    as_json = given.pop("as_json")
    from tensorport_hub import api
    from tensorport_hub.cli import show as shown

    with _display(given) as show:
        result = api.inspect(src, on_event=show, **given)
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
@options.token
@options.output
def verify(dst: str, **given: Any) -> None:
    """Prove that DST (org/name, a folder, a git remote or clone) is what its manifest says.

    Without `--deep` or `--against-source` no weights are downloaded: sizes and digests are those that the
    Hub states itself.
    """
    as_json = given.pop("as_json")
    from tensorport_hub import api
    from tensorport_hub.cli import show as shown

    with _display(given) as show:
        result = api.verify(dst, on_event=show, **given)
    if as_json:
        from dataclasses import asdict

        shown.as_json({**asdict(result), "ok": result.ok})
    else:
        click.echo(shown.verification_text(result))
    if not result.ok:
        raise click.exceptions.Exit(VerificationError.exit_code)


cli.add_command(local.devhub)
cli.add_command(local.demo)


def _display(given: dict[str, Any]) -> Any:
    """Take the output options out of `given`; the display that they ask for.

    What costs time is loaded by then: from here on an interrupt unwinds.
    """
    quiet, verbose = given.pop("quiet"), given.pop("verbose")
    no_progress = given.pop("no_progress")
    if verbose:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    elif given.get("cluster"):
        from tensorport_hub.cluster.dask import hush

        hush()
    from tensorport_hub.cli.progress import display

    shown = display(quiet=quiet, no_progress=no_progress)
    interrupt.unwind()
    return shown


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the program and exit with its code."""
    words = sys.argv[1:] if argv is None else argv
    with streams.standing() as out:
        code = _run(words)
        out.flush()
        if code == 0 and out.error is not None:
            code = ending.unsaid(out.error)
    sys.exit(code)


def _run(words: list[str]) -> int:
    """Carry out the command; its exit code."""
    try:
        ended = cli.main(words, prog_name=interrupt.program(), standalone_mode=False)
        return ended if isinstance(ended, int) else 0
    except click.ClickException as error:
        if words:
            ending.tell(ending.use_error(error), words)
        else:
            error.show()  # the page of help
        return error.exit_code
    except TensorportError as error:
        ending.tell(error, words)
        return error.exit_code
    except click.Abort as error:  # how click passes an interrupt on
        interrupt.say(words)
        code = 143 if isinstance(error.__cause__, interrupt.Terminated) else 130
        os._exit(code)  # threads may still wait for a silent server
