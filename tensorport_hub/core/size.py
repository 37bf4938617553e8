"""Sizes as people write them: `1.8GB` is 10^9, `1.5GiB` is 2^30."""

from __future__ import annotations

import re
from decimal import Decimal

from tensorport_hub.errors import UseError

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)}
_UNITS |= {f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", 1)}
_FORM = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?B|B?)", re.IGNORECASE)


def parse_size(text: str | float) -> int:
    """Bytes; a number is taken as that many, `1e9` too.

    Raises:
        UseError: it is no size.
    """
    if isinstance(text, int | float) and not isinstance(text, bool) and text % 1 == 0:
        if text < 0:
            raise UseError(f"size {text} is negative")
        return int(text)
    match = _FORM.fullmatch(text.strip()) if isinstance(text, str) else None
    unit = _UNITS.get(match.group(2).upper()) if match else None
    if match is None or unit is None:
        raise UseError(f"`{text}` is no size: expected bytes, or a form like `1.8GB`, `512MiB`")
    return int(Decimal(match.group(1)) * unit)


def format_size(nbytes: float) -> str:
    """A size for people, in decimal units and three digits or so: `1.80 GB`."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes:.0f} B"
