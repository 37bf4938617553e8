"""A range of an output tensor's items, from stored bytes to the bytes of the file: decode, round, count.

Work goes in tiles that fit a processor's cache: each tile is decoded, rounded and handed on before the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tensorport_hub.core.decode.cast import Losses, canonical_nans, cast, clip_infinities
from tensorport_hub.core.decode.decoder import Bytes, Dense
from tensorport_hub.core.recipe import Recipe
from tensorport_hub.core.strips import Strip, cut

TILE = 1 << 19
"""Items decoded at a time: 1 MiB of bfloat16, and up to 8 MiB of scratch."""


def render(
    recipe: Recipe,
    start: int,
    stop: int,
    inputs: Sequence[tuple[Bytes, Strip]],
    *,
    saturate: bool,
    losses: Losses,
) -> Iterator[memoryview]:
    """Yield the file's bytes for items `start:stop`, in order; each view is valid until the next.

    Args:
        inputs: for each input of the decoder, bytes that hold what it needs, and which these are, from that
            tensor's first byte.
        saturate: overflows become the largest finite value instead of an infinity.
        losses: receives what rounding cost.
    """
    decoder = recipe.decoder
    if not recipe.casts and decoder.scheme == "plain":
        (data, held) = inputs[0]
        yield cut(held, data, decoder.needs(start, stop)[0]).data
        return
    tile = max(TILE // decoder.grain, 1) * decoder.grain
    for first in range(start, stop, tile):
        last = min(first + tile, stop)
        needs = decoder.needs(first, last)
        stored = [cut(held, data, need) for (data, held), need in zip(inputs, needs, strict=True)]
        yield _rounded(recipe, stored, first, last, saturate, losses).view(np.uint8).data


def _rounded(
    recipe: Recipe, stored: Sequence[Bytes], start: int, stop: int, saturate: bool, losses: Losses
) -> Dense:
    """Items `start:stop`, by the layout's shorter way where it has one for them."""
    decoder = recipe.decoder
    found = decoder.rounded(stored, start, stop, recipe.dtype)
    if found is not None:
        return found
    values, overflow = decoder.decode(stored, start, stop)
    losses.overflow += overflow
    if recipe.casts:
        values, lost = cast(values, decoder.exact, recipe.dtype, saturate=saturate)
        losses.add(lost)
    elif decoder.exact.name in ("F16", "BF16", "F32"):
        canonical_nans(values, decoder.exact)
    if overflow and saturate:
        clip_infinities(values, recipe.dtype)  # all of them are the decoder's: none was stored
    return values
