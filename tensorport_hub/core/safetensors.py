"""The safetensors header and the sharded index, read as hostile input.

Format: 8 bytes little-endian header length, that many bytes of JSON, then the data; each tensor is named
with dtype, shape and `data_offsets` relative to the end of the header. Like the format's own reader
(https://github.com/huggingface/safetensors) this one demands that the tensors tile the data exactly: no
overlap, no hole, no byte left over; unlike a plain `json.loads` it refuses duplicate keys. Every violation
is a `CheckpointError` that names file and tensor; nothing else comes out of bad bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tensorport_hub.core.tensor import DTYPES, DType, TensorSpec, shorten
from tensorport_hub.errors import CheckpointError, TensorportError

HEADER_LIMIT = 100_000_000
"""Bytes of JSON that the format's own reader accepts."""

FIRST_READ = 128 * 1024
"""Bytes to ask for first: holds the header of most files, so that one range is enough."""

_LARGEST = 2**63 - 1
_RANK_LIMIT = 64
_DESCRIPTION = 4096
"""Characters above which a text of the metadata describes no tensor; real ones have some hundred."""


@dataclass(frozen=True)
class Header:
    """What a file's header states: its tensors in file order, and of the metadata what speaks of tensors."""

    file: str
    data_start: int
    tensors: tuple[TensorSpec, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


def header_stop(prefix: bytes, *, file: str, file_size: int) -> int:
    """Where the header ends and the data begins, from the file's first eight bytes.

    Raises:
        CheckpointError: the file is too short, or the length is absurd.
    """
    if len(prefix) < 8 or file_size < 8:
        raise CheckpointError(f"`{file}` is no safetensors file: expected at least 8 bytes, got {file_size}")
    (length,) = struct.unpack("<Q", prefix[:8])
    if length > HEADER_LIMIT:
        raise CheckpointError(
            f"header of `{file}` is too long: expected at most {HEADER_LIMIT} bytes, got {length}",
            hint="the file is probably not safetensors, or an LFS pointer in its place",
        )
    if length < 2:
        raise CheckpointError(f"header of `{file}` is too short: expected at least 2 bytes, got {length}")
    if 8 + length > file_size:
        raise CheckpointError(
            f"header of `{file}` runs past the end: expected {8 + length} bytes, got a file of {file_size}",
            hint="the file is truncated",
        )
    return 8 + int(length)


def parse_header(data: bytes | bytearray, *, file: str, file_size: int) -> Header:
    """Read a header from the first bytes of a file (`data` holds at least the whole header).

    Args:
        data: the file's first bytes, `header_stop(...)` of them or more.
        file: the name that specs and errors carry.
        file_size: bytes in the whole file.

    Raises:
        CheckpointError: anything at all is wrong.
    """
    stop = header_stop(bytes(data[:8]), file=file, file_size=file_size)
    if len(data) < stop:
        raise CheckpointError(f"header of `{file}` is cut: expected {stop} bytes, got {len(data)}")
    if data[8:9] != b"{":
        raise CheckpointError(f"header of `{file}` must start with `{{`, got `{bytes(data[8:9])!r}`")
    entries = _load_json(memoryview(data)[8:stop], what=f"header of `{file}`")
    metadata = _metadata(entries.pop("__metadata__", {}), file, len(entries))
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
    tensors = [_spec(name, entry, file, stop, shapes) for name, entry in entries.items()]
    tensors.sort(key=lambda t: (t.start, t.stop, t.name))
    _check_tiling(tensors, file, stop, file_size)
    return Header(file, stop, tuple(tensors), metadata)


def parse_index(data: bytes, *, file: str) -> dict[str, str]:
    """Read `*.safetensors.index.json`: tensor name -> file name, relative to the index's own folder.

    Raises:
        CheckpointError: not JSON, no `weight_map`, or a file name that leaves the folder.
    """
    index = _load_json(data, what=f"index `{file}`")
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"index `{file}` has no `weight_map`: expected tensor names and file names")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain_path(shard):
            raise CheckpointError(
                f"index `{file}` places `{shorten(tensor)}` in `{shorten(shard)}`: expected a `.safetensors`"
                " file below the index's own folder"
            )
    return dict(weight_map)


def _is_plain_path(path: str) -> bool:
    parts = path.split("/")
    return (
        path.endswith(".safetensors")
        and len(path) <= 1024
        and "\\" not in path
        and ":" not in path
        and all(part not in ("", ".", "..") for part in parts)
        and all(ord(c) >= 32 and ord(c) != 127 and not _is_surrogate(c) for c in path)
    )


def _is_surrogate(char: str) -> bool:
    return 0xD800 <= ord(char) <= 0xDFFF


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise CheckpointError(f"key `{shorten(key)}` stands twice")
        found[key] = value
    return found


def _refuse_constant(word: str) -> None:
    raise CheckpointError(f"number `{word}` is no JSON")


def _load_json(data: bytes | memoryview, *, what: str) -> dict[str, Any]:
    try:
        value = json.loads(str(data, "utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except TensorportError as error:
        raise CheckpointError(f"{what}: {error.message}") from None
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{what} is not UTF-8: byte {error.start} is `{data[error.start]:#04x}`"
        ) from None
    except RecursionError:
        raise CheckpointError(f"{what} is nested too deeply for JSON of its kind") from None
    except ValueError as error:
        raise CheckpointError(f"{what} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{what}: expected a JSON object, got {type(value).__name__}")
    return value


def _metadata(value: object, file: str, tensors: int) -> dict[str, str]:
    """The entries that describe a tensor (torchao's `_type`): nothing else is asked for, and all of it would
    be held as long as the plan."""
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise CheckpointError(f"`__metadata__` of `{file}`: expected names with texts")
    kept = {k: v for k, v in value.items() if len(v) <= _DESCRIPTION and '"_type"' in v}
    total, most = sum(len(k) + len(v) for k, v in kept.items()), _DESCRIPTION * (tensors + 16)
    if total > most:
        raise CheckpointError(
            f"`__metadata__` of `{file}` is absurdly large: expected at most {most} characters for {tensors}"
            f" tensors, got {total}"
        )
    return kept


def _spec(
    name: str, entry: object, file: str, data_start: int, shapes: dict[tuple[int, ...], tuple[int, ...]]
) -> TensorSpec:
    """A tensor as its entry states it; equal `shapes` are one object, for there are many tensors and few."""
    where = f"tensor `{shorten(name)}` of `{file}`"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: expected `dtype`, `shape` and `data_offsets`, got {shorten(entry)}")
    if not name.isascii() and any(_is_surrogate(c) for c in name):
        raise CheckpointError(f"{where}: the name is no Unicode text (a lone surrogate)")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise CheckpointError(f"{where}: dtype `{shorten(entry['dtype'])}` is unknown")
    shape = entry["shape"]
    if not isinstance(shape, list) or len(shape) > _RANK_LIMIT or not all(_is_size(n) for n in shape):
        raise CheckpointError(f"{where}: expected a shape of sizes from 0, got {shorten(shape)}")
    offsets = entry["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(n) for n in offsets):
        raise CheckpointError(f"{where}: expected two `data_offsets` from 0, got {shorten(offsets)}")
    start, stop = offsets
    if stop < start or stop - start != _nbytes(dtype, shape, where):
        raise CheckpointError(
            f"{where}: {dtype} {shorten(shape)} takes {_nbytes(dtype, shape, where)} bytes,"
            f" `data_offsets` {shorten(offsets)} hold {stop - start}"
        )
    known = shapes.setdefault(tuple(shape), tuple(shape))
    return TensorSpec(name, dtype, known, file, data_start + start, data_start + stop)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST


def _nbytes(dtype: DType, shape: list[int], where: str) -> int:
    nbits = dtype.nbits
    for size in shape:
        nbits *= max(size, 1)  # an empty axis hides no overflow: numpy refuses such shapes as well
        if nbits > _LARGEST * 8:
            raise CheckpointError(f"{where}: {dtype} {shorten(shape)} overflows 2^63 bytes")
    if 0 in shape:
        return 0
    if nbits % 8:
        raise CheckpointError(f"{where}: {dtype} {shorten(shape)} ends inside a byte")
    return nbits // 8


def _check_tiling(tensors: list[TensorSpec], file: str, data_start: int, file_size: int) -> None:
    at = data_start
    before = "the header"
    for tensor in tensors:
        if tensor.start != at:
            fault = "overlaps" if tensor.start < at else "leaves a hole after"
            raise CheckpointError(
                f"tensor `{shorten(tensor.name)}` of `{file}` {fault} {before}: expected it to start at"
                f" byte {at}, got {tensor.start}"
            )
        at, before = tensor.stop, f"`{shorten(tensor.name)}`"
    if at != file_size:
        fault = "the file is truncated" if at > file_size else "bytes follow that no tensor owns"
        raise CheckpointError(
            f"`{file}` has the wrong size: its header describes {at} bytes, got {file_size}", hint=fault
        )
