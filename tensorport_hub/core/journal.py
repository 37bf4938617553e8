"""The journal: what the runs of one plan finished, as lines of JSON, so that the next one continues there.

The first line names the format and the key of the plan; each other line is one entry, written only once what
it says is true and durable. A run that dies while it writes leaves a torn last line, which is dropped. An
entry is a hint: whoever resumes asks the sink whether it still holds the file.

    {"journal":"tensorport.journal/1","plan":"<key>"}
    {"made":17,"size":4096,"sha256":"...","lost":[[0,12]]}
    {"file":"model-00001-of-00003.safetensors","sha256":"..."}
    {"doubted":[17,18]}
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tensorport_hub.core.layout import Part
from tensorport_hub.core.plan import Plan, WeightFile, dumps
from tensorport_hub.errors import DestinationError

FORMAT = "tensorport.journal/1"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class MadeFile:
    """The sink holds output file `index` of the plan.

    Rounding cost `lost` values, (overflows, underflows) of each of its pieces; () where it cost none.
    """

    index: int
    size: int
    sha256: str
    lost: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class ReadFile:
    """A source file was read from its first byte to its last, and is what the source states."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Doubted:
    """Output files that were made of bytes which turned out not to be the source's: as if never made."""

    outputs: tuple[int, ...]


Entry = MadeFile | ReadFile | Doubted


@dataclass(frozen=True)
class Progress:
    """What is finished: output files by number, and the sha256 of source files that were read whole."""

    made: Mapping[int, MadeFile] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Remaining:
    """What a run still has to do.

    Attributes:
        files: source files to walk, in plan order.
        make: output files that the sink lacks.
        prove: output files that it holds, but that need bytes of a file whose digest is not proven yet: they
            are made once more from the bytes that pass, and compared, but not written.
        parts: what is decoded for them, in plan order.
    """

    files: tuple[WeightFile, ...]
    make: frozenset[int]
    prove: frozenset[int]
    parts: tuple[Part, ...]


def remaining(plan: Plan, progress: Progress) -> Remaining:
    """Compare a plan with what is finished.

    A source file that must be proven whole is done with once its digest is known and no output that needs a
    byte of it is missing; else it is read again from its start, and all that was made of it is compared.
    """
    users, done = plan.made_of, progress.made.keys()
    again = {path for path in plan.read_whole if path not in progress.files or not users[path] <= done}
    make = frozenset(file.index for file in plan.outputs) - done
    prove = frozenset[int]().union(*(users[path] for path in again)) & done
    wanted = make | prove
    parts = tuple(part for part in plan.parts if any(target.file in wanted for target in part.targets))
    walked = again | {plan.recipes[part.recipe].decoder.inputs[0].file for part in parts}
    return Remaining(tuple(f for f in plan.files if f.path in walked), make, prove, parts)


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


def gathered(found: Iterable[Entry]) -> Progress:
    """What entries say together; of two about the same thing the later one counts."""
    made: dict[int, MadeFile] = {}
    files: dict[str, str] = {}
    for entry in found:
        if isinstance(entry, MadeFile):
            made[entry.index] = entry
        elif isinstance(entry, Doubted):
            for index in entry.outputs:
                made.pop(index, None)
        else:
            files[entry.path] = entry.sha256
    return Progress(made, files)


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
