"""What the tests of `core/` are made of: hand-written safetensors files, specs, plans, and exact rounding.

Nothing here calls the parser, the layout or the casts under test; a plan is put together by `lay_out` alone.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from math import prod
from typing import Any

from tensorport_hub.core.detect import Checkpoint
from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.layout import lay_out
from tensorport_hub.core.plan import Options, Plan
from tensorport_hub.core.recipe import Recipe, recipes
from tensorport_hub.core.tensor import DTYPES, TensorSpec

Stored = tuple[str, str, tuple[int, ...]]
"""Name, dtype and shape of a stored tensor."""

COMMIT = "0123456789abcdef0123456789abcdef01234567"

FLOATS = {"F16": (5, 10), "BF16": (8, 7), "F32": (8, 23)}
"""Exponent and mantissa bits of the formats that are rounded to."""


def container(header: bytes | str | Mapping[str, Any], data: bytes = b"") -> bytes:
    """A safetensors file around any header: text as it stands, or an object as JSON."""
    if isinstance(header, Mapping):
        header = json.dumps(header)
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw)) + raw + data


def entry(dtype: str, shape: Sequence[int], start: int, stop: int) -> dict[str, Any]:
    """One tensor's value in a header."""
    return {"dtype": dtype, "shape": [*shape], "data_offsets": [start, stop]}


def specs(stored: Iterable[Stored], file: str = "model.safetensors", start: int = 80) -> list[TensorSpec]:
    """Tensors that follow one another in `file` from byte `start`."""
    made = []
    for name, dtype, shape in stored:
        stop = start + prod(shape) * DTYPES[dtype].nbits // 8
        made.append(TensorSpec(name, DTYPES[dtype], shape, file, start, stop))
        start = stop
    return made


def plan_of(files: Mapping[str, Sequence[Stored]], *, data_start: int = 80, **options: Any) -> Plan:
    """The plan of files that hold these tensors, one after another."""
    chosen = Options(**options)
    tensors: list[TensorSpec] = []
    weights = []
    for name, stored in files.items():
        here = specs(stored, name, data_start)
        size = here[-1].stop if here else data_start
        weights.append(SourceFile(name, size, f"{len(weights):064x}"))
        tensors += here
    made = made_from(tensors, precision=chosen.precision)
    parts = lay_out(made, shard_size=chosen.shard_size)
    return Plan("org/model", COMMIT, tuple(weights), tuple(made), parts, chosen)


def made_from(
    tensors: Sequence[TensorSpec], *, quantization_stated: bool = False, **how: Any
) -> list[Recipe]:
    """The recipes of these tensors, as of a checkpoint whose configuration says nothing, or something."""
    config = {"quantization_config": {"quant_method": "mystery"}} if quantization_stated else {}
    checkpoint = Checkpoint({t.name: t for t in tensors}, configs={"config.json": config})
    return list(recipes(checkpoint, **how).made)


def rounded(value: Fraction, target: str) -> int:
    """The code of `target` nearest to an exact value, ties to even; by the definition, with rationals.

    The sign bit is that of `value`; a zero gives +0.
    """
    exponent_bits, mantissa_bits = FLOATS[target]
    bias = 2 ** (exponent_bits - 1) - 1
    lowest = 1 - bias
    sign = (1 << (exponent_bits + mantissa_bits)) if value < 0 else 0
    top, bottom = abs(value.numerator), value.denominator
    exponent = max(top.bit_length() - bottom.bit_length() - 1, lowest)
    while exponent > lowest and _below(top, bottom, exponent):
        exponent -= 1
    while not _below(top, bottom, exponent + 1):
        exponent += 1
    shift = exponent - mantissa_bits
    top, bottom = (top, bottom << shift) if shift >= 0 else (top << -shift, bottom)
    whole, rest = divmod(top, bottom)
    if 2 * rest > bottom or (2 * rest == bottom and whole % 2):
        whole += 1
    code = ((exponent - lowest) << mantissa_bits) + whole
    infinity = (2**exponent_bits - 1) << mantissa_bits
    return sign | min(code, infinity)


def _below(top: int, bottom: int, power: int) -> bool:
    """Whether top / bottom < 2 ** power."""
    return top < bottom << power if power >= 0 else top << -power < bottom
