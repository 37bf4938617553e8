"""Xorbs: a sequence of packed chunks, each after an 8-byte header.

Header: version u8 (0), packed length u24, scheme u8, unpacked length u24, all little-endian. Schemes: 0 as
is, 1 an LZ4 frame, 2 the bytes grouped by their place in each 4 (all first bytes, then all second, ...;
when the length is no multiple of 4 the first groups are one longer) and then an LZ4 frame. After the last
chunk come nothing, or a footer that starts with `XETBLOB` and its length as u32 (0: the client leaves the
footer out). Chunks are 1 byte to 128 KiB; a xorb is at most 64 MiB as sent and 8,192 chunks.

Rules: nothing here trusts a header: lengths are bounded before a byte is unpacked, and one chunk at a time
is unpacked. Source: the Xet protocol specification ("Xorb formation & serialization format").
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import lz4.frame
import numpy as np
import numpy.typing as npt

from tensorport_hub.devhub.xet.errors import Refused
from tensorport_hub.devhub.xet.hashing import Buffer, chunk_hash

CHUNK_MAX_NBYTES = 128 << 10
XORB_MAX_CHUNKS = 8192
XORB_MAX_NBYTES = (64 << 20) + (1 << 20)  # 64 MiB of chunks that do not compress, their headers, a footer

_HEADER_NBYTES = 8
_FOOTER_TAG = b"XETBLOB"
_SCHEME_PLAIN, _SCHEME_LZ4, _SCHEME_GROUPED_LZ4 = 0, 1, 2
_SPAN_NBYTES = 1 << 20  # packed bytes read from a file at a time

Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """Where the chunks of a xorb lie: n + 1 offsets as stored (headers included) and n + 1 when unpacked."""

    packed: Offsets
    unpacked: Offsets

    @property
    def count(self) -> int:
        return len(self.packed) - 1

    def nbytes(self, start: int, stop: int) -> int:
        """Unpacked bytes of the chunks [start, stop)."""
        return int(self.unpacked[stop] - self.unpacked[start])


@dataclass(frozen=True)
class Xorb:
    """A stored xorb: its file and the layout of its chunks."""

    path: Path
    layout: Layout

    def chunks(self, start: int, stop: int) -> Iterator[Buffer]:
        """The unpacked chunks [start, stop), in order; about 1 MiB of the file is held at a time."""
        offsets = self.layout.packed
        with self.path.open("rb", buffering=0) as file:
            while start < stop:
                end = int(np.searchsorted(offsets, offsets[start] + _SPAN_NBYTES, side="right")) - 1
                end = min(max(end, start + 1), stop)
                base, limit = int(offsets[start]), int(offsets[end])
                span = memoryview(os.pread(file.fileno(), limit - base, base))
                if len(span) != limit - base:
                    raise OSError(f"xorb `{self.path.name}`: expected {limit} bytes, the file ends before")
                for i in range(start, end):
                    yield unpack(span[int(offsets[i]) - base : int(offsets[i + 1]) - base])
                start = end


def scan(body: memoryview) -> Layout:
    """The layout of a serialized xorb, from its headers and tail. Raises `Refused`."""
    packed, unpacked = [0], [0]
    position = 0
    # a header begins with version 0, a footer with "X"
    while len(body) - position >= _HEADER_NBYTES and body[position] != _FOOTER_TAG[0]:
        packed_nbytes, _, nbytes = _header(body[position : position + _HEADER_NBYTES], len(packed) - 1)
        position += _HEADER_NBYTES + packed_nbytes
        if position > len(body):
            raise Refused(f"xorb: chunk {len(packed) - 1} ends at byte {position}, the body has {len(body)}")
        packed.append(position)
        unpacked.append(unpacked[-1] + nbytes)
        if len(packed) > XORB_MAX_CHUNKS + 1:
            raise Refused(f"xorb: more than {XORB_MAX_CHUNKS} chunks")
    _check_tail(body[position:])
    if position == 0:
        raise Refused("xorb: no chunks")
    return Layout(np.array(packed, dtype=np.int64), np.array(unpacked, dtype=np.int64))


def chunk_hashes(body: memoryview, layout: Layout) -> bytes:
    """The concatenated hashes of all chunks: every one is unpacked. Raises `Refused`."""
    offsets = layout.packed.tolist()
    return b"".join([chunk_hash(unpack(body[start:stop])) for start, stop in pairwise(offsets)])


def unpack(chunk: memoryview) -> Buffer:
    """The bytes of one stored chunk (header and packed data). Raises `Refused`."""
    packed_nbytes, scheme, nbytes = _header(chunk[:_HEADER_NBYTES], None)
    data = chunk[_HEADER_NBYTES:]
    if len(data) != packed_nbytes:
        raise Refused(f"chunk: expected {packed_nbytes} packed bytes, got {len(data)}")
    if scheme == _SCHEME_PLAIN:
        if packed_nbytes != nbytes:
            raise Refused(f"chunk: stored as is, {packed_nbytes} bytes, but said to unpack to {nbytes}")
        return data
    grouped = _unlz4(data, nbytes)
    return grouped if scheme == _SCHEME_LZ4 else _ungroup(grouped)


def _header(header: memoryview, index: int | None) -> tuple[int, int, int]:
    """(packed length, scheme, unpacked length) of a chunk header."""
    where = "chunk" if index is None else f"xorb: chunk {index}"
    if len(header) != _HEADER_NBYTES:
        raise Refused(f"{where}: expected a header of {_HEADER_NBYTES} bytes, got {len(header)}")
    low, high = struct.unpack("<II", header)
    version, packed_nbytes, scheme, nbytes = low & 0xFF, low >> 8, high & 0xFF, high >> 8
    if version != 0:
        raise Refused(f"{where}: expected header version 0, got {version}")
    if scheme > _SCHEME_GROUPED_LZ4:
        raise Refused(f"{where}: unknown compression scheme {scheme}")
    if not 0 < nbytes <= CHUNK_MAX_NBYTES:
        raise Refused(f"{where}: expected 1..{CHUNK_MAX_NBYTES} unpacked bytes, got {nbytes}")
    return packed_nbytes, scheme, nbytes


def _check_tail(tail: memoryview) -> None:
    """After the chunks: nothing, or a footer and its length."""
    if not tail:
        return
    if tail[: len(_FOOTER_TAG)] != _FOOTER_TAG:
        raise Refused(f"xorb: {len(tail)} stray bytes after the last chunk")
    (nbytes,) = struct.unpack("<I", tail[-4:])
    if nbytes != len(tail) - 4:
        raise Refused(
            f"xorb: the footer says it has {nbytes} bytes, got {len(tail) - 4} after the last chunk"
        )


def _unlz4(data: memoryview, nbytes: int) -> bytes:
    """One whole LZ4 frame that unpacks to exactly `nbytes`."""
    context = lz4.frame.create_decompression_context()
    try:
        # one byte more than wanted: a frame that is too long shows itself without being unpacked whole
        plain, used, ended = lz4.frame.decompress_chunk(context, data, max_length=nbytes + 1)
    except RuntimeError as error:
        raise Refused(f"chunk: not an LZ4 frame ({error})") from error
    if len(plain) != nbytes or used != len(data) or not ended:
        got = f"{len(plain)} bytes" + ("" if ended else ", the frame does not end")
        raise Refused(f"chunk: expected a frame of {len(data)} bytes that unpacks to {nbytes}, got {got}")
    return bytes(plain)


def _ungroup(grouped: bytes) -> memoryview:
    """Undo the grouping by 4: group k holds the bytes k, k + 4, k + 8, ..."""
    source = np.frombuffer(grouped, dtype=np.uint8)
    plain = np.empty_like(source)
    start = 0
    for k in range(4):
        stop = start + (len(source) - k + 3) // 4
        plain[k::4] = source[start:stop]
        start = stop
    return plain.data
