"""MLX's affine groups against scalars that round after each operation, metal's against float32 scalars."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.decode.mlx_affine import BITS, MetalAffine, MlxAffine
from tensorport_hub.core.decode.table import bind
from tensorport_hub.core.tensor import DTYPES
from tensorport_hub.errors import CheckpointError
from tests.core.samples import specs

LEADS = ((), (3,), (2, 2))


def bound(kind, bits, t, lead, rows, groups, size):
    """A decoder for matrices of `rows` and `groups * size` columns."""
    shape = (*lead, rows, groups)
    weight = ("x.weight", "U32", (*lead, rows, groups * size * bits // 32))
    return kind(*specs([weight, ("x.scales", t, shape), ("x.biases", t, shape)]), bits)


def stored(decoder, seed):
    """Codes as integers, then the bytes of the inputs, packed by shifting one long number."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << decoder.bits, decoder.shape)
    rows = []
    for row in codes.reshape(-1, decoder.shape[-1]):
        number = sum(int(code) << decoder.bits * i for i, code in enumerate(row))
        rows.append(number.to_bytes(decoder.shape[-1] * decoder.bits // 8, "little"))
    made = [np.frombuffer(b"".join(rows), np.uint8)]
    numbers = [rng.normal(0, 0.3, t.numel).astype(t.dtype.numpy) for t in decoder.inputs[1:]]
    return codes, [*made, *(each.view(np.uint8) for each in numbers)]


def formula(decoder, codes, scales, biases):
    """Element by element: in T with two roundings, or in float32."""
    t = decoder.dtype.numpy.type
    scales, biases = (part.view(t).reshape(decoder.scales.shape) for part in (scales, biases))
    kind = np.float32 if isinstance(decoder, MetalAffine) else t
    out = np.empty(decoder.shape, kind)
    for place in np.ndindex(*decoder.shape):
        group = (*place[:-1], place[-1] // decoder.group_size)
        out[place] = kind(kind(codes[place]) * kind(scales[group])) + kind(biases[group])
    return out


@pytest.mark.parametrize("t", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("lead", LEADS)
def test_every_width_and_dtype_against_the_formula(bits, t, lead):
    """Bit streams that cross words, all leading axes, two roundings to T."""
    decoder = bound(MlxAffine, bits, t, lead, 3, 2, 32)
    codes, inputs = stored(decoder, bits)
    out, overflow = decoder.decode(inputs, 0, decoder.items)
    assert out.dtype == decoder.exact.numpy == decoder.dtype.numpy == DTYPES[t].numpy
    assert out.tobytes() == formula(decoder, codes, *inputs[1:]).tobytes()
    assert overflow == 0


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_metal_rounds_once(bits, size):
    """`q * s + b` in float32; the dtype to round to is that of the scales."""
    decoder = bound(MetalAffine, bits, "BF16", (), 4, 2, size)
    codes, inputs = stored(decoder, bits)
    out, _ = decoder.decode(inputs, 0, decoder.items)
    assert (decoder.dtype.name, decoder.exact.name) == ("BF16", "F32")
    assert out.tobytes() == formula(decoder, codes, *inputs[1:]).tobytes()


def test_half_precision_with_many_columns_in_a_group():
    """Where values come from a table of the group."""
    decoder = bound(MlxAffine, 4, "F16", (2,), 5, 3, 128)
    codes, inputs = stored(decoder, 5)
    out, _ = decoder.decode(inputs, 0, decoder.items)
    assert out.tobytes() == formula(decoder, codes, *inputs[1:]).tobytes()


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(BITS),
    st.sampled_from(["F16", "BF16", "F32"]),
    st.sampled_from(LEADS),
    st.sampled_from([32, 64]),
    st.data(),
)
def test_any_cut_gives_the_same_values(bits, t, lead, size, data):
    """A range needs only the bytes that `spans` names, and a decoder made again from its params agrees."""
    decoder = bound(MlxAffine, bits, t, lead, 2, 3, size)
    decoder = bind(decoder.scheme, decoder.inputs, decoder.params)
    _, inputs = stored(decoder, 1)
    whole, _ = decoder.decode(inputs, 0, decoder.items)
    cuts = data.draw(st.sets(st.integers(0, decoder.items // decoder.grain)))
    edges = sorted({0, decoder.items} | {cut * decoder.grain for cut in cuts})
    pieces = []
    for start, stop in pairwise(edges):
        spans = decoder.spans(start, stop)
        piece = [part[a:b] for part, (a, b) in zip(inputs, spans, strict=True)]
        pieces.append(decoder.decode(piece, start, stop)[0].tobytes())
    assert b"".join(pieces) == whole.tobytes()


@pytest.mark.parametrize("kind", [MlxAffine, MetalAffine])
def test_overflows_are_counted(kind):
    """15 * 65504 is beyond F16: MLX's own rounding makes the infinities, metal's float32 holds it."""
    decoder = bound(kind, 4, "F16", (), 1, 1, 32)
    inputs = [
        np.full(16, 0xFF, np.uint8),
        np.array([65504], np.float16).view(np.uint8),
        np.zeros(2, np.uint8),
    ]
    out, overflow = decoder.decode(inputs, 0, 32)
    assert overflow == (32 if kind is MlxAffine else 0)
    assert np.isinf(out).sum() == overflow


@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_scales_and_offsets_are_numbers(which, number):
    """NaN or infinity is damage, and the tensor is named."""
    decoder = bound(MlxAffine, 4, "F32", (), 2, 1, 32)
    _, inputs = stored(decoder, 0)
    inputs[which] = np.array([1, number], np.float32).view(np.uint8)
    with pytest.raises(CheckpointError, match=r"x\.(scales|biases).*(NaN or infinity)"):
        decoder.decode(inputs, 0, decoder.items)


WEIGHT, SCALES, BIASES = ("w", "U32", (4, 8)), ("s", "F16", (4, 1)), ("b", "F16", (4, 1))


@pytest.mark.parametrize(
    ("tensors", "bits"),
    [
        ((("w", "I32", (4, 8)), SCALES, BIASES), 4),
        ((("w", "U32", (8,)), ("s", "F16", ()), ("b", "F16", ())), 4),
        ((("w", "U32", (4, 0)), SCALES, BIASES), 4),
        ((WEIGHT, ("s", "I8", (4, 1)), BIASES), 4),
        ((WEIGHT, ("s", "F16", (3, 1)), BIASES), 4),
        ((WEIGHT, ("s", "F16", (4, 0)), ("b", "F16", (4, 0))), 4),
        ((WEIGHT, ("s", "F16", (4, 3)), ("b", "F16", (4, 3))), 4),
        ((WEIGHT, SCALES, ("b", "BF16", (4, 1))), 4),
        ((WEIGHT, SCALES, ("b", "F16", (4, 2))), 4),
        ((WEIGHT, SCALES, BIASES), 3),
        ((WEIGHT, SCALES, BIASES), 7),
    ],
)
def test_inputs_that_do_not_belong_together(tensors, bits):
    """Dtypes, shapes, whole groups of whole codes: checked when the decoder is bound."""
    with pytest.raises(CheckpointError):
        MlxAffine(*specs(tensors), bits)
