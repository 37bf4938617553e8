"""The commands that serve a Hub on this machine: `devhub`, what it is given, and `demo`.

The devhub is a house of its own and says what is wrong in Python's exceptions; `_in_words` makes them the
program's: names and folders that were typed are wrong use, a root or a port that can't be had is a
destination that refuses.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from tensorport_hub import interrupt
from tensorport_hub.cli.options import Words
from tensorport_hub.errors import DestinationError, UseError

_ROOT = "~/.tensorport-devhub"
_PORT = click.IntRange(0, 65535)


def _devhub() -> Any:
    try:
        from tensorport_hub import devhub
    except ImportError as error:
        raise UseError(
            f"the devhub needs the package `{error.name}`",
            hint="`pip install '.[devhub]'` in a clone of tensorport-hub",
        ) from error
    return devhub


@contextmanager
def _in_words(root: Path, hint: str = "") -> Iterator[None]:
    """Errors of the devhub as the program's own; `hint` is for what was typed wrong."""
    import sqlite3

    in_use = _devhub().RootInUse
    try:
        yield
    except in_use as error:
        raise DestinationError(
            str(error), hint="stop that one, or choose another `--root`; `devhub add` works beside it"
        ) from error
    except ValueError as error:
        raise UseError(str(error), hint=hint) from error
    except sqlite3.Error as error:
        raise DestinationError(
            f"`{root}` can't be a devhub's folder: {error}", hint="choose another `--root`"
        ) from error
    except OSError as error:
        words = error.strerror or str(error)
        if error.filename is None:
            raise DestinationError(
                words, hint="choose another `--port` or `--cdn-port`; 0 picks a free one"
            ) from error
        path = Path(error.filename)
        if path == root or root in path.parents or path in root.parents:
            raise DestinationError(
                f"`{root}` can't be a devhub's folder: `{path}`: {words}", hint="choose another `--root`"
            ) from error
        raise UseError(
            f"`{path}` can't be read: {words}", hint="make it readable, or take it out of the folder"
        ) from error


@click.group(invoke_without_command=True)
@click.option("--root", metavar="DIR", default=_ROOT, show_default=True, help="Where it keeps everything.")
@click.option("--port", type=_PORT, default=7860, show_default=True, help="Port of the Hub; 0 picks one.")
@click.option("--cdn-port", type=_PORT, default=0, help="Port of the storage origin; 0 picks one.")
@click.option(
    "--xet",
    type=Words(["http", "local", "off"]),
    default="http",
    show_default=True,
    help="How Xet storage is offered.",
)
@click.option(
    "--demo", "seeded", is_flag=True, help="Put the tiny gpt-oss of `demo` into it: openai-demo/gpt-oss-tiny."
)
@click.pass_context
def devhub(context: click.Context, root: str, port: int, cdn_port: int, xet: str, seeded: bool) -> None:
    """A small Hub on loopback, for trying, bots and CI.

    Its token is that of the user `me`, who may write to me/NAME and read all that is public: `devhub add`
    puts models into it, `devhub token` makes other tokens.
    """
    folder = Path(os.path.expanduser(root)).absolute()
    context.obj = folder
    if context.invoked_subcommand is not None:
        return
    hub_class = _devhub().DevHub
    interrupt.unwind()
    with _in_words(folder):
        hub = hub_class(folder, port=port, cdn_port=cdn_port, xet=xet).start()
    try:
        if seeded:
            from tensorport_hub.demo import seed

            click.echo(f"it holds {seed(hub)}", err=True)
        click.echo(f"Hub at {hub.endpoint}, storage at {hub.cdn}, files in {folder}", err=True)
        click.echo(f"export HF_ENDPOINT={hub.endpoint} HF_TOKEN={hub.token}")
        click.echo("Ctrl-C stops it", err=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
    finally:
        hub.stop()


def _chosen(default: Path, root: str | None) -> Path:
    """The folder that a command's own `--root` names, else that of `devhub --root`."""
    return Path(os.path.expanduser(root)).absolute() if root else default


_root_option = click.option("--root", metavar="DIR", help="The devhub's folder.")


@devhub.command("add")
@click.argument("repo_id", metavar="ORG/NAME")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@_root_option
@click.option("--private", is_flag=True, help="Seen by members of ORG alone.")
@click.option("--gated", is_flag=True, help="Read by members of ORG, and by who was let in, alone.")
@click.pass_obj
def add(default: Path, repo_id: str, folder: Path, root: str | None, private: bool, gated: bool) -> None:
    """Put FOLDER into the devhub as the model ORG/NAME; a running devhub shows it at once.

    The token that `devhub` prints reads what is private or gated under me/. For another ORG make its user a
    member, by `devhub token me --org ORG`, or use the token of another one: `devhub token NAME --org ORG`.
    """
    target = _chosen(default, root)
    with _in_words(target, "names of models and files are as on the Hub: ORG/NAME, for instance me/small"):
        commit = _devhub().add(target, repo_id, folder.absolute(), private=private, gated=gated)
    click.echo(f"{repo_id} is at {commit}")


@devhub.command("token")
@click.argument("user", metavar="USER")
@click.option("--org", "orgs", metavar="ORG", multiple=True, help="USER is a member, and may write.")
@click.option("--gated", metavar="ORG/NAME", multiple=True, help="USER may read this gated model.")
@_root_option
@click.pass_obj
def token(default: Path, user: str, orgs: tuple[str, ...], gated: tuple[str, ...], root: str | None) -> None:
    """Print a new token of USER, who is made where there is none; what USER may do, all their tokens may.

    The token that `devhub` prints is one of the user `me`.
    """
    target = _chosen(default, root)
    with _in_words(target, "choose another name"):
        click.echo(_devhub().let_in(target, user, orgs, gated))


@devhub.command("webhook")
@click.argument("url", metavar="URL")
@click.option(
    "--watch", metavar="NAME", multiple=True, required=True, help="A model org/name, or all of org."
)
@_root_option
@click.option("--secret", envvar="WEBHOOK_SECRET", hidden=True)
@click.pass_obj
def webhook(default: Path, url: str, watch: tuple[str, ...], root: str | None, secret: str | None) -> None:
    """Have URL, on this machine, told of pushes, with the secret in WEBHOOK_SECRET where there is one."""
    target = _chosen(default, root)
    with _in_words(target):
        made = _devhub().watch(target, url, watch, secret)
    click.echo(f"webhook {made} tells {url} of {', '.join(watch)}")


@click.command()
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep what came out in DIR, which is empty.",
)
@click.option("--no-progress", is_flag=True, help="No live bar.")
def demo(keep: Path | None, no_progress: bool) -> None:
    """Start a Hub of your own, mirror a tiny gpt-oss on it, check and show what came out."""
    _devhub()
    from tensorport_hub import demo as program
    from tensorport_hub.cli.progress import display

    interrupt.unwind()
    with display(quiet=False, no_progress=no_progress) as show:
        program.run(tell=click.echo, on_event=show, keep=keep)
