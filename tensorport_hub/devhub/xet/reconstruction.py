"""How a client puts a byte range of a file together: the answer of the reconstruction endpoint.

Terms in file order, cut to whole chunks around the range, and for each xorb the stored byte ranges to
fetch: terms that touch or overlap in a xorb share one. `offset_into_first_range` is what to drop before
the range begins; the client drops what comes after it. Chunk ranges are half-open, `url_range` is
inclusive.

Source: the Xet protocol specification ("Download protocol", `QueryReconstructionResponse`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tensorport_hub.devhub.xet.blob import Slice, XetBlob
from tensorport_hub.devhub.xet.hashing import hash_text
from tensorport_hub.devhub.xet.xorb import Layout

Grant = Callable[[str, int, int], str]  # xorb, first and last stored byte -> URL


def reconstruction(blob: XetBlob, start: int, stop: int, grant: Grant) -> dict[str, Any]:
    """The JSON answer for the bytes [start, stop) of a file; URLs come from `grant`."""
    slices = list(blob.slices(start, stop))
    xorbs: dict[bytes, list[Slice]] = {}
    for piece in slices:
        xorbs.setdefault(piece.term.xorb, []).append(piece)
    return {
        "offset_into_first_range": slices[0].skip if slices else 0,
        "terms": [
            {
                "hash": hash_text(piece.term.xorb),
                "unpacked_length": piece.nbytes,
                "range": {"start": piece.start, "end": piece.stop},
            }
            for piece in slices
        ],
        "fetch_info": {
            hash_text(xorb): [
                _fetch(hash_text(xorb), pieces[0].xorb.layout, first, last, grant)
                for first, last in _runs([(piece.start, piece.stop) for piece in pieces])
            ]
            for xorb, pieces in xorbs.items()
        },
    }


def _runs(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The union of half-open ranges, as few ranges as can be."""
    runs: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if runs and start <= runs[-1][1]:
            runs[-1] = runs[-1][0], max(stop, runs[-1][1])
        else:
            runs.append((start, stop))
    return runs


def _fetch(xorb: str, layout: Layout, start: int, stop: int, grant: Grant) -> dict[str, Any]:
    first, last = int(layout.packed[start]), int(layout.packed[stop]) - 1
    return {
        "range": {"start": start, "end": stop},
        "url": grant(xorb, first, last),
        "url_range": {"start": first, "end": last},
    }
