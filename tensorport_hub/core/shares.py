"""How a run is shared out: source files that one worker walks, one after another.

A source file is walked whole by one worker, so that its sha256 is proven as on one machine. What each walk
feeds is made there, too; so files that the same output file is made of stay together. That is the case for
formats whose files hold several tensors: such a plan may well be one share. Companions are no reason to stay
together: who decodes reads them by range, and what is read that way is compared with what the file's own
walk has hashed, wherever that was (`Schedule.from_elsewhere`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.plan import Plan
from tensorport_hub.core.progress import Remaining


@dataclass(frozen=True)
class Share:
    """Source files, in plan order, and the numbers of the output files that are made as they are walked."""

    files: tuple[SourceFile, ...]
    outputs: frozenset[int]

    @property
    def name(self) -> str:
        """For people, and for keys of tasks: the first file."""
        return self.files[0].path

    @property
    def nbytes(self) -> int:
        """Bytes of its source files."""
        return sum(file.size for file in self.files)


def share_out(plan: Plan, left: Remaining) -> tuple[Share, ...]:
    """What is left, in as many shares as there can be; in plan order."""
    order = {file.path: number for number, file in enumerate(left.files)}
    outputs: dict[int, set[int]] = {number: set() for number in order.values()}
    joined = [*order.values()]
    first: dict[int, int] = {}
    for part in left.parts:
        here = order[plan.recipes[part.recipe].decoder.inputs[0].file]
        for target in part.targets:
            outputs[here].add(target.file)
            _join(joined, here, first.setdefault(target.file, here))
    together: dict[int, list[int]] = {}
    for number in order.values():
        together.setdefault(_root(joined, number), []).append(number)
    return tuple(_share(left.files, outputs, numbers) for numbers in together.values())


def _share(files: Sequence[SourceFile], outputs: dict[int, set[int]], numbers: Sequence[int]) -> Share:
    made = frozenset[int]().union(*(outputs[number] for number in numbers))
    return Share(tuple(files[number] for number in numbers), made)


def _root(joined: list[int], number: int) -> int:
    while joined[number] != number:
        joined[number] = number = joined[joined[number]]
    return number


def _join(joined: list[int], one: int, other: int) -> None:
    """The smaller number stands for both, so that shares stay in plan order."""
    low, high = sorted((_root(joined, one), _root(joined, other)))
    joined[high] = low
