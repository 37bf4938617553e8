"""`safetensors`: a JSON header, then the tensors in its order without holes; names as transformers has them.

Tensors keep the plan's order, which streams; the library's own order serves alignment, so a shard is closed
where the next tensor would not stand at a multiple of its element's size (the data starts at one of 8). No
tensor is cut, because no reader would join it again. Files are numbered and `model.safetensors.index.json`
says which holds what, also where there is only one: transformers reads both.

Source: the safetensors format (README of huggingface/safetensors); transformers `modeling_utils.py`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tensorport_hub.core.encode.frame import Encoding, Entry, Frame, whole

INDEX = "model.safetensors.index.json"
_ALIGN = 8
_METADATA = {"__metadata__": {"format": "pt"}}
_OFFSETS = 2 * 20


def is_aligned(entry: Entry, at: int) -> bool:
    """Whether an entry may stand at byte `at` of the data."""
    return at % entry.dtype.itemsize == 0


def _described(entry: Entry, start: int) -> dict[str, Any]:
    shape = [*entry.shape]
    if entry.dtype.packed:
        shape[-1] = shape[-1] * 8 // entry.dtype.nbits
    return {"dtype": entry.dtype.name, "shape": shape, "data_offsets": [start, start + entry.nbytes]}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def _frame(entries: Sequence[Entry]) -> Frame:
    header: dict[str, Any] = dict(_METADATA)
    start = 0
    for entry in entries:
        header[entry.name] = _described(entry, start)
        start += entry.nbytes
    text = _json(header)
    text += b" " * (-len(text) % _ALIGN)
    head = struct.pack("<Q", len(text)) + text
    return Frame(tuple(whole(entry, i, b"" if i else head) for i, entry in enumerate(entries)))


def index(files: Iterable[tuple[str, Sequence[Entry]]]) -> bytes:
    """The index of files, by name: total size of all tensors, and which file holds which."""
    weight_map: dict[str, str] = {}
    total = 0
    for file, entries in files:
        weight_map |= dict.fromkeys((entry.name for entry in entries), file)
        total += sum(entry.nbytes for entry in entries)
    value: Mapping[str, Any] = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).encode("utf-8") + b"\n"


SAFETENSORS = Encoding(
    "safetensors",
    container=True,
    cuts=False,
    base=8 + _ALIGN + len(_json(_METADATA)),
    overhead=lambda entry: len(_json({entry.name: _described(entry, 0)})) + _OFFSETS,
    frame=_frame,
    path=lambda shard, shards: f"model-{shard + 1:05d}-of-{shards:05d}.safetensors",
)
