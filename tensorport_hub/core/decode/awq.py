"""AWQ gemm, and AMD Quark's reordered int4: 4-bit codes along the output axis.

Layout: `qweight` I32 [..., I, O / 8] and zero points I32 [..., G, O / 8]: nibble j of a word, the lowest
first, is column `[0, 2, 4, 6, 1, 3, 5, 7][j]` of its eight; `scales` [..., G, O]. Codes and zero points are
unsigned, or with `signed` both two's complement (Quark int4).

Arithmetic: see `transposed`; no 1 is added to a zero point. With `zeros` "middle" (a configuration that says
`zero_point: false`) every stored zero point must be 8, as symmetric weights are packed. Output [..., O, I] in
the scale's dtype.

Sources: AutoAWQ `awq.utils.packing_utils` and `WQLinear_GEMM`; AMD Quark `Pack_4_bits.unpack(reorder=True)`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from tensorport_hub.core.decode.bits import Floats
from tensorport_hub.core.decode.decoder import Bytes, Params
from tensorport_hub.core.decode.transposed import Transposed, check_groups, turned
from tensorport_hub.core.ranges import Range
from tensorport_hub.errors import CheckpointError

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Nibble of a word -> column of its eight."""
_MIDDLE = 8


@dataclass(frozen=True)
class AwqGemm(Transposed):
    """`qweight`, `qzeros` and `scales`; column `i` belongs to group `i // size`.

    Raises:
        CheckpointError: dtypes or shapes don't belong together.
    """

    signed: int = field(kw_only=True)
    zeros: str = field(kw_only=True)
    scheme: ClassVar[str] = "awq_gemm"

    def __post_init__(self) -> None:
        weight = self.qweight
        if weight.dtype.name != "I32" or len(weight.shape) < 2:
            raise CheckpointError(f"AWQ weight {weight}: expected I32 [..., in, out / 8]")
        if self.signed not in (0, 1) or self.zeros not in ("stored", "middle"):
            raise CheckpointError(f"AWQ weight {weight}: unknown zero points `{self.zeros}`")
        groups = self.scales.shape[-2] if len(self.scales.shape) > 1 else 0
        self._check_companions("AWQ", (groups, weight.shape[-1]), "I32")
        if self.rows != 8 * weight.shape[-1]:
            raise CheckpointError(
                f"AWQ scales {self.scales}: expected {8 * weight.shape[-1]} columns to match"
                f" `{weight.name}`, got {self.rows}"
            )
        check_groups("AWQ", self.scales, self.columns, groups, self.size)

    @property
    def params(self) -> Params:
        return {"size": self.size, "signed": self.signed, "zeros": self.zeros}

    @property
    def columns(self) -> int:
        return self.qweight.shape[-2]

    @property
    def width(self) -> int:
        return 4

    def _stored_bytes(self, first: int, last: int) -> tuple[Range, Range]:
        words = first // 8 * 4, -(-last // 8) * 4
        return words, words

    def _codes(self, stored: Bytes, first: int, last: int) -> Bytes:
        return self._unpack(stored, first, last)

    def _zero_points(self, stored: Bytes, first: int, last: int) -> Floats:
        found = self._unpack(stored, first, last)
        if self.zeros == "middle" and not (found == _MIDDLE).all():
            raise CheckpointError(
                f"AWQ zero points {self.qzeros}: the configuration says `zero_point: false`; expected all"
                f" {_MIDDLE}, got {int(found.min())} to {int(found.max())}"
            )
        return found.astype(np.float32)

    def _unpack(self, stored: Bytes, first: int, last: int) -> Bytes:
        """Columns `first:last` of the strip of words that holds them, as rows; signed ones plus 8."""
        words = turned(stored.view(np.uint32))
        if self.signed:
            words = words ^ np.uint32(0x88888888)  # two's complement plus 8, which the difference forgets
        codes = np.empty((words.shape[0], 8, words.shape[1]), np.uint8)
        for byte, (low, high) in enumerate(zip(ORDER[::2], ORDER[1::2], strict=True)):
            pair = (words >> np.uint32(8 * byte)).astype(np.uint8)
            np.bitwise_and(pair, np.uint8(15), out=codes[:, low])
            np.right_shift(pair, np.uint8(4), out=codes[:, high])
        begin = first // 8 * 8
        return codes.reshape(-1, words.shape[1])[first - begin : last - begin]
