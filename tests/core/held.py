"""Whole small checkpoints in memory: arrays in, recipes and decoded arrays out, at any cuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tensorport_hub.core.decode.decoder import Decoder
from tensorport_hub.core.decode.table import bind
from tensorport_hub.core.detect import Checkpoint, is_fact
from tensorport_hub.core.recipe import Recipe, recipes
from tensorport_hub.core.strips import contiguous, cut
from tests.core.samples import specs

Arrays = Mapping[str, npt.NDArray[Any]]

NAMES = {
    np.dtype(np.uint8): "U8",
    np.dtype(np.int8): "I8",
    np.dtype(np.int32): "I32",
    np.dtype(np.int64): "I64",
    np.dtype(np.float16): "F16",
    np.dtype(np.float32): "F32",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(ml_dtypes.float8_e4m3fn): "F8_E4M3",
    np.dtype(ml_dtypes.float8_e5m2): "F8_E5M2",
}


def checkpoint(arrays: Arrays, config: Mapping[str, Any] | None = None) -> Checkpoint:
    """The arrays as stored tensors, with the facts that detection asks for."""
    tensors = specs([(name, NAMES[array.dtype], array.shape) for name, array in arrays.items()])
    facts = {t.name: arrays[t.name].tobytes() for t in tensors if is_fact(t)}
    configs = {"config.json": {"quantization_config": dict(config or {})}}
    return Checkpoint({t.name: t for t in tensors}, facts, configs)


def made(arrays: Arrays, config: Mapping[str, Any] | None = None) -> dict[str, Recipe]:
    """Recipes by output name."""
    return {recipe.name: recipe for recipe in recipes(checkpoint(arrays, config)).made}


def decoded(arrays: Arrays, recipe: Recipe, rows: Sequence[int] = ()) -> npt.NDArray[Any]:
    """The output, decoded in pieces cut before `rows`, from no more bytes than each piece needs.

    The decoder is one that was bound again, as a plan read back would.
    """
    decoder = bind(recipe.decoder.scheme, recipe.decoder.inputs, {**recipe.decoder.params})
    assert decoder == recipe.decoder
    stored = [np.frombuffer(arrays[t.name].tobytes(), np.uint8) for t in decoder.inputs]
    width = decoder.items // decoder.shape[0]
    pieces = []
    for first, last in pairwise(sorted({0, *rows, decoder.shape[0]})):
        pieces.append(decoded_items(decoder, stored, first * width, last * width)[0])
    return np.concatenate(pieces).reshape(decoder.shape)


def decoded_items(
    decoder: Decoder, stored: Sequence[npt.NDArray[np.uint8]], start: int, stop: int
) -> tuple[npt.NDArray[Any], int]:
    """Items and their overflows, panel by panel, from a copy of the bytes that each range needs."""
    pieces, overflows = [np.empty(0, decoder.exact.numpy)], 0
    while start < stop:
        end = min(stop, (start // decoder.panel + 1) * decoder.panel)
        given = taken(decoder, stored, start, end)
        exact = decoder.settled(given[1:], start, end)
        values, overflow = exact.decode(taken(exact, stored, start, end), start, end)
        assert values.shape == (end - start,)
        assert values.dtype == decoder.exact.numpy
        pieces.append(values)
        start, overflows = end, overflows + overflow
    return np.concatenate(pieces), overflows


def taken(
    decoder: Decoder, stored: Sequence[npt.NDArray[np.uint8]], start: int, stop: int
) -> list[npt.NDArray[np.uint8]]:
    """Of each stored tensor, what items `start:stop` need."""
    needs = decoder.needs(start, stop)
    return [
        cut(contiguous(0, data.size), data, need).copy() for data, need in zip(stored, needs, strict=True)
    ]
