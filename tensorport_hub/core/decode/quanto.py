"""quanto int4 and int2: unsigned codes in groups, with a scale and an offset that is subtracted last.

Layout: the weight [out, ...] is a matrix of rows that share a scale: one per output row, or, with groups, the
weight reshaped to [items / g, g]. `X._data._data` U8 is this matrix packed along its rows in blocks: 4 bits:
the LOW nibbles are the first half of the rows, the high ones the second; 2 bits: quarters, the first in the
lowest bits. The last block is filled up with rows that don't count. `X._scale` is [rows, 1], `X._shift` too.

Arithmetic: `round_T(round_T(q * scale) - shift)`, T the dtype of the factors, which is the output dtype; an
integer shift is a zero point, `round_T((q - shift) * scale)`. A NaN or infinite factor is refused. -0: code 0
under a negative scale.

Held, since all blocks of rows come from the same bytes. (8-bit weights are `Int8` and `Float8`.)

Source: optimum-quanto 0.2.7, `tensor/qbits.py` (`QBitsDequantizer`), `tensor/packed.py`, `tensor/grouped.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from tensorport_hub.core.decode.affine_groups import Groups, Step
from tensorport_hub.core.decode.bits import blocked_span, unpack_blocked
from tensorport_hub.core.decode.decoder import Bytes, Decoder, Dense, Params
from tensorport_hub.core.decode.scales import FLOATS, finite
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.tensor import DType, TensorSpec
from tensorport_hub.errors import CheckpointError

_ZERO_POINTS = ("I8", "U8")


@dataclass(frozen=True)
class QuantoBits(Decoder):
    """`X._data._data`, `X._scale` and `X._shift`.

    Attributes:
        dims: the logical shape, as `"128,256"`.

    Raises:
        CheckpointError: dtypes or shapes don't belong together.
    """

    codes: TensorSpec
    scale: TensorSpec
    shift: TensorSpec
    dims: str
    nbits: int
    scheme: ClassVar[str] = "quanto"
    held: ClassVar[bool] = True

    def __post_init__(self) -> None:
        rows, codes = self.scale.numel, self.codes
        if self.nbits not in (2, 4):
            raise CheckpointError(f"quanto {codes}: expected 4 or 2 bits, got {self.nbits}")
        lengths = (1,) * (len(codes.shape) - 1)
        if self.scale.dtype.name not in FLOATS or rows == 0 or self.scale.shape[1:] != lengths:
            raise CheckpointError(f"quanto {self.scale}: expected floats [rows, 1] to match `{codes.name}`")
        kinds = (self.scale.dtype.name, *_ZERO_POINTS)
        if self.shift.dtype.name not in kinds or self.shift.shape != self.scale.shape:
            raise CheckpointError(
                f"quanto {self.shift}: expected {' or '.join(kinds)} {[*self.scale.shape]}"
                f" to match `{self.scale.name}`"
            )
        packed = -(-rows * self.nbits // 8)
        if codes.dtype.name != "U8" or codes.shape[:1] != (packed,) or not self.groups.width:
            raise CheckpointError(
                f"quanto {codes}: expected U8 [{packed}, ..] for {rows} rows of {self.nbits}-bit codes"
            )
        if self.items != rows * self.groups.width:
            raise CheckpointError(
                f"quanto {codes}: expected {self.items} codes for shape [{self.dims}],"
                f" got {rows * self.groups.width}"
            )

    @property
    def groups(self) -> Groups:
        """The matrix whose rows share a scale."""
        return Groups(self.scale.numel, prod(self.codes.shape[1:]), axis=1)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (self.codes, self.scale, self.shift)

    @property
    def params(self) -> Params:
        return {"dims": self.dims, "nbits": self.nbits}

    @property
    def dtype(self) -> DType:
        return self.scale.dtype

    @property
    def exact(self) -> DType:
        return self.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(size) for size in self.dims.split(","))

    @property
    def grain(self) -> int:
        return 1

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        first, last = self.groups.needed(start, stop)
        sizes = self.scale.dtype.itemsize, self.shift.dtype.itemsize
        return blocked_span(self.codes.nbytes, start, stop), *((first * size, last * size) for size in sizes)

    def decode(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Dense, int]:
        data, scale, offset = inputs
        shifts = range(0, 8, self.nbits)
        codes = unpack_blocked(data, self.nbits, shifts, start, stop, size=self.codes.nbytes)
        multiply: Step = np.multiply, finite(self.scale, scale)
        if self.shift.dtype.name in _ZERO_POINTS:
            zeros = offset.view(np.int8).astype(np.float32)
            return self.groups.apply(codes, start, ((np.subtract, zeros), multiply), self.dtype)
        subtract: Step = np.subtract, finite(self.shift, offset)
        return self.groups.apply(codes, start, (multiply, subtract), self.dtype)
