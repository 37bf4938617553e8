"""Values that a manifest states, read as hostile input: each of its type, or an error that says where.

Raises:
    VerificationError: by every function.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from tensorport_hub.core import manifest
from tensorport_hub.core.tensor import DTYPES, DType, shorten
from tensorport_hub.errors import VerificationError

_LARGEST = 1 << 62
_AXES = 64
"""What numpy has at most."""

T = TypeVar("T")


def object_(value: Any, where: str) -> Mapping[str, Any]:
    """A JSON object."""
    return typed(value, dict, where, "an object")


def list_(value: Any, where: str) -> list[Any]:
    """A JSON list."""
    return typed(value, list, where, "a list")


def string(value: Any, where: str) -> str:
    """A text."""
    return typed(value, str, where, "a text")


def typed(value: Any, kind: type[T], where: str, words: str) -> T:
    """A value of that type."""
    if not isinstance(value, kind):
        raise wrong(where, words, value)
    return value


def size(value: Any, where: str) -> int:
    """A number of bytes, rows or the like."""
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise wrong(where, "a size", value)
    return value


def shape(value: Any, where: str) -> tuple[int, ...]:
    """A list of sizes."""
    lengths = list_(value, where)
    if len(lengths) > _AXES:
        raise wrong(where, f"at most {_AXES} axes", len(lengths))
    return tuple(size(length, where) for length in lengths)


def dtype(value: Any, where: str) -> DType:
    """An element type, by its name."""
    if not isinstance(value, str) or value not in DTYPES:
        raise wrong(f"dtype of {where}", "one that safetensors knows", value)
    return DTYPES[value]


def matching(pattern: re.Pattern[str], value: Any, where: str) -> str:
    """A text of a pattern."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise wrong(where, "hex digits", value)
    return value


def wrong(where: str, expected: str, got: object) -> VerificationError:
    """What to raise where a value is not what is expected."""
    shown = shorten(json.dumps(got, default=str), 80)
    return VerificationError(f"`{manifest.PATH}`: {where}: expected {expected}, got {shown}")
