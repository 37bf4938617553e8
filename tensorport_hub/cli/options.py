"""The options that commands share, in groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from tensorport_hub.errors import UseError

F = TypeVar("F", bound=Callable[..., Any])


def _group(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, shown in this order."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class Words(click.Choice[str]):
    """Some words, and for any other one a guess at which was meant."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in self.choices:
            return str(value)
        from tensorport_hub.core.spelling import meant

        option = param.opts[0] if param is not None else "the option"
        expected = ", ".join(f"`{word}`" for word in self.choices)
        hint = meant(value, self.choices)
        raise UseError(f"`{value}` is no value of `{option}`: expected one of {expected}", hint=hint)


source = _group(
    click.option("--revision", metavar="REV", help="Source branch, tag or commit (main)."),
    click.option("--subfolder", metavar="DIR", help="Folder of the source that holds the model."),
    click.option(
        "--allow-patterns", metavar="GLOB", multiple=True, help="Files that are the model; may be repeated."
    ),
    click.option("--include", metavar="GLOB", multiple=True, help="Only these tensors; may be repeated."),
    click.option("--exclude", metavar="GLOB", multiple=True, help="Not these tensors; may be repeated."),
)
content = _group(
    click.option(
        "--precision",
        type=Words(["keep", "bfloat16", "float16", "float32"]),
        default="keep",
        show_default=True,
        help="What floats are rounded to, once.",
    ),
    click.option(
        "--quantized",
        type=Words(["decode", "keep"]),
        default="decode",
        show_default=True,
        help="Decode packed weights, or copy them as they are stored.",
    ),
    click.option(
        "--on-overflow",
        type=Words(["error", "inf", "saturate"]),
        default="error",
        show_default=True,
        help="A finite value that the precision can't hold.",
    ),
    click.option(
        "--on-underflow",
        type=Words(["report", "error"]),
        default="report",
        show_default=True,
        help="Non-zero values that become 0.",
    ),
    click.option(
        "--format",
        type=Words(["numpy-direct", "msgpack", "jax-pickle", "safetensors"]),
        multiple=True,
        help="What comes out (numpy-direct); may be repeated: one read, a folder for each.",
    ),
    click.option(
        "--experts",
        type=Words(["source", "stacked"]),
        default="source",
        show_default=True,
        help="MoE experts as they are stored, or one array a projection, gate and up apart.",
    ),
    click.option(
        "--shard-size", metavar="SIZE", default="1.8GB", show_default=True, help="Bytes a shard may hold."
    ),
    click.option("--allow-large-shards", is_flag=True, help="Let shards pass 2 GB."),
    click.option(
        "--verify-source",
        type=Words(["auto", "whole", "no"]),
        default="auto",
        show_default=True,
        help="Check the sha256 of whole source files.",
    ),
)
limit = _group(
    click.option(
        "--workers", type=int, metavar="N", help="Parts in flight (one a processor, by Xet one more)."
    ),
    click.option(
        "--max-memory", metavar="SIZE", default="1GB", show_default=True, help="Cap on peak memory."
    ),
    click.option("--max-disk", metavar="SIZE", help="Cap on staging bytes (two shards)."),
)
hub = _group(
    click.option(
        "--transfer",
        type=Words(["auto", "xet", "lfs"]),
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
    click.option("--author", metavar="WHO", help="Of a git remote's commits: `Name <mail>` (git's own)."),
)
read = click.option(
    "--read",
    type=Words(["http", "xet"]),
    default="http",
    show_default=True,
    help="How the Hub's files are read: by HTTP ranges, or from Xet storage what lies there.",
)
cluster = click.option(
    "--cluster", metavar="ADDRESS", help="Dask workers do it: tcp://HOST:PORT, tls://HOST:PORT or local:N."
)
restart = click.option(
    "--restart/--resume", default=False, help="Begin anew, or continue an interrupted run (--resume)."
)
report = click.option("--report", metavar="FILE", help="Write an HTML page about it there.")
token = click.option("--token", metavar="T", help="Hub token (HF_TOKEN, or `hf auth login`).")
output = _group(
    click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout at the end."),
    click.option("-q", "--quiet", is_flag=True, help="Errors and warnings only."),
    click.option("-v", "--verbose", is_flag=True, help="Logs, and tracebacks of errors."),
    click.option("--no-progress", is_flag=True, help="No live bar."),
)
