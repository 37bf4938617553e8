"""What is read beside the walks, held against what the walks hashed.

A walk proves the bytes that pass it by the whole file's digest. The same bytes may be read beside it, earlier
or later: companions that lie in another file, tiles of held parts, stacked experts, second readings. Of each
such strip the first CRC-32 is noted, whoever has it; the next one must agree. Where the walk finds that bytes
were read otherwise before, something may have been made of them: the run ends.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Collection, Mapping

from tensorport_hub.core.decode.decoder import Bytes
from tensorport_hub.core.strips import Strip
from tensorport_hub.errors import SourceError, VerificationError


class Witness:
    """CRC-32 by file and strip; shared by all threads."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, Strip], int] = {}
        self._lock = threading.Lock()

    def agrees(self, file: str, strip: Strip, data: Bytes) -> bool:
        """Whether a strip is what it was before."""
        return self._agrees(file, strip, zlib.crc32(data.data))

    def read(self, file: str, strip: Strip, data: Bytes) -> None:
        """A strip was read, or was gathered as the walk passed.

        Raises:
            SourceError: it was another one before; transient.
        """
        self.read_as(file, strip, zlib.crc32(data.data))

    def read_as(self, file: str, strip: Strip, crc: int) -> None:
        """The same, of a strip whose CRC-32 is known.

        Raises:
            SourceError: as above.
        """
        if not self._agrees(file, strip, crc):
            raise SourceError(
                f"two readings of bytes {strip.start}:{strip.stop} of `{file}` differ", transient=True
            )

    def passed(self, file: str, strip: Strip, crc: int) -> None:
        """The walk has hashed a strip.

        Raises:
            VerificationError: it was read otherwise before.
        """
        if not self._agrees(file, strip, crc):
            raise VerificationError(
                f"bytes {strip.start}:{strip.stop} of `{file}` were read otherwise before",
                hint="nothing was published; the source or the way to it is damaged: run again",
            )

    def seen(self, wanted: Mapping[str, Collection[Strip]]) -> tuple[tuple[str, Strip, int], ...]:
        """The CRC-32 of those of the `wanted` strips, by file, that are known."""
        with self._lock:
            return tuple(
                (file, strip, self._known[file, strip])
                for file, strips in wanted.items()
                for strip in strips
                if (file, strip) in self._known
            )

    def _agrees(self, file: str, strip: Strip, crc: int) -> bool:
        with self._lock:
            return self._known.setdefault((file, strip), crc) == crc
