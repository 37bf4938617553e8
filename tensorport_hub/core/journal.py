"""The journal: what the runs of one plan finished, as lines of JSON, so that the next one continues there.

The first line names the format and the key of the plan; each other line is one entry of its `progress`,
written only once what it says is true and durable. A run that dies while it writes leaves a torn last line,
which is dropped.

    {"journal":"tensorport.journal/1","plan":"<key>"}
    {"made":17,"size":4096,"sha256":"...","lost":[[0,12]]}
    {"file":"model-00001-of-00003.safetensors","sha256":"..."}
    {"doubted":[17,18]}
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from tensorport_hub.core.plan import dumps
from tensorport_hub.core.progress import Doubted, Entry, MadeFile, ReadFile
from tensorport_hub.errors import DestinationError

FORMAT = "tensorport.journal/1"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def heading(key: str) -> bytes:
    """The first line of the journal of the plan `key`."""
    return dumps({"journal": FORMAT, "plan": key}) + b"\n"


def lines(entries: Iterable[Entry]) -> bytes:
    """Entries as text."""
    return b"".join(dumps(_json(entry)) + b"\n" for entry in entries)


def _json(entry: Entry) -> dict[str, Any]:
    if isinstance(entry, ReadFile):
        return {"file": entry.path, "sha256": entry.sha256}
    if isinstance(entry, Doubted):
        return {"doubted": [*entry.outputs]}
    lost = {"lost": [[*pair] for pair in entry.lost]} if entry.lost else {}
    return {"made": entry.index, "size": entry.size, "sha256": entry.sha256, **lost}


def whole_lines(data: bytes) -> int:
    """How many bytes of a journal are complete lines; what follows was torn off."""
    return data.rfind(b"\n") + 1


def key_of(data: bytes, *, name: str) -> str | None:
    """The plan that a journal belongs to; None where not even its first line was finished.

    Raises:
        DestinationError: it is no journal, or of a version that this tool does not know.
    """
    first = data[: whole_lines(data)].split(b"\n", 1)[0]
    if not first:
        return None
    value = _object(first)
    if value.get("journal") != FORMAT or not isinstance(value.get("plan"), str):
        raise DestinationError(f"journal `{name}` is none that this tool knows: expected `{FORMAT}`")
    return str(value["plan"])


def entries(data: bytes, *, outputs: Collection[int], name: str) -> list[Entry]:
    """All complete entries of a journal; `outputs` are the numbers of output files that its plan has.

    Raises:
        DestinationError: a complete line makes no sense.
    """
    found: list[Entry] = []
    for number, text in enumerate(data[: whole_lines(data)].split(b"\n")[1:-1], 2):
        entry = _entry(_object(text))
        if entry is None or (isinstance(entry, MadeFile) and entry.index not in outputs):
            raise DestinationError(
                f"journal `{name}` is damaged in line {number}", hint="`--restart` begins anew"
            )
        found.append(entry)
    return found


def _entry(value: Mapping[str, Any]) -> Entry | None:
    match value:
        case {"file": str(path), "sha256": str(sha256)} if _SHA256.fullmatch(sha256):
            return ReadFile(path, sha256)
        case {"made": int(index), "size": int(size), "sha256": str(sha256)} if _SHA256.fullmatch(sha256):
            lost = value.get("lost", [])
            if isinstance(lost, list) and all(_is_pair(pair) for pair in lost):
                return MadeFile(index, size, sha256, tuple((over, under) for over, under in lost))
        case {"doubted": list(outputs)} if all(type(index) is int for index in outputs):
            return Doubted(tuple(outputs))
    return None


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(n) is int and n >= 0 for n in value)


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
