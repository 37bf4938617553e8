"""How fast a source is, from here, now: a few blocks of its largest files, read and thrown away.

One block to get connected, then rounds of as many blocks at once as there are workers, four at most. The
slowest and the fastest round are what a run may expect; nothing is said about the way to the destination.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.forecast import Rate
from tensorport_hub.core.size import format_size
from tensorport_hub.ports import Source

_BLOCK = 4 << 20
_ROUNDS = 4
_MOST_WORKERS = 4


def measured(source: Source, files: Sequence[SourceFile], workers: int) -> Rate | None:
    """Bytes a second of a few rounds; None where there is nothing to read."""
    files = sorted((file for file in files if file.size), key=lambda file: -file.size)[:_MOST_WORKERS]
    if not files:
        return None
    at_once = min(workers, _MOST_WORKERS)
    read = _reader(source)
    read((files[0], 0))
    rounds: list[tuple[int, float]] = []
    with ThreadPoolExecutor(at_once, thread_name_prefix="probe") as threads:
        for number in range(_ROUNDS):
            blocks = [_block(files, number * at_once + i) for i in range(at_once)]
            begun = perf_counter()
            nbytes = sum(threads.map(read, blocks))
            rounds.append((nbytes, max(perf_counter() - begun, 1e-6)))
    rates = [nbytes / taken for nbytes, taken in rounds]
    total = format_size(sum(nbytes for nbytes, _ in rounds))
    how = f"measured now: {total} of the source in {_ROUNDS} rounds of {at_once} blocks"
    return Rate(min(rates), max(rates), how)


def _block(files: Sequence[SourceFile], number: int) -> tuple[SourceFile, int]:
    """The file and the offset of a block: in turn, each a good way into its file."""
    file = files[number % len(files)]
    places = max(file.size // _BLOCK, 1)
    return file, (number * 7919 % places) * _BLOCK


def _reader(source: Source) -> Callable[[tuple[SourceFile, int]], int]:
    def read(block: tuple[SourceFile, int]) -> int:
        file, start = block
        buffer = bytearray(min(_BLOCK, file.size - start))
        source.read_into(file.path, start, memoryview(buffer))
        return len(buffer)

    return read
