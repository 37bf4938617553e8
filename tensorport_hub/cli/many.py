"""`mirror --from-file`: a list of mirrors, one summary."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from tensorport_hub.core.size import format_size
from tensorport_hub.errors import UseError

if TYPE_CHECKING:
    from tensorport_hub.results import Attempt, MirrorsResult

from_file_option = click.option(
    "--from-file",
    metavar="FILE",
    help="Mirror every [[mirror]] of this TOML file, instead of SRC; - is stdin.",
)


def mirror(path: str, src: str | None, options: dict[str, Any], display: Callable[..., Any]) -> None:
    """Carry out the list; `options` count where it says nothing. Exits with the code of the first failure."""
    if src is not None:
        raise UseError("`SRC` and `--from-file` exclude each other")
    if options.pop("report", None) is not None:
        raise UseError("`--report` and `--from-file` exclude each other")
    as_json, quiet = options.pop("as_json"), bool(options["quiet"])
    from tensorport_hub import batch
    from tensorport_hub.cli import show as shown

    with display(options) as show:
        if path == "-":
            orders = batch.parse_orders(sys.stdin.read(), name="standard input")
        else:
            orders = batch.read_orders(path)
        result = batch.mirror_all(orders, on_event=show, **options)
    _step_summary(result)
    if as_json:
        mirrors = [_json(attempt) for attempt in result.attempts]
        shown.as_json({"mirrors": mirrors, "ok": result.ok, "exit_code": result.exit_code})
    elif not quiet:
        click.echo(_text(result))
    if not result.ok:
        raise click.exceptions.Exit(result.exit_code)


def _json(attempt: Attempt) -> dict[str, Any]:
    from tensorport_hub.cli import show as shown

    error = attempt.error
    told = {"source": attempt.source, "destination": attempt.destination, "error": None, "result": None}
    if attempt.result is not None:
        return {**told, "result": shown.mirror_json(attempt.result)}
    assert error is not None
    return {**told, "error": shown.error_json(error)}


def _state(attempt: Attempt) -> str:
    from tensorport_hub.cli import show as shown

    return "failed" if attempt.result is None else shown.state(attempt.result)


def _where(attempt: Attempt) -> str:
    from tensorport_hub.cli import show as shown

    return "" if attempt.result is None else shown.place(attempt.result)


def _counts(result: MirrorsResult) -> str:
    states = [_state(attempt) for attempt in result.attempts]
    told = [f"{states.count(state):,} {state}" for state in dict.fromkeys(states)]
    return f"{len(states):,} mirror{'s' * (len(states) != 1)}: {', '.join(told)}"


def _text(result: MirrorsResult) -> str:
    from tensorport_hub.cli import show as shown

    lines = []
    for attempt in result.attempts:
        lines.append(f"{_state(attempt):9} {attempt.source} -> {attempt.destination or '?'}")
        lines.append(f"{'':9} {attempt.error.message if attempt.error else _where(attempt)}")
        if attempt.result is not None and attempt.result.losses:
            lines.append(f"{'':9} {shown.rounding(attempt.result)}; per tensor in its manifest.json")
        if attempt.error is not None and attempt.error.hint:
            lines.append(f"{'':9} hint: {attempt.error.hint}")
    return "\n".join([*lines, _counts(result)])


def _step_summary(result: MirrorsResult) -> None:
    """A Markdown table for GitHub Actions."""
    from tensorport_hub.cli import actions
    from tensorport_hub.cli import show as shown

    rows = [
        "| source | destination | state | published | read | rounding | seconds |",
        "|---|---|---|--:|--:|---|--:|",
    ]
    for attempt in result.attempts:
        made, page = attempt.result, _where(attempt)
        to = f"[{attempt.destination}]({page})" if page.startswith("http") else f"`{attempt.destination}`"
        if made is not None:
            stats = made.stats
            numbers = f"{format_size(stats.bytes_published)} | {format_size(stats.bytes_read)}"
            lost = shown.rounding(made).removeprefix("rounding: ") if made.losses else ""
            told = f"{_state(attempt)} | {numbers} | {lost} | {stats.seconds:.0f}"
            rows.append(f"| {attempt.source} | {to} | {told} |")
        else:
            said = attempt.error.message if attempt.error else ""
            said = said.replace("|", "\\|").replace("\n", " ")
            rows.append(f"| {attempt.source} | {to} | **failed**: {said} | | | | |")
    actions.append("GITHUB_STEP_SUMMARY", f"### {_counts(result)}\n\n" + "\n".join(rows) + "\n")
