"""GPTQ: codes of 2 to 8 bits along the input axis, zero points along the output axis.

Layout: `qweight` [..., I * bits / word, O] and `qzeros` [..., G, ceil(O * bits / word)] in words of 8, 16, 32
(nearly always) or 64 bits, `scales` [..., G, O], and with act-order `g_idx` I32 [..., I]: the group of each
column (an input row), always used where it is present; columns are in their original order.

Packings: `stream`, an LE bit stream (down a column of qweight, along a row of qzeros). `planar` (3, 5, 6 and
7 bits): 32 codes are `bits` words of 32 bits, plane by plane, the low bits first; 3 = 2 + 1, 5 = 4 + 1,
6 = 4 + 2, 7 = 4 + 2 + 1 bits; a plane is an LE bit stream of its own. Both have the same shapes.

Zero points: `v1` (stored + 1) modulo 2^bits, `v2` as stored, `middle` symmetric, all the same: either
convention of 2^(bits - 1), and an error where the stored ones are anything else.

Arithmetic: see `transposed`. Output [..., O, I] in the scale's dtype, F16 as a rule.

Sources: AutoGPTQ `qlinear_cuda.QuantLinear`; GPTQModel `TorchLinear` and its notes on `gptq_p`; auto-round
`auto_round_extension/torch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from tensorport_hub.core.decode.bits import Floats, unpack
from tensorport_hub.core.decode.decoder import Bytes, Params
from tensorport_hub.core.decode.groups import ColumnGroups
from tensorport_hub.core.decode.transposed import Transposed, check_groups, turned
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.strips import Strip, contiguous
from tensorport_hub.core.tensor import TensorSpec
from tensorport_hub.errors import CheckpointError

WORDS = ("I8", "I16", "I32", "I64")
PLANES = {3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}
ZEROS = ("v1", "v2", "middle")
_PLANE_CODES = 32


@dataclass(frozen=True)
class Gptq(Transposed):
    """`qweight`, `qzeros` and `scales`; column `i` belongs to group `i // size`.

    Raises:
        CheckpointError: dtypes or shapes don't belong together.
    """

    bits: int = field(kw_only=True)
    zeros: str = field(kw_only=True)
    packing: str = field(kw_only=True)
    scheme: ClassVar[str] = "gptq"

    def __post_init__(self) -> None:
        weight = self.qweight
        if weight.dtype.name not in WORDS or len(weight.shape) < 2:
            raise CheckpointError(f"GPTQ weight {weight}: expected {', '.join(WORDS)} [..., words, out]")
        if not 2 <= self.bits <= 8 or self.zeros not in ZEROS or self.packing not in ("stream", "planar"):
            raise CheckpointError(
                f"GPTQ weight {weight}: expected 2 to 8 bits, zero points {', '.join(ZEROS)}, stream or"
                f" planar, got {self.bits}, {self.zeros}, {self.packing}"
            )
        word = weight.dtype.nbits
        width = -(-weight.shape[-1] * self.bits // word)
        groups = self.scales.shape[-2] if len(self.scales.shape) > 1 else 0
        self._check_companions("GPTQ", (groups, width), weight.dtype.name)
        if self.scales.shape[-1] != weight.shape[-1]:
            raise CheckpointError(
                f"GPTQ scales {self.scales}: expected {weight.shape[-1]} columns as `{weight.name}` has,"
                f" got {self.scales.shape[-1]}"
            )
        if weight.shape[-2] != -(-self.columns * self.bits // word):
            raise CheckpointError(
                f"GPTQ weight {weight}: expected {-(-self.columns * self.bits // word)} rows for"
                f" {self.columns} columns of {self.bits} bits, got {weight.shape[-2]}"
            )
        self._check_order()
        planes = self.packing == "planar" and self.bits in PLANES
        if planes and (word != 32 or self.columns % _PLANE_CODES or self.rows % _PLANE_CODES):
            raise CheckpointError(f"GPTQ weight {weight}: expected I32 and multiples of 32 in bit planes")

    def _check_order(self) -> None:
        if self.qweight.shape[-2] * self.qweight.dtype.nbits % self.bits:
            raise CheckpointError(f"GPTQ weight {self.qweight}: expected whole codes of {self.bits} bits")
        check_groups("GPTQ", self.scales, self.columns, self.groups, self.size)

    @property
    def params(self) -> Params:
        return {"bits": self.bits, "size": self.size, "zeros": self.zeros, "packing": self.packing}

    @property
    def columns(self) -> int:
        return self.qweight.shape[-2] * self.qweight.dtype.nbits // self.bits

    @property
    def width(self) -> int:
        return self.bits

    @property
    def _planes(self) -> tuple[int, ...]:
        return PLANES.get(self.bits, ()) if self.packing == "planar" else ()

    @property
    def _cell(self) -> int:
        """Zero points that begin at a byte again."""
        return _PLANE_CODES if self._planes else 8

    def _stored_bytes(self, first: int, last: int) -> tuple[Range, Range]:
        word, cell = self.qweight.dtype.itemsize, self._cell
        nbytes, width = cell * self.bits // 8, self.qzeros.shape[-1] * word
        zeros = first // cell * nbytes, min(-(-last // cell) * nbytes, width)
        return (first * word, last * word), zeros

    def _codes(self, stored: Bytes, first: int, last: int) -> Bytes:
        strip = turned(stored.view(self.qweight.dtype.numpy)).view(np.uint8)
        codes = _from_planes(strip, self._planes) if self._planes else unpack(strip, self.bits)
        return codes[:, : self.columns]

    def _zero_points(self, stored: Bytes, first: int, last: int) -> Floats:
        strip, begin = np.ascontiguousarray(stored), first // self._cell * self._cell
        codes = _from_planes(strip, self._planes) if self._planes else unpack(strip, self.bits)
        found = codes[:, first - begin : last - begin].T.astype(np.float32)
        if self.zeros == "v1":
            found += np.float32(1)
            found[found == 1 << self.bits] = 0
        elif self.zeros == "middle":
            self._check_middle(found)
            found[...] = 1 << (self.bits - 1)
        return found

    def _check_middle(self, found: Floats) -> None:
        middle = 1 << (self.bits - 1)
        low, high = int(found.min()), int(found.max())
        if low != high or low not in (middle - 1, middle):
            raise CheckpointError(
                f"GPTQ zero points {self.qzeros}: no configuration says how they are stored; expected all"
                f" {middle - 1} or all {middle}, got {low} to {high}"
            )


@dataclass(frozen=True)
class GptqOrdered(Gptq):
    """The same with `g_idx`, which says the group of each column; `size` is not used and 0."""

    g_idx: TensorSpec
    scheme: ClassVar[str] = "gptq_ordered"

    def _check_order(self) -> None:
        index, lead = self.g_idx, self.qweight.shape[:-2]
        if index.dtype.name != "I32" or index.shape not in ((self.columns,), (*lead, self.columns)):
            raise CheckpointError(
                f"GPTQ column groups {index}: expected I32 {[*lead, self.columns]} to match"
                f" `{self.qweight.name}`, got {index.dtype} {[*index.shape]}"
            )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (*super().inputs, self.g_idx)

    @property
    def columns(self) -> int:
        return self.g_idx.shape[-1] if self.g_idx.shape else 0

    def needs(self, start: int, stop: int) -> tuple[Strip, ...]:
        row = self.columns * 4
        expert = self._place(start, stop)[0] if len(self.g_idx.shape) > 1 else 0
        return *super().needs(start, stop), contiguous(expert * row, (expert + 1) * row)

    def _column_groups(self, inputs: Sequence[Bytes]) -> ColumnGroups:
        index = inputs[3].view("<i4")
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= self.groups:
            raise CheckpointError(
                f"GPTQ column groups {self.g_idx}: expected 0 to {self.groups - 1}, got"
                f" {low if low < 0 else high}"
            )
        return ColumnGroups.ordered(index)


def _from_planes(data: Bytes, planes: tuple[int, ...]) -> Bytes:
    """Codes of bit planes.

    Args:
        data: [rows, n * sum(planes) * 4] bytes.
        planes: bits of each plane, the lowest first.

    Returns:
        [rows, n * 32].
    """
    rows, block = data.shape[0], data.reshape(data.shape[0], -1, sum(planes) * 4)
    codes = np.zeros((rows, block.shape[1], _PLANE_CODES), np.uint8)
    at = 0
    for nbits in planes:
        plane = unpack(np.ascontiguousarray(block[..., at * 4 : (at + nbits) * 4]), nbits)
        codes |= plane << np.uint8(at)
        at += nbits
    return codes.reshape(rows, -1)
