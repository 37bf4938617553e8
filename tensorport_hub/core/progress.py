"""What the runs of one plan finished, entry by entry, and what that leaves to be done.

An entry is a hint: whoever resumes asks the sink whether it still holds the file. `journal` writes entries
down, `engine.ledger` gathers those of a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.layout import Part
from tensorport_hub.core.plan import Plan


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

    files: tuple[SourceFile, ...]
    make: frozenset[int]
    prove: frozenset[int]
    parts: tuple[Part, ...]


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
