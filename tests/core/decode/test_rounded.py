"""The shorter ways of layouts (`Decoder.rounded`) against the ordinary one: equal bytes, equal losses.

The ordinary way is what `render` does where a decoder knows no shorter one; the decoders' own tests hold that
to the formats' formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.decode.awq import AwqGemm
from tensorport_hub.core.decode.awq_gemv import AwqGemv
from tensorport_hub.core.decode.bnb4 import Bnb4
from tensorport_hub.core.decode.cast import Losses
from tensorport_hub.core.decode.decoder import Decoder
from tensorport_hub.core.decode.float8 import Float8
from tensorport_hub.core.decode.gptq import Gptq, GptqOrdered
from tensorport_hub.core.decode.modelopt_int4 import ModelOptInt4
from tensorport_hub.core.decode.mxfp4 import Mxfp4
from tensorport_hub.core.decode.nvfp4 import Nvfp4, Nvfp4Over, Nvfp4Times
from tensorport_hub.core.decode.nvfp4_bmm import Nvfp4Bmm
from tensorport_hub.core.decode.packed_int import PackedInt
from tensorport_hub.core.recipe import Recipe
from tensorport_hub.core.render import render
from tensorport_hub.core.strips import contiguous
from tensorport_hub.core.tensor import DTYPES
from tests.core.samples import specs

Stored = list[np.ndarray]


def _float8(codes: str, scale: str, rows: int, cols: int) -> Callable[[], Decoder]:
    grid = (-(-6 // rows), -(-96 // cols))
    tensors = (("w", "U8", (6, 96)), ("scale", scale, grid))
    return lambda: Float8(*specs(tensors), 1, rows, cols, codes, "BF16")


def _packed(bits: int, scale: str, zeros: str, order: str) -> Callable[[], Decoder]:
    tensors = [("w", "I32", (6, 3 * bits)), ("scale", scale, (6, 3))]
    if zeros == "packed":
        tensors.append(("zeros", "I32", (-(-6 * bits // 32), 3)))
    elif zeros == "plain":
        tensors.append(("zeros", "I8", (6, 3)))
    if order == "g_idx":
        tensors.append(("index", "I32", (96,)))
    facts = {"columns": 96, "bits": bits, "packing": "dense", "group_size": 32}
    return lambda: PackedInt(*specs(tensors), **facts, zeros=zeros, order=order)


def _gptq(bits: int, scale: str, *, ordered: bool) -> Callable[[], Decoder]:
    tensors = [("q", "I32", (3 * bits, 32)), ("zeros", "I32", (3, bits)), ("scale", scale, (3, 32))]
    facts = {"bits": bits, "zeros": "v1", "packing": "stream"}
    if ordered:
        return lambda: GptqOrdered(*specs([*tensors, ("index", "I32", (96,))]), **facts, size=0)
    return lambda: Gptq(*specs(tensors), **facts, size=32)


def _awq(scale: str, signed: int) -> Callable[[], Decoder]:
    tensors = (("q", "I32", (96, 4)), ("zeros", "I32", (3, 4)), ("scale", scale, (3, 32)))
    return lambda: AwqGemm(*specs(tensors), size=32, signed=signed, zeros="stored")


def _nvfp4(kind: type[Decoder]) -> Callable[[], Decoder]:
    weight, scales = ((16, 32), (2, 32)) if kind is Nvfp4Bmm else ((6, 48), (6, 6))
    tensors = [("w", "U8", (2, *weight)), ("block_scale", "F8_E4M3", (2, *scales))]
    if kind is not Nvfp4:
        tensors.append(("scale", "F32", (2,)))
    return lambda: kind(*specs(tensors))


LAYOUTS: dict[str, Callable[[], Decoder]] = {
    "mxfp4": lambda: Mxfp4(*specs([("w", "U8", (6, 3, 16)), ("block_scale", "U8", (6, 3))])),
    "nvfp4": _nvfp4(Nvfp4),
    "nvfp4 times": _nvfp4(Nvfp4Times),
    "nvfp4 over": _nvfp4(Nvfp4Over),
    "nvfp4 bmm": _nvfp4(Nvfp4Bmm),
    **{
        f"float8 {codes} {scale} {rows} x {cols}": _float8(codes, scale, rows, cols)
        for codes in ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ")
        for scale, rows, cols in (("F32", 4, 64), ("BF16", 1, 96), ("U8", 1, 32))
    },
    **{
        f"packed {bits} bits {scale} zeros {zeros} order {order}": _packed(bits, scale, zeros, order)
        for bits, scale, zeros, order in (
            (4, "BF16", "none", "plain"),
            (4, "F16", "packed", "plain"),
            (8, "F32", "plain", "plain"),
            (8, "F16", "packed", "g_idx"),
            (3, "BF16", "plain", "g_idx"),
        )
    },
    "gptq 4 bits": _gptq(4, "F16", ordered=False),
    "gptq 8 bits": _gptq(8, "BF16", ordered=False),
    "gptq 4 bits ordered": _gptq(4, "F16", ordered=True),
    "awq": _awq("F16", 0),
    "awq signed": _awq("F32", 1),
    "awq gemv": lambda: AwqGemv(
        *specs([("q", "I32", (6, 12)), ("zeros", "I32", (6, 1)), ("scale", "F16", (6, 8))]), size=32
    ),
    "modelopt int4": lambda: ModelOptInt4(*specs([("w", "U8", (3, 96)), ("scale", "F32", (6, 3))]), 32),
    **{
        f"nf4 {blocksize}": lambda blocksize=blocksize: Bnb4(
            *specs(
                [("w", "U8", (288, 1)), ("scale", "F32", (-(-576 // blocksize),)), ("table", "F32", (16,))]
            ),
            dims="6,96",
            blocksize=blocksize,
            output="BF16",
        )
        for blocksize in (64, 50)
    },
}

RANGES = {
    "small": (-2, 2),
    "F16 low": (-17, -11),
    "F16 high": (2, 17),
    "low": (-130, -110),
    "high": (110, 127),
}
"""Exponents of scales: where weights are, and around the ends of both formats."""


def fill(decoder: Decoder, exponents: tuple[int, int], rng: np.random.Generator) -> Stored:
    """Random codes, seldom with NaN among them, and scales of these exponents, some of them 0 or negative."""
    stored = []
    for tensor in decoder.inputs:
        dtype, count = tensor.dtype, tensor.numel
        if tensor.name == "index":
            data = rng.integers(0, 3, count).astype("<i4")
            data = np.sort(data) if rng.random() < 0.5 else data
        elif "scale" in tensor.name and dtype.name == "U8":
            data = rng.integers(max(exponents[0] + 127, 0), exponents[1] + 128, count, np.uint8)
        elif tensor.name == "scale":
            low, high = np.clip(exponents, -24, 15) if dtype.name == "F16" else exponents
            data = np.exp2(rng.uniform(low, high, count))
            if not isinstance(decoder, Nvfp4Over):
                data *= rng.choice([1, -1, 0], count, p=[0.9, 0.05, 0.05])
            data = data.astype(dtype.numpy)
        elif tensor.name == "table":
            data = np.linspace(-1, 1, 16, dtype=np.float32)
        else:
            data = rng.integers(0, 256, tensor.nbytes, np.uint8)
            if rng.random() < 0.8:
                data[data & 0x78 == 0x78] = 0  # no float8 is NaN or infinite
        stored.append(np.frombuffer(data.tobytes(), np.uint8))
    return stored


def rendered(recipe: Recipe, stored: Sequence[np.ndarray], saturate: bool) -> tuple[bytes, Losses]:
    losses = Losses()
    inputs = [(data, contiguous(0, data.size)) for data in stored]
    count = recipe.decoder.items
    made = render(recipe.decoder, recipe.dtype, 0, count, inputs, [(None, losses)], saturate=saturate)
    return b"".join(items.tobytes() for (items,) in made), losses


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_shorter_way_gives_the_same_bytes_and_losses(layout, data):
    """Whatever the scales, the target and the treatment of overflows."""
    decoder = LAYOUTS[layout]()
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    stored = fill(decoder, RANGES[data.draw(st.sampled_from([*RANGES]))], rng)
    recipe = Recipe("w", decoder, DTYPES[data.draw(st.sampled_from(["BF16", "F16", "F32"]))])
    saturate = data.draw(st.booleans())
    got, losses = rendered(recipe, stored, saturate)
    with patch.object(type(decoder), "rounded", lambda *_: None):
        want, expected = rendered(recipe, stored, saturate)
    assert got == want
    assert losses == expected
    assert len(got) == prod(decoder.shape) * recipe.dtype.itemsize


def has_shorter_way(layout: str, target: str) -> bool:
    """All have but for FNUZ, for MXFP4 in float16, and for E5M2, which has the range of float16 itself."""
    return "FNUZ" not in layout and (target == "BF16" or not layout.startswith(("mxfp4", "float8 F8_E5M2")))


@pytest.mark.parametrize("target", ["BF16", "F16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ordinary_weights_go_the_shorter_way(layout, target):
    """It is not only equal: it is taken."""
    decoder = LAYOUTS[layout]()
    rng = np.random.default_rng(1)
    stored = fill(decoder, RANGES["small"], rng)
    stored[0] = stored[0] & np.uint8(0x77)  # no NaN
    if "nvfp4" in layout:
        stored[1] = stored[1] % 100 + 8
    values = decoder.rounded(stored, 0, decoder.items, DTYPES[target])
    assert (values is not None) == has_shorter_way(layout, target)
    if values is not None:
        assert values.dtype == DTYPES[target].numpy
        assert values.shape == (decoder.items,)
