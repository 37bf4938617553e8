"""The commands that serve a Hub on this machine: `devhub`, `devhub add` and `demo`."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import click

from tensorport_hub import interrupt
from tensorport_hub.cli.options import Words
from tensorport_hub.errors import UseError

_ROOT = "~/.tensorport-devhub"


def _devhub() -> Any:
    try:
        from tensorport_hub import devhub
    except ImportError as error:
        raise UseError(
            f"the devhub needs the package `{error.name}`", hint="pip install 'tensorport-hub[devhub]'"
        ) from None
    return devhub


@click.group(invoke_without_command=True)
@click.option("--root", metavar="DIR", default=_ROOT, show_default=True, help="Where it keeps everything.")
@click.option("--port", type=int, default=7860, show_default=True, help="Port of the Hub; 0 picks one.")
@click.option("--cdn-port", type=int, default=0, help="Port of the storage origin; 0 picks one.")
@click.option(
    "--xet",
    type=Words(["http", "local", "off"]),
    default="http",
    show_default=True,
    help="How Xet storage is offered.",
)
@click.pass_context
def devhub(context: click.Context, root: str, port: int, cdn_port: int, xet: str) -> None:
    """A small Hub on loopback, for trying, bots and CI."""
    folder = Path(root).expanduser()
    context.obj = folder
    if context.invoked_subcommand is not None:
        return
    hub_class = _devhub().DevHub
    interrupt.unwind()
    with hub_class(folder, port=port, cdn_port=cdn_port, xet=xet) as hub:
        click.echo(f"Hub at {hub.endpoint}, storage at {hub.cdn}, files in {folder}", err=True)
        click.echo(f"export HF_ENDPOINT={hub.endpoint} HF_TOKEN={hub.token}")
        click.echo("Ctrl-C stops it", err=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            click.echo("stopped", err=True)


@devhub.command("add")
@click.argument("repo_id", metavar="ORG/NAME")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--root", metavar="DIR", help="The devhub's folder.")
@click.option("--private", is_flag=True, help="Readable with a token of the organization only.")
@click.option("--gated", is_flag=True, help="Readable after access was granted only.")
@click.pass_obj
def add(default: Path, repo_id: str, folder: Path, root: str | None, private: bool, gated: bool) -> None:
    """Put FOLDER into the devhub as the model ORG/NAME; a running devhub shows it at once."""
    target = Path(root).expanduser() if root else default
    commit = _devhub().add(target, repo_id, folder, private=private, gated=gated)
    click.echo(f"{repo_id} is at {commit}")


@devhub.command("webhook")
@click.argument("url", metavar="URL")
@click.option(
    "--watch", metavar="NAME", multiple=True, required=True, help="A model org/name, or all of org."
)
@click.option("--root", metavar="DIR", help="The devhub's folder.")
@click.option("--secret", envvar="WEBHOOK_SECRET", hidden=True)
@click.pass_obj
def webhook(default: Path, url: str, watch: tuple[str, ...], root: str | None, secret: str | None) -> None:
    """Have URL, on this machine, told of pushes, with the secret in WEBHOOK_SECRET where there is one."""
    target = Path(root).expanduser() if root else default
    try:
        made = _devhub().watch(target, url, watch, secret)
    except ValueError as error:
        raise UseError(str(error)) from None
    click.echo(f"webhook {made} tells {url} of {', '.join(watch)}")


@click.command()
@click.option("--keep", type=click.Path(path_type=Path), metavar="DIR", help="Keep what came out in DIR.")
@click.option("--no-progress", is_flag=True, help="No live bar.")
def demo(keep: Path | None, no_progress: bool) -> None:
    """Start a Hub of your own, mirror a tiny gpt-oss on it, check and show what came out."""
    _devhub()
    from tensorport_hub import demo as program
    from tensorport_hub.cli.progress import display

    interrupt.unwind()
    with display(quiet=False, no_progress=no_progress) as show:
        program.run(tell=click.echo, on_event=show, keep=keep)
