"""Arrays of a mirror that are read when they are indexed.

An array is made of pieces: rows of it that lie one after another somewhere in a file, whatever the format.
What lies on this machine is mapped, and the result is a view wherever one piece holds all of it. Anything
else is read by ranges of exactly the rows that are wanted, several rows a request; wanted bytes that lie
close together come in one request, with what lies between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorport_hub.core import npy
from tensorport_hub.core.indexing import Axes, Run, block_shape, runs, select
from tensorport_hub.core.manifest import FileEntry
from tensorport_hub.core.recipe import Recipe
from tensorport_hub.core.tensor import shorten
from tensorport_hub.errors import SourceError, VerificationError
from tensorport_hub.files import Files

GAP = 1 << 16
"""Wanted bytes that lie at most so far apart come in one request: more bytes cost less than another."""

_LONGEST = 8 << 20
_REQUESTS = 8

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Piece:
    """Rows `rows[0]:rows[1]` of a tensor: an array of `shape` in C order, from byte `start` of a file on.

    `head` is what the file begins with; `swapped`: the last two axes stand the other way round there.
    """

    file: FileEntry
    rows: tuple[int, int]
    shape: tuple[int, ...]
    start: int
    head: bytes
    swapped: bool = False


class LazyArray:
    """One tensor of a checkpoint: dtype and shape now, values when it is indexed.

    Attributes:
        name: the tensor's, in the manifest.
        shape: of the array that comes out.
        dtype: its type; bfloat16 and 8-bit floats are those of ml_dtypes.
        logical_dtype, logical_shape: as the manifest states them. They differ from the array's for `F4` and
            `F6_*`, which come as they are stored: uint8, with the last axis in packed bytes.
    """

    def __init__(self, recipe: Recipe, pieces: Sequence[Piece], reader: Reader) -> None:
        self.name = recipe.name
        self.shape = recipe.stored_shape
        self.dtype: np.dtype[Any] = recipe.dtype.numpy
        self.logical_dtype, self.logical_shape = recipe.dtype.name, recipe.shape
        self._pieces, self._reader = pieces, reader

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array in memory."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError(f"`{shorten(self.name)}` is 0-d and has no length")
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        """What numpy gives for a basic index of the whole array: integers, slices, `...`, `newaxis`.

        Returns:
            An array of `dtype`, or a scalar where every axis has an integer. It is a read-only view of a
            mapped file where one file on this machine holds all of it, and an array of its own elsewhere.

        Raises:
            IndexError: out of bounds, or no basic index.
            SourceError: what is needed can't be read.
            VerificationError: a file is not what the manifest says.
        """
        selection = select(index, self.shape)
        return self._block(selection.axes)[selection.finish]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        """The whole array; `copy=False` is refused where one is needed, as numpy asks."""
        made: Array = self[...]
        wanted = made.dtype if dtype is None else np.dtype(dtype)
        if copy is False and (made.flags.writeable or wanted != made.dtype):
            raise ValueError(f"`{shorten(self.name)}` can't be had as {wanted} without a copy")
        if made.flags.writeable and wanted == made.dtype:
            return made  # nobody else holds it
        return made.astype(wanted, copy=bool(copy))

    def __iter__(self) -> Iterator[Any]:
        return (self[row] for row in range(len(self)))

    def requested(self, index: Any) -> int:
        """How many bytes `self[index]` asks the Hub for; 0 for what lies on this machine."""
        return self._reader.requested(self._wanted(select(index, self.shape).axes), self.dtype)

    def _block(self, axes: Axes) -> Array:
        shape = block_shape(axes)
        if 0 in shape:
            return npy.empty(shape, self.dtype)
        return self._reader.block(self._wanted(axes), shape, self.dtype)

    def _wanted(self, axes: Axes) -> list[_Wanted]:
        """The pieces that hold a block, and what of each."""
        if not self.shape:
            return [_Wanted(self._pieces[0], axes, None)]
        found = []
        for piece in self._pieces:
            rows, where = axes[0].within(*piece.rows)
            if rows.count:
                rest = [*axes[1:-2], axes[-1], axes[-2]] if piece.swapped else axes[1:]
                found.append(_Wanted(piece, (rows, *rest), where))
        return found

    def __repr__(self) -> str:
        return f"<{type(self).__name__} `{shorten(self.name)}` {self.dtype} {list(self.shape)}>"


@dataclass(frozen=True)
class _Wanted:
    """A block of one piece, as it stands there, and where it goes in the block of the whole array."""

    piece: Piece
    axes: Axes
    rows: slice | None

    def of(self, block: Array) -> Array:
        """Its place in the block of the whole array, axes as in the file; of a 0-d one, all of it."""
        return self.turned(block[...] if self.rows is None else block[self.rows])

    def turned(self, block: Array) -> Array:
        """Axes of the file for axes of the array, and back."""
        return block.swapaxes(-1, -2) if self.piece.swapped else block


class Reader:
    """Reads blocks of pieces, several requests at a time."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self._pool = ThreadPoolExecutor(_REQUESTS, thread_name_prefix="range")

    def block(self, wanted: Sequence[_Wanted], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """What is wanted as one array of `shape`: a view of a mapped file, or an array of its own."""
        if len(wanted) == 1:
            found = self._mapped(wanted[0], dtype)
            if found is not None:
                return wanted[0].turned(found)
        block = npy.empty(shape, dtype)
        requests: list[tuple[_Wanted, Run]] = []
        for one in wanted:
            found = self._mapped(one, dtype)
            if found is not None:
                one.of(block)[...] = found
            else:
                requests += [(one, run) for run in _runs(one, dtype)]
        call = self._pool.map if len(requests) > 1 else map
        try:
            for _ in call(lambda request: self._fetch(request, block), requests):
                pass
        except (RuntimeError, CancelledError, SourceError):
            self.files.check_open(requests[0][0].piece.file)  # what a pool says that was shut down meanwhile
            raise
        return block

    def requested(self, wanted: Sequence[_Wanted], dtype: np.dtype[Any]) -> int:
        return sum(
            run.stop - run.start
            for one in wanted
            if not self.files.is_here(one.piece.file)
            for run in _runs(one, dtype)
        )

    def _mapped(self, wanted: _Wanted, dtype: np.dtype[Any]) -> Array | None:
        piece = wanted.piece
        mapping = self.files.mapped(piece.file)
        if mapping is None:
            return None
        if mapping[: len(piece.head)] != piece.head:
            raise VerificationError(f"`{shorten(piece.file.path)}` does not begin as the manifest says")
        whole: Array = np.ndarray(piece.shape, dtype, mapping, piece.start)
        index: tuple[Any, ...] = (*(axis.as_slice for axis in wanted.axes), ...)
        found: Array = whole[index]
        return found

    def _fetch(self, request: tuple[_Wanted, Run], block: Array) -> None:
        """One range of a file, into its place."""
        wanted, run = request
        place: tuple[Any, ...] = (*run.place, ...)
        piece, part = wanted.piece, wanted.of(block)[place]
        start = piece.start + run.start
        if run.is_dense(block.dtype.itemsize) and part.flags.c_contiguous:
            self.files.read_into(piece.file, start, part.reshape(-1).view(np.uint8).data)
            return
        data = memoryview(bytearray(run.stop - run.start))
        self.files.read_into(piece.file, start, data)
        part[...] = run.items(data, block.dtype)

    def close(self) -> None:
        self.files.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _runs(wanted: _Wanted, dtype: np.dtype[Any]) -> Iterator[Run]:
    return runs(wanted.axes, wanted.piece.shape, dtype.itemsize, gap=GAP, longest=_LONGEST)
