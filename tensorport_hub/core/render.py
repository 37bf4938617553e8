"""A range of a decoder's items, from stored bytes to the stored items of all that is made of them.

Work goes in tiles that fit a processor's cache: each tile is decoded once, and for each output rounded,
counted and handed on before the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tensorport_hub.core.arrange import Choice
from tensorport_hub.core.decode.cast import Losses, canonical_nans, cast, clip_infinities
from tensorport_hub.core.decode.decoder import Bytes, Decoder, Dense
from tensorport_hub.core.strips import Strip, cut
from tensorport_hub.core.tensor import DType

TILE = 1 << 19
"""Items decoded at a time: 1 MiB of bfloat16, and up to 8 MiB of scratch."""


def render(
    decoder: Decoder,
    dtype: DType,
    start: int,
    stop: int,
    inputs: Sequence[tuple[Bytes, Strip]],
    outputs: Sequence[tuple[Choice | None, Losses]],
    *,
    saturate: bool,
) -> Iterator[list[Dense]]:
    """Decode items `start:stop`, in order; each list is valid until the next.

    Args:
        decoder: what decodes them.
        dtype: what they are rounded to.
        inputs: for each input of the decoder, bytes that hold what it needs, and which these are, from that
            tensor's first byte.
        outputs: which of the items each output takes (None: all), and what receives the cost of rounding.
        saturate: overflows become the largest finite value instead of an infinity.

    Yields:
        The next stored items of each output, 1-D.
    """
    if decoder.scheme == "plain" and dtype == decoder.exact:
        (data, held) = inputs[0]
        items = cut(held, data, decoder.needs(start, stop)[0]).view(f"V{dtype.itemsize}")
        yield [items if choice is None else choice.among(items, start) for choice, _ in outputs]
        return
    tile = max(TILE // decoder.grain, 1) * decoder.grain
    for first in range(start, stop, tile):
        last = min(first + tile, stop)
        needs = decoder.needs(first, last)
        stored = [cut(held, data, need) for (data, held), need in zip(inputs, needs, strict=True)]
        yield _rounded(decoder, dtype, stored, first, last, outputs, saturate)


def _rounded(
    decoder: Decoder,
    dtype: DType,
    stored: Sequence[Bytes],
    start: int,
    stop: int,
    outputs: Sequence[tuple[Choice | None, Losses]],
    saturate: bool,
) -> list[Dense]:
    """Items `start:stop`, by the layout's shorter way where it has one for them."""
    found = decoder.rounded(stored, start, stop, dtype)
    if found is not None:
        return [found if choice is None else choice.among(found, start) for choice, _ in outputs]
    values, overflow = decoder.decode(stored, start, stop)
    if len(outputs) == 1 and outputs[0][0] is None:
        return [_round(values, decoder, dtype, overflow, outputs[0][1], saturate)]
    made = []
    for choice, losses in outputs:
        own = values.copy() if choice is None else choice.among(values, start)
        # where any overflowed, no infinity was stored
        over = int(np.count_nonzero(np.isinf(own))) if overflow else 0
        made.append(_round(own, decoder, dtype, over, losses, saturate))
    return made


def _round(
    values: Dense, decoder: Decoder, dtype: DType, overflow: int, losses: Losses, saturate: bool
) -> Dense:
    losses.overflow += overflow
    if dtype != decoder.exact:
        values, lost = cast(values, decoder.exact, dtype, saturate=saturate)
        losses.add(lost)
    elif decoder.exact.name in ("F16", "BF16", "F32"):
        canonical_nans(values, decoder.exact)
    if overflow and saturate:
        clip_infinities(values, dtype)  # all of them are the decoder's: none was stored
    return values
