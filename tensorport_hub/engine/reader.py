"""What is read beside the walks: companions, parts and tiles that nothing feeds, and second readings."""

from __future__ import annotations

import numpy as np

from tensorport_hub.core.decode.decoder import Bytes
from tensorport_hub.core.strips import Strip, contiguous, gather
from tensorport_hub.engine.blocks import StopFlag, Stopped
from tensorport_hub.engine.witness import Witness
from tensorport_hub.ports import BytesRead, Report, Source

_READINGS = 3


class Reader:
    """Reads ranges and strips, `block` bytes at a time; shared by all threads."""

    def __init__(self, source: Source, witness: Witness, block: int, stop: StopFlag, report: Report) -> None:
        self._source, self._witness, self._stop, self._report = source, witness, stop, report
        self.block = block

    def fill(self, into: Bytes, file: str, start: int) -> None:
        """Fill a buffer with the file's bytes from `start`.

        Raises:
            SourceError: the source failed for good.
            Stopped: the run stopped.
        """
        if self._stop:
            raise Stopped
        self._source.read_into(file, start, into.data)
        self._report(BytesRead(file, into.size))

    def range(self, file: str, start: int, stop: int) -> Bytes:
        """A range in a buffer of its own; who asks must see to it that it is what a walk hashes."""
        return self._read(file, contiguous(start, stop))

    def strip(self, file: str, wanted: Strip) -> Bytes:
        """A strip, row after row, in a buffer of its own; what lies between rows needs one more block.

        Raises:
            SourceError: time and again it is not what it was before, or what the walk hashed; transient.
        """
        for _ in range(_READINGS - 1):
            data = self._read(file, wanted)
            if self._witness.agrees(file, wanted, data):
                return data
        data = self._read(file, wanted)
        self._witness.read(file, wanted, data)
        return data

    def _read(self, file: str, wanted: Strip) -> Bytes:
        into = np.empty(wanted.nbytes, np.uint8)
        gaps = wanted.asked > wanted.nbytes
        passing = np.empty(min(self.block, wanted.asked) if gaps else 0, np.uint8)
        at = 0
        for start, stop in wanted.reads(self.block):
            target = passing[: stop - start] if gaps else into[at : at + stop - start]
            self.fill(target, file, start)
            if gaps:
                gather(wanted, into, target, start)
            at += stop - start
        return into
