"""`msgpack`: one map of flat names to arrays, as `flax.serialization.msgpack_restore` reads it.

An array is extension type 1 around the msgpack triple (shape, name of the dtype, bytes). One above 1 GiB is
a map instead: `__msgpack_chunked_array__`, its `shape`, and 1-D `chunks` by number that follow one another;
they are cut between rows here, so that each row stands in one piece. flax joins any chunks.

Source: flax `serialization.py`; the MessagePack specification (all lengths big-endian, the shortest form).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from math import prod

from tensorport_hub.core.encode.frame import Encoding, Entry, Frame, Segment, whole
from tensorport_hub.core.tensor import shorten
from tensorport_hub.errors import LimitError

CHUNK = 1 << 30
"""Most bytes of one array: flax's own limit."""

_NDARRAY = 1
_OVERHEAD = 128
"""More than dtype, lengths and the map of a chunk take beside the name and the shape."""


def _text(value: str) -> bytes:
    data = value.encode("utf-8")
    if len(data) < 32:
        return bytes([0xA0 | len(data)]) + data
    if len(data) < 1 << 8:
        return struct.pack(">BB", 0xD9, len(data)) + data
    if len(data) < 1 << 16:
        return struct.pack(">BH", 0xDA, len(data)) + data
    return struct.pack(">BI", 0xDB, len(data)) + data


def _integer(value: int) -> bytes:
    if value < 1 << 7:
        return bytes([value])
    if value < 1 << 8:
        return struct.pack(">BB", 0xCC, value)
    if value < 1 << 16:
        return struct.pack(">BH", 0xCD, value)
    if value < 1 << 32:
        return struct.pack(">BI", 0xCE, value)
    return struct.pack(">BQ", 0xCF, value)


def _head_of_map(count: int) -> bytes:
    if count < 16:
        return bytes([0x80 | count])
    return struct.pack(">BH", 0xDE, count) if count < 1 << 16 else struct.pack(">BI", 0xDF, count)


def _head_of_list(count: int) -> bytes:
    return bytes([0x90 | count]) if count < 16 else struct.pack(">BH", 0xDC, count)


def _head_of_bytes(size: int) -> bytes:
    if size < 1 << 8:
        return struct.pack(">BB", 0xC4, size)
    return struct.pack(">BH", 0xC5, size) if size < 1 << 16 else struct.pack(">BI", 0xC6, size)


def _head_of_extension(size: int) -> bytes:
    if size in (1, 2, 4, 8, 16):
        return bytes([0xD4 + size.bit_length() - 1, _NDARRAY])
    if size < 1 << 8:
        return struct.pack(">BBB", 0xC7, size, _NDARRAY)
    if size < 1 << 16:
        return struct.pack(">BHB", 0xC8, size, _NDARRAY)
    return struct.pack(">BIB", 0xC9, size, _NDARRAY)


def _head_of_array(dtype: str, shape: Sequence[int], nbytes: int) -> bytes:
    inner = (
        _head_of_list(3)
        + _head_of_list(len(shape))
        + b"".join(map(_integer, shape))
        + _text(dtype)
        + _head_of_bytes(nbytes)
    )
    return _head_of_extension(len(inner) + nbytes) + inner


def _dtype(entry: Entry) -> str:
    """numpy's name of it, and ml_dtypes' where numpy has none: flax looks it up there."""
    return entry.dtype.numpy.name


def _frame(entries: Sequence[Entry]) -> Frame:
    segments: list[Segment] = []
    before = _head_of_map(len(entries))
    for number, entry in enumerate(entries):
        before += _text(entry.name)
        if entry.nbytes <= CHUNK:
            segments.append(
                whole(entry, number, before + _head_of_array(_dtype(entry), entry.shape, entry.nbytes))
            )
        else:
            segments += _chunks(entry, number, before)
        before = b""
    return Frame(tuple(segments), before)


def _chunks(entry: Entry, number: int, before: bytes) -> Iterator[Segment]:
    row_items = prod(entry.shape[1:])
    row_nbytes = row_items * entry.dtype.itemsize
    if row_nbytes > CHUNK:
        raise LimitError(
            f"one row of `{shorten(entry.name)}` does not fit an array in msgpack: expected at most {CHUNK}"
            f" bytes, got {row_nbytes}",
            hint="choose another `--format`",
        )
    rows = CHUNK // row_nbytes
    cuts = range(0, entry.rows, rows)
    before += _head_of_map(3) + _text("__msgpack_chunked_array__") + b"\xc3"
    before += _text("shape") + _head_of_map(len(entry.shape))
    before += b"".join(_text(str(axis)) + _integer(size) for axis, size in enumerate(entry.shape))
    before += _text("chunks") + _head_of_map(len(cuts))
    for chunk, start in enumerate(cuts):
        stop = min(start + rows, entry.rows)
        nbytes = (stop - start) * row_nbytes
        head = _head_of_array(_dtype(entry), [(stop - start) * row_items], nbytes)
        yield Segment(before + _text(str(chunk)) + head, nbytes, number, (start, stop))
        before = b""


def _overhead(entry: Entry) -> int:
    chunks = entry.nbytes // (CHUNK // 2) + 1  # a chunk of whole rows holds at least half of what it may
    return len(entry.name.encode()) + 24 * len(entry.shape) + _OVERHEAD * chunks


MSGPACK = Encoding(
    "msgpack",
    container=True,
    cuts=True,
    base=8,
    overhead=_overhead,
    frame=_frame,
    path=lambda shard, shards: f"shard_{shard:03d}.msgpack",
)
