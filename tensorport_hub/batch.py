"""Several mirrors, one after another, in one process.

They share what their account shares anyway: the commits of an hour and the rate windows (`edge.pace`). One
that fails does not stop the others; what is wrong with the list itself is found before anything runs.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from posixpath import normpath
from typing import Any

from tensorport_hub import asked
from tensorport_hub.api import mirror
from tensorport_hub.core import orders as listing
from tensorport_hub.core.branch import branch_name
from tensorport_hub.core.location import FolderLocation, GitLocation, HubLocation, parse_destination
from tensorport_hub.core.orders import FLAG, SIZE, TEXT, TEXTS, Key, Order
from tensorport_hub.core.plan import Options
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.edge.local import parse_folder
from tensorport_hub.edge.retry import retried
from tensorport_hub.errors import TensorportError, UseError, gather
from tensorport_hub.job import default_name, refuse_same
from tensorport_hub.limits import Limits
from tensorport_hub.meter import Meter
from tensorport_hub.ports import Begun, Event, Failed, Report
from tensorport_hub.reading import model_folder, source_location
from tensorport_hub.results import Attempt, MirrorsResult

_KINDS = {
    "str": TEXT,
    "str | None": TEXT,
    "str | int": SIZE,
    "bool": FLAG,
    "bool | None": FLAG,
    "Sequence[str]": TEXTS,
    "str | Sequence[str]": TEXTS,
}
_OF_THE_PROCESS = (
    "source",
    "destination",
    "workers",
    "max_memory",
    "max_disk",
    "cluster",
    "restart",
    "report",
    "token",
    "on_event",
)
_NAMES = {"create_pr": "pr"}
_OF_THE_RUN = (
    *("workers", "max-memory", "max-disk", "cluster", "restart", "resume", "report", "token", "from-file"),
    *("json", "quiet", "verbose", "no-progress"),
)
"""Options of the command line that no table has."""


def mirror_all(
    orders: str | os.PathLike[str] | Sequence[Order],
    *,
    token: str | None = None,
    on_event: Callable[[Event], object] | None = None,
    **options: Any,
) -> MirrorsResult:
    """Carry out every order; an interrupted run is continued by the same call.

    Args:
        orders: the list, or the path of the TOML file that holds it (`core.orders` says what it may hold).
        token: as in `mirror`.
        on_event: called with the events of every run; `Begun` says of which the next ones are.
        options: keyword arguments of `mirror`, for those orders that don't say otherwise themselves; but no
            `report`, which is the page of one mirror.

    Returns:
        What became of each, in their order.

    Raises:
        UseError: the list is wrong, with all that is wrong; nothing has run.
    """
    if options.get("report") is not None:
        raise UseError("`report` is the page of one mirror: each would overwrite that of the one before it")
    report = Meter(on_event)
    listed = read_orders(orders) if isinstance(orders, str | os.PathLike) else _as_texts(orders)
    named = {f"mirror {number} (`{order.source}`)": order for number, order in enumerate(listed, 1)}
    _refuse(_problems(named, options), "the list")
    whole = _with_destinations(listed, options, token, report)
    named = dict(zip(named, whole, strict=True))
    _refuse(_doubles(named, options), "the list")
    attempts = []
    for number, order in enumerate(whole, 1):
        report(Begun(number, len(whole), order.source))
        try:
            given = {**options, **order.options}
            made = mirror(order.source, order.destination, token=token, on_event=on_event, **given)
        except TensorportError as error:
            report(Failed(order.source, error.message))
            attempts.append(Attempt(order.source, order.destination, None, error))
        else:
            attempts.append(Attempt(order.source, made.destination, made, None))
    return MirrorsResult(tuple(attempts))


def _as_texts(orders: Sequence[Order]) -> tuple[Order, ...]:
    """Orders whose places may be paths."""
    return tuple(
        replace(
            order,
            source=asked.place(order.source, "source"),
            destination=asked.perhaps_place(order.destination, "destination"),
        )
        for order in orders
    )


def read_orders(path: str | os.PathLike[str]) -> tuple[Order, ...]:
    """The list in a TOML file, checked as far as that needs no request.

    Raises:
        UseError: it can't be read, or is wrong, with all that is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UseError(f"list `{path}` can't be read: {error}") from None
    return parse_orders(text, name=str(path))


def parse_orders(text: str, *, name: str) -> tuple[Order, ...]:
    """The list that a TOML text holds; `name` is what problems call it.

    Raises:
        UseError: it is wrong, with all that is wrong.
    """
    named, problems = listing.read(text, keys(), _OF_THE_RUN)
    _refuse([*problems, *_problems(named, {})], f"list `{name}`")
    return tuple(named.values())


def keys() -> Mapping[str, Key]:
    """What a table may say beside source and destination: options of `mirror`, without the process's own."""
    found = {}
    for name, parameter in inspect.signature(mirror).parameters.items():
        if name not in _OF_THE_PROCESS:
            kind = _KINDS[parameter.annotation]  # a new one is no key before somebody says of what kind
            found[_NAMES.get(name, name.replace("_", "-"))] = Key(name, kind)
    return found


def _refuse(problems: Sequence[str], what: str) -> None:
    if problems:
        raise gather(UseError, [f"{what}: {problem}" for problem in problems])


def _problems(named: Mapping[str, Order], options: Mapping[str, Any]) -> list[str]:
    """What no run could make good."""
    found = {
        what: list(_faults(order.source, order.destination, {**options, **order.options}))
        for what, order in named.items()
    }
    sound = {what: order for what, order in named.items() if not found[what]}
    return [f"{what}: {problem}" for what in found for problem in found[what]] + _doubles(sound, options)


def _faults(source: str, destination: str | None, options: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a call of `mirror`, as far as no request is needed to say so."""
    try:
        call = inspect.signature(mirror).bind(source, destination, **options)
    except TypeError as error:
        yield str(error)
        return
    call.apply_defaults()
    given, found = call.arguments, []
    for check in (
        lambda: asked.options(given),
        lambda: asked.publication(given, Options()),
        lambda: asked.by_xet(given["read"]),
        lambda: asked.perhaps_place(given["report"], "report"),
        lambda: Limits.of(given["workers"], given["max_memory"]),
        lambda: model_folder(source_location(source, None), asked.options(given).subfolder),
        lambda: refuse_same(
            source_location(source, given["revision"]),
            None if destination is None else parse_destination(destination),
        ),
    ):
        try:
            check()
        except UseError as error:
            found.append(error.message + (f" ({error.hint})" if error.hint else ""))
    yield from dict.fromkeys(found)


def _with_destinations(
    orders: Sequence[Order], options: Mapping[str, Any], token: str | None, report: Report
) -> Sequence[Order]:
    """The orders with the destinations that they have by default; as they are, where no account is known."""
    if all(order.destination is not None for order in orders):
        return orders
    try:
        me = retried(HubClient(token=token).whoami, report)
    except TensorportError:
        return orders  # each one's own run will say why
    names = [_name(order, {**options, **order.options}) for order in orders]
    return [
        replace(order, destination=order.destination or default_name(me, name))
        for order, name in zip(orders, names, strict=True)
    ]


def _name(order: Order, options: Mapping[str, Any]) -> str:
    location = source_location(order.source, options.get("revision"))
    return location.repo_id if isinstance(location, HubLocation) else str(parse_folder(location.path))


def _doubles(named: Mapping[str, Order], options: Mapping[str, Any]) -> list[str]:
    """Orders that would overwrite each other's mirror, or the page about it."""
    first: dict[object, str] = {}
    problems = []
    for what, order in named.items():
        given = {**options, **order.options}
        destination = order.destination or default_name("<you>", _name(order, given))
        places: list[tuple[object, object, str]] = [(_place(order, given), destination, "destination")]
        if (page := given.get("report")) is not None:
            places.append((Path(os.path.expanduser(page)).absolute(), page, "report"))
        for place, told, kind in places:
            if first.setdefault((kind, place), what) != what:
                problems.append(
                    f"{what}: `{told}` is the {kind} of {first[kind, place]} already:"
                    f" give one of them another `{kind} = `"
                )
    return problems


def _place(order: Order, options: Mapping[str, Any]) -> object:
    """What two orders have in common that go to the same place; a git remote's default branch has no name."""
    named = options.get("branch")
    branch = None if named is None else branch_name(named)
    if order.destination is None:
        return default_name("", _name(order, options)).lower(), branch or "main"
    location = parse_destination(order.destination)
    if isinstance(location, FolderLocation):
        return parse_folder(location.path).resolve()
    if isinstance(location, GitLocation):
        scheme, between, rest = location.url.rpartition("://")
        return scheme, between, normpath(rest).removesuffix(".git"), branch
    return location.repo_id.lower(), branch or "main"
