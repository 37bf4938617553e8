"""What GitHub Actions is told: a Markdown summary of the run, and a step's outputs.

Both are files that the runner names in `GITHUB_STEP_SUMMARY` and `GITHUB_OUTPUT`, read when the step is over;
without the variables nothing is written, and where they can't be written, a warning says so: that is no
failure of the run. A value of an output stands between two lines of a random word, so that no value can end
itself and begin another output.
"""

from __future__ import annotations

import os
import secrets

import click

from tensorport_hub.cli.show import manifest_place, rounding
from tensorport_hub.core.size import format_size
from tensorport_hub.errors import TensorportError
from tensorport_hub.results import MirrorResult


def step_results(result: MirrorResult) -> None:
    """The summary and the outputs of a mirror that was made."""
    append("GITHUB_STEP_SUMMARY", _summary(result))
    outputs = {
        "commit-url": result.commit_url or "",
        "pr-url": result.pr_url or "",
        "manifest": manifest_place(result),
        "changed": "true" if result.changed else "false",
    }
    append("GITHUB_OUTPUT", "".join(_output(name, value) for name, value in outputs.items()))


def step_failure(error: TensorportError) -> None:
    """The summary of a run that an error ended."""
    said = [f"error: {error.message}", *([f"hint: {error.hint}"] if error.hint else [])]
    quoted = "".join(f"    {line}\n" for text in said for line in text.splitlines())
    append("GITHUB_STEP_SUMMARY", f"### Not done: nothing was published\n\n{quoted}\n")


def _summary(result: MirrorResult) -> str:
    stats, totals = result.stats, result.manifest["totals"]
    page = result.pr_url or result.commit_url
    where = f"[{result.destination}]({page})" if page else f"`{result.destination}`"
    state = (
        "Unchanged:" if not result.changed else "Offered as a pull request:" if result.pr_url else "Mirrored:"
    )
    source = result.manifest["source"]
    name = f"`{source['repo']}`" if source["repo"] else "a folder"
    lines = [
        f"### {state} {where}",
        "",
        "| tensors | parameters | files | mirror | read | verified | seconds |",
        "|--:|--:|--:|--:|--:|--:|--:|",
        f"| {stats.tensors:,} | {stats.parameters:,} | {stats.parts:,} | {format_size(totals['bytes'])}"
        f" | {format_size(stats.bytes_read)} | {_proven(source['files'])} | {stats.seconds:.0f} |",
        "",
        f"Made from {name} at `{source['revision'][:12]}`; everything is in"
        + (f" [manifest.json]({manifest_place(result)})." if page else f" `{manifest_place(result)}`."),
    ]
    if result.losses:
        lines.append(f"{rounding(result).capitalize()}; per tensor in the manifest.")
    if result.warnings:
        lines += ["", f"<details><summary>{len(result.warnings)} warnings</summary>", ""]
        lines += [f"    {line}" for warning in result.warnings for line in warning.splitlines()]
        lines += ["", "</details>"]
    return "\n".join(lines) + "\n\n"


def _proven(files: list[dict[str, str]]) -> str:
    whole = sum(file["verified"] == "whole" for file in files)
    return f"{whole} of {len(files)} source files whole"


def _output(name: str, value: str) -> str:
    word = f"end-{secrets.token_hex(16)}"
    return f"{name}<<{word}\n{value}\n{word}\n"


def append(variable: str, text: str) -> None:
    """Add a text to the file that an environment variable names, if there is one."""
    path = os.environ.get(variable)
    if not path:
        return
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        click.echo(
            f"warning: `{variable}` names `{path}`, which can't be written: {error.strerror}", err=True
        )
