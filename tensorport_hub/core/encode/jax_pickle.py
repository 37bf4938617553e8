"""`jax-pickle`: a dict of flat names to numpy arrays, in pickle protocol 5 opcodes that are written here.

An array is `numpy.ndarray(shape, numpy.dtype(kind), bytearray)`: the names are those of every numpy, the
bytes are the array's own memory without a copy, and it can be written to. bfloat16 and 8-bit floats are
ml_dtypes', which JAX brings along. There are no frames and no memo, and no pickle is ever read by this tool:
reading one may run any code.

Source: CPython `Lib/pickletools.py` (opcodes and their arguments; all lengths little-endian).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from tensorport_hub.core.encode.frame import Encoding, Entry, Frame, whole

_PROTO, _STOP = b"\x80\x05", b"."
_EMPTY_DICT, _MARK, _SETITEMS = b"}", b"(", b"u"
_TUPLE, _EMPTY_TUPLE, _TUPLE1, _TUPLE3 = b"t", b")", b"\x85", b"\x87"
_STACK_GLOBAL, _REDUCE = b"\x93", b"R"


def _text(value: str) -> bytes:
    """SHORT_BINUNICODE or BINUNICODE."""
    data = value.encode("utf-8")
    return (
        b"\x8c" + bytes([len(data)]) if len(data) < 1 << 8 else b"X" + struct.pack("<I", len(data))
    ) + data


def _integer(value: int) -> bytes:
    """BININT, or LONG1 above 31 bits."""
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x09" + struct.pack("<Q", value) + b"\0"


def _named(module: str, name: str) -> bytes:
    return _text(module) + _text(name) + _STACK_GLOBAL


def _dtype(entry: Entry) -> bytes:
    """`numpy.dtype(...)` of a descriptor, or of a scalar type of ml_dtypes."""
    kind = entry.dtype.numpy
    of_its_own = kind.type.__module__ == "ml_dtypes"
    argument = _named("ml_dtypes", kind.name) if of_its_own else _text(kind.str)
    return _named("numpy", "dtype") + argument + _TUPLE1 + _REDUCE


def _before(entry: Entry) -> bytes:
    """Everything of an item before its bytes."""
    shape = _MARK + b"".join(map(_integer, entry.shape)) + _TUPLE if entry.shape else _EMPTY_TUPLE
    data = b"\x96" + struct.pack("<Q", entry.nbytes)  # BYTEARRAY8
    return _text(entry.name) + _named("numpy", "ndarray") + shape + _dtype(entry) + data


_AFTER = _TUPLE3 + _REDUCE


def _frame(entries: Sequence[Entry]) -> Frame:
    segments = []
    before = _PROTO + _EMPTY_DICT + _MARK
    for number, entry in enumerate(entries):
        segments.append(whole(entry, number, before + _before(entry)))
        before = _AFTER
    return Frame(tuple(segments), before + _SETITEMS + _STOP)


JAX_PICKLE = Encoding(
    "jax-pickle",
    container=True,
    cuts=True,
    base=16,
    overhead=lambda entry: len(_before(entry)) + len(_AFTER),
    frame=_frame,
    path=lambda shard, shards: f"shard_{shard:03d}.pkl",
)
