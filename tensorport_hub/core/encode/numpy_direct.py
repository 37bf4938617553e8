"""`numpy-direct`: a .npy file for each tensor; see `core/npy.py`."""

from __future__ import annotations

from collections.abc import Sequence

from tensorport_hub.core import npy
from tensorport_hub.core.encode.frame import Encoding, Entry, Frame, whole


def _frame(entries: Sequence[Entry]) -> Frame:
    (entry,) = entries
    return Frame((whole(entry, 0, npy.header(entry.dtype, entry.shape)),))


NUMPY_DIRECT = Encoding(
    "numpy-direct",
    container=False,
    cuts=True,
    base=0,
    overhead=lambda entry: len(npy.header(entry.dtype, entry.shape)),
    frame=_frame,
    path=lambda shard, shards: f"shard_{shard:03d}/",
)
