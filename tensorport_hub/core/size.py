"""Sizes as people write them: `1.8GB` or `1.8G` is 10^9, `1.5GiB` or `1.5Gi` 2^30; a number alone is bytes.

A few bytes are nobody's limit: a text that says so without a unit is a unit forgotten.
"""

from __future__ import annotations

import re
from decimal import Decimal

from tensorport_hub.errors import UseError

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{letter}{end}": 1000**power for power, letter in enumerate("KMGT", 1) for end in ("", "B")}
_UNITS |= {f"{letter}{end}": 1024**power for power, letter in enumerate("KMGT", 1) for end in ("I", "IB")}
_FORM = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?B?)", re.IGNORECASE)
_LEAST_ALONE = 1000


def parse_size(text: str | float, *, forgotten: str = "GB") -> int:
    """Bytes; a number is taken as that many, `1e9` too.

    Args:
        forgotten: the unit that was meant where a text has none and can't mean bytes.

    Raises:
        UseError: it is no size, or a fraction of a byte, or a few bytes as a text without unit.
    """
    if isinstance(text, int | float) and not isinstance(text, bool) and text % 1 == 0:
        if text < 0:
            raise UseError(f"size {text} is negative")
        return int(text)
    match = _FORM.fullmatch(text.strip()) if isinstance(text, str) else None
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise UseError(f"`{text}` is no size: expected bytes, or a form like `1.8GB`, `512MiB`")
    number = Decimal(match[1])
    hint = f"did you mean `{match[1]}{forgotten}`?"
    if unit == 1 and number % 1:
        raise UseError(f"`{text}` is no whole number of bytes", hint=hint)
    if not match[2] and 0 < number < _LEAST_ALONE:
        raise UseError(f"`{text}` has no unit, and would be {number} bytes", hint=hint)
    return int(number * unit)


def format_size(nbytes: float) -> str:
    """A size for people, in decimal units and three digits or so: `1.80 GB`."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes:.0f} B"
