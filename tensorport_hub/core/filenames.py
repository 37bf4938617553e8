"""Tensor names as file names, injective on every file system.

A file name is the tensor's name with each UTF-8 byte outside `[A-Za-z0-9._-]` percent-encoded. A short
hash of the name follows, after a `~` that no encoded name contains, where the plain form would be longer
than 200 bytes, would equal another one on a file system that ignores case, would read as a part of a split
tensor, or would be empty. A first component that Windows reserves (`aux`, `con`, ...) has its first letter
encoded.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable

_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_PLAIN = re.compile(r"[A-Za-z0-9._-]*")
_LONGEST = 200
_PART = re.compile(r"\.part-\d{5,}-of-\d{5,}$", re.IGNORECASE)
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", re.IGNORECASE)


def is_inside(path: str) -> bool:
    """Whether a relative path, on any system, names something below the folder that it starts from."""
    pieces = path.split("/")
    return all(piece not in ("", ".", "..") for piece in pieces) and not re.search(
        r"[\x00-\x1f\\]|^[A-Za-z]:", path
    )


def encode(name: str) -> str:
    """`name` with unsafe bytes percent-encoded: injective, ASCII, without `/`."""
    encoded = name
    if not _PLAIN.fullmatch(name):
        encoded = "".join(chr(b) if b in _SAFE else f"%{b:02X}" for b in name.encode("utf-8"))
    if _RESERVED.match(encoded) or encoded.startswith("."):
        encoded = f"%{ord(encoded[0]):02X}{encoded[1:]}"
    return encoded


def stems(names: Iterable[str]) -> dict[str, str]:
    """Tensor name -> file name without its ending; no two are equal, whatever their case."""
    encoded = {name: encode(name) for name in names}
    seen = Counter(stem.lower() for stem in encoded.values())
    return {
        name: _hashed(name, stem)
        if not stem or len(stem) > _LONGEST or seen[stem.lower()] > 1 or _PART.search(stem)
        else stem
        for name, stem in encoded.items()
    }


def _hashed(name: str, stem: str) -> str:
    digest = hashlib.sha256(name.encode("utf-8")).hexdigest()[:16]
    return f"{stem[: _LONGEST - 20]}~{digest}"
