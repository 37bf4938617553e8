"""A list of mirrors in one TOML file: what it may say, and everything that is wrong with it.

    [[mirror]]
    source = "openai/gpt-oss-20b"
    destination = "me/gpt-oss-20b-npy"      # by default `<me>/<model>-npy`
    precision = "bfloat16"                  # any option that says what a mirror is, by its name there

Nothing is guessed: an unknown key, a value of another type and a second mirror to the same place are
problems, and all of them are told at once.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tensorport_hub.core.location import HubLocation, parse_source
from tensorport_hub.core.spelling import meant

TABLE = "mirror"
TEXT, SIZE, FLAG, TEXTS = "a string", "a size", "true or false", "a list of strings"


@dataclass(frozen=True)
class Order:
    """One mirror that is wanted.

    Attributes:
        source: `org/model`, `org/model@revision`, `hf://...` or a folder.
        destination: `org/name` or a folder; None: `<me>/<model>-npy`.
        options: keyword arguments of `mirror`.
    """

    source: str
    destination: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def follows(self) -> str | None:
        """The repository whose `main` it mirrors; None for a folder, and for any other revision."""
        location = parse_source(self.source, is_folder=False)
        if not isinstance(location, HubLocation):
            return None
        revision = self.options.get("revision") or location.revision
        return location.repo_id if revision in (None, "main") else None


@dataclass(frozen=True)
class Key:
    """What a key of a table is to `mirror`: the argument, and what its value must be."""

    argument: str
    kind: str


def read(
    text: str, keys: Mapping[str, Key], of_the_run: Collection[str] = ()
) -> tuple[dict[str, Order], list[str]]:
    """The orders, each by how it is called in problems, and the problems of all others.

    Args:
        of_the_run: options of the command line that say how a run goes, not what a mirror is.
    """
    try:
        said = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return {}, [f"it is no TOML: {error}"]
    problems = [f"unknown table `{name}`: expected `[[{TABLE}]]`" for name in said if name != TABLE]
    tables = said.get(TABLE, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        return {}, [*problems, f"`{TABLE}` is no list of tables: expected `[[{TABLE}]]` above each"]
    if not tables and not problems:
        return {}, [f"it names no mirror: expected `[[{TABLE}]]` tables"]
    orders = {}
    for number, table in enumerate(tables, 1):
        source = table.get("source")
        what = f"mirror {number} (`{source}`)" if isinstance(source, str) else f"mirror {number}"
        found = list(_problems(table, keys, of_the_run))
        problems += [f"{what}: {problem}" for problem in found]
        if not found:
            options = {
                keys[key].argument: _given(value, keys[key].kind)
                for key, value in table.items()
                if key in keys
            }
            orders[what] = Order(table["source"], table.get("destination"), options)
    return orders, problems


def _given(value: Any, kind: str) -> Any:
    """A number that a person wrote as a size is read as one that was typed."""
    return str(value) if kind == SIZE else value


def _problems(
    table: Mapping[str, Any], keys: Mapping[str, Key], of_the_run: Collection[str]
) -> Iterator[str]:
    if "source" not in table:
        yield "`source` is missing"
    for key, value in table.items():
        kind = TEXT if key in ("source", "destination") else keys[key].kind if key in keys else None
        if kind is None and key in of_the_run:
            yield f"`{key}` is an option of the command line, not of a list"
        elif kind is None:
            near = meant(key, ["source", "destination", *keys])
            yield f"unknown key `{key}`" + (f": {near}" if near else "")
        elif not _fits(value, kind):
            yield f"`{key}` must be {kind}, got {value!r}"


def _fits(value: object, kind: str) -> bool:
    texts = [value] if isinstance(value, str) else value
    return {
        TEXT: isinstance(value, str) and bool(value.strip()),
        SIZE: isinstance(value, str) or type(value) is int,
        FLAG: isinstance(value, bool),
        TEXTS: isinstance(texts, list) and all(isinstance(text, str) for text in texts),
    }[kind]
