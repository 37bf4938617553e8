"""What is finished of a plan: what was there when the run began, and what it enters since.

What earlier runs of the plan finished comes from the journal, as far as the sink still holds it; what the
destination may hold of another plan's run is inherited. What this run finishes is entered here and in the
journal, by whoever walks the files: the threads of this process, or workers elsewhere. At the end the ledger
has the outcome.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass

from tensorport_hub.core.decode.cast import Losses
from tensorport_hub.core.layout import OutFile
from tensorport_hub.core.plan import Plan
from tensorport_hub.core.progress import Doubted, Entry, MadeFile, Progress, ReadFile, remaining
from tensorport_hub.errors import TensorportError
from tensorport_hub.ports import Journal, Kept, Receipt, Report, Resumed, Sink


@dataclass(frozen=True)
class Outcome:
    """What a run made and learned.

    Attributes:
        receipts: one an output file, in plan order.
        digests: source file -> sha256 where it was read whole, else None.
        losses: recipe number -> what rounding cost, where it cost anything.
    """

    receipts: tuple[Receipt, ...]
    digests: Mapping[str, str | None]
    losses: Mapping[int, Losses]


class Ledger:
    """The entries of a run. Thread-safe.

    Attributes:
        left: what the run still had to do when it began.
        made: output files by number, as the sink holds them now.

    Args:
        inherited: what the journal doesn't know, but the destination may hold of another plan's run.
    """

    def __init__(self, plan: Plan, sink: Sink, journal: Journal, inherited: Progress) -> None:
        self._plan, self._journal = plan, journal
        self._resumed = _held(plan, sink, journal.progress)
        self._kept = _held(plan, sink, inherited, beside=self._resumed)
        self._digests = {**inherited.files, **journal.progress.files}
        self.made: dict[int, MadeFile] = {**self._resumed, **self._kept}
        self.left = remaining(plan, Progress(self.made.copy(), self._digests.copy()))
        self._doubted: set[int] = set()
        self._lock = threading.Lock()

    def tell(self, report: Report) -> None:
        """Report what was there."""
        if self._resumed:
            report(Resumed(*_count(self._resumed)))
        if self._kept:
            report(Kept(*_count(self._kept)))

    def enter(self, entry: Entry) -> None:
        """Something is finished, or doubted; what was doubted before is not kept for the next run.

        Raises:
            DestinationError: the journal can't keep it.
        """
        with self._lock:
            if isinstance(entry, MadeFile):
                self.made[entry.index] = entry
                if entry.index in self._doubted:
                    return
            elif isinstance(entry, ReadFile):
                self._digests[entry.path] = entry.sha256
            else:
                self._doubted.update(entry.outputs)
        if isinstance(entry, Doubted):
            with suppress(TensorportError):  # the run ends for what made it doubt
                self._journal.add(entry)
        else:
            self._journal.add(entry)

    def outcome(self) -> Outcome:
        """What came of it, once nothing is left."""
        receipts = tuple(receipt_of(file, self.made[file.index]) for file in self._plan.outputs)
        digests = {file.path: self._digests.get(file.path) for file in self._plan.files}
        return Outcome(receipts, digests, self._losses())

    def _losses(self) -> dict[int, Losses]:
        """Recipe number -> what rounding cost, in the order of the plan; each format has lost the same."""
        found: dict[int, Losses] = {}
        for file in self._plan.outputs:
            if file.format != self._plan.outputs[0].format:
                break
            for piece, lost in zip(file.pieces, self.made[file.index].lost, strict=False):
                if any(lost):
                    found.setdefault(piece.recipe, Losses()).add(Losses(*lost))
        return dict(sorted(found.items()))


def _held(plan: Plan, sink: Sink, progress: Progress, *, beside: Collection[int] = ()) -> dict[int, MadeFile]:
    """What the sink still holds of the files that an earlier run finished, but for those in `beside`."""
    return {
        file.index: made
        for file in plan.outputs
        if file.index not in beside
        and (made := progress.made.get(file.index)) is not None
        and made.size == file.size
        and sink.has(receipt_of(file, made))
    }


def _count(made: Mapping[int, MadeFile]) -> tuple[int, int]:
    return len(made), sum(one.size for one in made.values())


def receipt_of(file: OutFile, made: MadeFile) -> Receipt:
    """What the sink gave for a file that an entry speaks of."""
    return Receipt(file.path, made.size, made.sha256)
