"""Repositories of any size without a disk: safetensors files whose bytes follow from a seed and the offset.

A tensor's bytes are made in blocks of 1 MiB. Each block is the exclusive or of two tables of random bytes,
read from places that the block's number and the seed choose, and then shaped to what the dtype allows:
16- and 32-bit floats of about 1/100, 8-bit floats without NaN, shared exponents near 2**-7, any bits else. So
values look like weights, and nothing repeats that a deduplicating store could find.

A file's sha256 is that of the bytes that are served: they are made once to find it, unless it is told.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tensorport_hub.devhub.blobs import Blob

BLOCK = 1 << 20
_TABLE = 3 * BLOCK
_NBITS = {"F64": 64, "I64": 64, "F32": 32, "I32": 32, "BF16": 16, "F16": 16, "I16": 16}

Tensor = tuple[str, str, tuple[int, ...]]
"""Name, dtype as safetensors names it, shape."""

Bytes = npt.NDArray[np.uint8]


@cache
def _table(number: int) -> Bytes:
    return np.frombuffer(np.random.default_rng(number).bytes(_TABLE), np.uint8)


def _block(dtype: str, scales: bool, seed: int, number: int) -> Bytes:
    """The bytes of block `number` of a tensor."""
    chosen = np.random.Generator(np.random.Philox(key=seed, counter=number)).integers(
        0, _TABLE - BLOCK, 2, endpoint=True
    )
    first, second = (int(at) & ~7 for at in chosen)
    bits = _table(0)[first : first + BLOCK] ^ _table(1)[second : second + BLOCK]
    if dtype == "BF16":
        halves = bits.view("<u2")
        return ((halves & 0x80FF) | 0x3C00).view(np.uint8)
    if dtype == "F16":
        halves = bits.view("<u2")
        return ((halves & 0x83FF) | 0x2000).view(np.uint8)
    if dtype == "F32":
        words = bits.view("<u4")
        return ((words & 0x80FF_FFFF) | 0x3C00_0000).view(np.uint8)
    if dtype.startswith("F8_E4M3"):
        return bits & np.uint8(0xB7)
    if scales:
        return (bits & np.uint8(7)) + np.uint8(116)
    return bits


@dataclass(frozen=True)
class _Run:
    """One tensor's bytes in the file."""

    start: int
    stop: int
    dtype: str
    scales: bool
    seed: int

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Bytes `start:stop` of the tensor."""
        while start < stop:
            number, skipped = divmod(start, BLOCK)
            block = _block(self.dtype, self.scales, self.seed, number)[skipped : skipped + stop - start]
            start += len(block)
            yield block.tobytes()


class SyntheticFile:
    """A safetensors file of tensors in the given order, as a blob."""

    path: Path | None = None
    xet_hash: str | None = None

    def __init__(self, tensors: Sequence[Tensor], *, seed: int, sha256: str | None = None) -> None:
        header, at = {}, 0
        runs = []
        for number, (name, dtype, shape) in enumerate(tensors):
            nbytes = prod(shape) * _NBITS.get(dtype, 8) // 8
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + nbytes]}
            scales = dtype == "U8" and name.endswith("_scales")
            runs.append(_Run(at, at + nbytes, dtype, scales, (seed << 32) + number))
            at += nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._head = len(text).to_bytes(8, "little") + text
        self._runs = [run for run in runs if run.stop > run.start]
        self._starts = [run.start for run in self._runs]
        self.size = len(self._head) + at
        self.sha256 = sha256 if sha256 is not None else self._digest()

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for block in self.read(0, self.size):
            digest.update(block)
        return digest.hexdigest()

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        head = len(self._head)
        if start < min(stop, head):
            yield self._head[start:stop]
            start = head
        start, stop = start - head, stop - head
        number = bisect_right(self._starts, start) - 1
        while start < stop:
            run = self._runs[number]
            end = min(stop, run.stop)
            yield from run.read(start - run.start, end - run.start)
            start, number = end, number + 1


class Synthetic:
    """The synthetic files of a devhub: a place that blobs are found in."""

    def __init__(self) -> None:
        self._files: dict[str, SyntheticFile] = {}

    def add(self, file: SyntheticFile) -> None:
        self._files[file.sha256] = file

    def find(self, sha256: str) -> Blob | None:
        return self._files.get(sha256)
