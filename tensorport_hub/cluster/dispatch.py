"""The coordinator's side of a run that is shared out: who gets what, what came back, when it is over.

Shares are given largest first, one to a worker at a time; whoever joins gets one, too. A share whose worker
went away, or failed in passing, is given to another one, with what the storage holds of it by now; after a
few tries that is an error. Entries go to the ledger as they come, so that the journal's checkpoints are made
as on one machine. What one share read of another one's files is held against what the other's walk hashed.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

from tensorport_hub.cluster.brief import Assignment, Ended, Item, Told
from tensorport_hub.cluster.crew import Crew, Failed, Lost
from tensorport_hub.core.forecast import Window
from tensorport_hub.core.plan import Plan
from tensorport_hub.core.progress import Doubted, MadeFile, ReadFile
from tensorport_hub.core.shares import Share, share_out
from tensorport_hub.engine.ledger import Ledger, receipt_of
from tensorport_hub.engine.witness import Witness
from tensorport_hub.errors import DestinationError, LimitError, TensorportError, VerificationError
from tensorport_hub.meter import Meter
from tensorport_hub.ports import BytesRead, BytesWritten, FileVerified, PartDone, Waiting, Warned

TRIES = 4
"""How often a share is begun."""

PATIENCE = 300.0
"""Seconds that are waited for a worker, where there is none."""

_PULSE = 0.2


@dataclass
class _Try:
    """A share that a worker has or had, and how much it has told."""

    share: Share
    items: int = 0
    read: int = 0
    written: int = 0


class Dispatch:
    """The shares of one run, from the first to the last.

    Args:
        windows: of the account; each worker is dealt a share of them, and the coordinator keeps one.
    """

    def __init__(
        self, plan: Plan, ledger: Ledger, crew: Crew, windows: Sequence[Window], report: Meter
    ) -> None:
        self._plan, self._ledger, self._crew, self._report = plan, ledger, crew, report
        self._windows = windows
        shares = share_out(plan, ledger.left)
        self._waiting = deque(sorted(shares, key=lambda share: share.nbytes, reverse=True))
        self._tries: list[_Try] = []
        self._running: set[int] = set()
        self._failed: dict[str, list[str]] = defaultdict(list)  # share -> where
        self._read: set[str] = set()
        self._witness = Witness()
        if len(shares) == 1 and len(ledger.left.files) > 1:
            report(Warned("all files of this plan hang together: one worker walks them all"))

    def run(self) -> None:
        """Have everything done that is left.

        Raises:
            TensorportError: the first fault that another worker would not mend.
        """
        alone = None
        while self._waiting or self._running:
            self._give()
            alone = self._alone_since(alone)
            for news in self._crew.news(_PULSE):
                match news:
                    case Told():
                        self._hear(news)
                    case Ended():
                        self._end(news)
                    case Failed():
                        self._fail(news)
                    case Lost():
                        self._lose(news)

    def _alone_since(self, before: float | None) -> float | None:
        """Since when there has been no worker at all.

        Raises:
            DestinationError: for too long.
        """
        if self._crew.workers:
            return None
        if before is None:
            self._report(Waiting(PATIENCE, "there is no worker"))
            return monotonic()
        if monotonic() - before > PATIENCE:
            raise DestinationError(
                f"there was no worker for {PATIENCE:.0f} seconds",
                hint="start some; the same command continues",
            )
        return before

    def _give(self) -> None:
        for worker in self._crew.free():
            share = next((share for share in self._waiting if self._may(worker, share)), None)
            if share is not None:
                self._waiting.remove(share)
                number = len(self._tries)
                self._tries.append(_Try(share))
                self._running.add(number)
                self._crew.give(worker, self._assignment(number, share))

    def _may(self, worker: str, share: Share) -> bool:
        """A share goes where it has not failed yet, as long as there is such a worker."""
        failed = self._failed[share.name]
        return worker not in failed or self._crew.workers <= {*failed}

    def _assignment(self, number: int, share: Share) -> Assignment:
        made = tuple(self._ledger.made[i] for i in sorted(share.outputs) if i in self._ledger.made)
        dealt = len(self._crew.workers) + 1
        windows = {w.kind: (w.most // dealt, float(w.seconds)) for w in self._windows}
        return Assignment(number, share.name, tuple(file.path for file in share.files), made, windows)

    def _hear(self, told: Told) -> None:
        """Take what is new; also of a try that is given up: what it finished is there."""
        known = self._tries[told.number]
        if told.at > known.items:
            return  # what came between is told again at the end
        for item in told.items[known.items - told.at :]:
            self._take(item)
        known.items = max(known.items, told.at + len(told.items))
        name = known.share.name
        if told.read > known.read:
            self._report(BytesRead(name, told.read - known.read))
        if told.written > known.written:
            self._report(BytesWritten(name, told.written - known.written))
        known.read, known.written = max(known.read, told.read), max(known.written, told.written)

    def _take(self, item: Item) -> None:
        if isinstance(item, MadeFile):
            if self._ledger.made.get(item.index) != item:
                self._ledger.enter(item)
                self._report(PartDone(receipt_of(self._plan.outputs[item.index], item)))
        elif isinstance(item, ReadFile):
            if item.path not in self._read:  # by a worker that went away before its last part was done
                self._read.add(item.path)
                self._ledger.enter(item)
                self._report(FileVerified(item.path, item.sha256))
        elif isinstance(item, Doubted):
            self._ledger.enter(item)
        else:
            self._report(item)

    def _end(self, ended: Ended) -> None:
        self._hear(ended.told)
        self._running.discard(ended.told.number)
        self._report.worker_memory = max(self._report.worker_memory or 0, ended.memory or 0) or None
        for file, strip, crc in ended.readings:
            try:
                self._witness.passed(file, strip, crc)
            except VerificationError:
                self._doubt([file])
                raise

    def _doubt(self, files: Sequence[str]) -> None:
        """What was made of these source files is as if never made."""
        for path in files:
            self._ledger.enter(Doubted(tuple(sorted(self._plan.made_of[path]))))

    def _fail(self, failed: Failed) -> None:
        """Try again elsewhere what may pass.

        Raises:
            TensorportError: the failure, named after its worker.
        """
        share = self._back(failed.number)
        error = failed.error
        if isinstance(error, VerificationError):
            self._doubt([file.path for file in share.files])
        if not isinstance(error, TensorportError):
            raise error
        tried = self._put_back(share, failed.worker)
        if not error.transient or tried >= TRIES or self._crew.workers <= {*self._failed[share.name]}:
            raise type(error)(f"worker {failed.worker}: {error.message}", hint=error.hint)
        self._report(Warned(f"`{share.name}` failed on worker {failed.worker}: {error.message}"))

    def _lose(self, lost: Lost) -> None:
        """Give the share of a worker that went away to another one.

        Raises:
            LimitError: it was the last of several.
        """
        share = self._back(lost.number)
        if self._put_back(share, lost.worker) >= TRIES:
            raise LimitError(
                f"{TRIES} workers went away while they had `{share.name}`, the last was {lost.worker}",
                hint="if they were killed for their memory, lower `--max-memory` or `--workers`",
            )
        self._report(Warned(f"worker {lost.worker} went away: `{share.name}` is given to another one"))

    def _back(self, number: int) -> Share:
        """The share of a try that has come to nothing."""
        self._running.discard(number)
        return self._tries[number].share

    def _put_back(self, share: Share, worker: str) -> int:
        """A share is to be begun again; how often it was."""
        self._waiting.appendleft(share)
        self._failed[share.name].append(worker)
        return len(self._failed[share.name])
