"""HQQ: unsigned codes in groups, with a scale and a zero point that is no integer.

Layout: the weight is reshaped to a matrix of groups: [items / g, g] with a group a row (`axis` 1), or
[g, items / g] with a group a column (`axis` 0); without groups it is the weight itself. `X.scale` and
`X.zero` are [rows, 1] or [1, columns]. `X.W_q` is this matrix, packed along its rows in blocks: 8 bits plain;
4, 2 and 1 bits in U8, the first half (quarter, eighth) of the rows in the HIGHEST bits; 3 bits ten to an I32,
tenths of the rows at bits 27, 24 .. 0, the last tenth filled up with rows that don't count. A `view_as_float`
W_q has the same bytes under a float dtype.

Arithmetic: `round_T(round_T(q - zero) * scale)`, T the compute dtype (float32 where a factor has another),
which is the output dtype too. A NaN or infinite factor is refused. -0: `q == zero` with a negative scale.

Held, since all blocks of rows come from the same words; 8 bits are stored in order.

Source: hqq 0.2.8, `core/quantize.py` (`Quantizer.dequantize`), `core/bitpack.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tensorport_hub.core.decode.affine_groups import Groups, widest
from tensorport_hub.core.decode.bits import blocked_span, unpack_blocked
from tensorport_hub.core.decode.decoder import Bytes, Decoder, Dense, Params
from tensorport_hub.core.decode.scales import FLOATS, finite
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.tensor import DType, TensorSpec
from tensorport_hub.errors import CheckpointError

_SLOTS = {8: 1, 4: 2, 3: 10, 2: 4, 1: 8}
"""Codes in a word."""


@dataclass(frozen=True)
class Hqq(Decoder):
    """`X.W_q`, `X.scale` and `X.zero`.

    Attributes:
        dims: the logical shape, as `"128,256"`.
        group_size: items of a group; 0 where each row (or column) of the weight is one.
        compute: name of the compute dtype.

    Raises:
        CheckpointError: dtypes or shapes don't belong together.
    """

    codes: TensorSpec
    scale: TensorSpec
    zero: TensorSpec
    dims: str
    nbits: int
    group_size: int
    axis: int
    compute: str
    scheme: ClassVar[str] = "hqq"

    def __post_init__(self) -> None:
        size = self.group_size
        if self.nbits not in _SLOTS or self.axis not in (0, 1) or self.compute not in FLOATS:
            raise CheckpointError(
                f"HQQ {self.codes}: expected 8, 4, 3, 2 or 1 bits, axis 0 or 1 and a float type,"
                f" got {self.nbits}, {self.axis} and {self.compute}"
            )
        whole = len(self.shape) == 2 if size == 0 else size > 0 and self.items % size == 0
        if self.items == 0 or not whole:
            raise CheckpointError(
                f"HQQ {self.codes}: expected shape [{self.dims}] to divide into groups, got groups of {size}"
            )
        self._check_codes()
        for factors in (self.scale, self.zero):
            if factors.dtype.name not in FLOATS or factors.shape != self.groups.factors:
                raise CheckpointError(
                    f"HQQ {factors}: expected floats {[*self.groups.factors]} to match `{self.codes.name}`"
                )
        if self.scale.dtype != self.zero.dtype:
            raise CheckpointError(f"HQQ {self.zero}: expected {self.scale.dtype} like `{self.scale.name}`")
        object.__setattr__(self, "held", self.nbits != 8)

    def _check_codes(self) -> None:
        slots = _SLOTS[self.nbits]
        rows = -(-self.groups.rows // slots)
        nbytes = rows * self.groups.width * self._word.itemsize
        stored = self.codes.dtype.name in FLOATS or self.codes.dtype.numpy.itemsize == self._word.itemsize
        exact = self.nbits == 3 or self.groups.rows % slots == 0
        packed = self.codes.shape[:1] == (rows,) and len(self.codes.shape) == 2
        if not (stored and exact and packed) or self.codes.nbytes != nbytes:
            raise CheckpointError(
                f"HQQ {self.codes}: expected {self.nbits}-bit codes in {'I32' if self.nbits == 3 else 'U8'}"
                f" [{rows}, {self.groups.width}] for shape [{self.dims}] in groups of {self.group_size}"
            )

    @property
    def groups(self) -> Groups:
        """The matrix of groups."""
        if not self.group_size:
            return Groups(self.shape[0], self.shape[1], self.axis)
        other = self.items // self.group_size
        return Groups(*((other, self.group_size) if self.axis == 1 else (self.group_size, other)), self.axis)

    @property
    def _word(self) -> np.dtype[np.uint8] | np.dtype[np.uint32]:
        return np.dtype(np.uint32) if self.nbits == 3 else np.dtype(np.uint8)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (self.codes, self.scale, self.zero)

    @property
    def params(self) -> Params:
        return {
            "dims": self.dims,
            "nbits": self.nbits,
            "group_size": self.group_size,
            "axis": self.axis,
            "compute": self.compute,
        }

    @property
    def dtype(self) -> DType:
        return widest(self.compute, self.scale.dtype.name)

    @property
    def exact(self) -> DType:
        return self.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(size) for size in self.dims.split(","))

    @property
    def grain(self) -> int:
        return 1 if self.held else super().grain

    @property
    def _words(self) -> int:
        return self.codes.nbytes // self._word.itemsize

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        first, last = self.groups.needed(start, stop)
        begin, end = blocked_span(self._words, start, stop)
        size, word = self.scale.dtype.itemsize, self._word.itemsize
        return (begin * word, end * word), (first * size, last * size), (first * size, last * size)

    def decode(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Dense, int]:
        codes, scale, zero = inputs
        if self.held:
            slots = _SLOTS[self.nbits]
            shifts = [(slots - 1 - slot) * self.nbits for slot in range(slots)]
            codes = unpack_blocked(codes.view(self._word), self.nbits, shifts, start, stop, size=self._words)
        steps = (
            (np.subtract, finite(self.zero, zero)),
            (np.multiply, finite(self.scale, scale)),
        )
        return self.groups.apply(codes, start, steps, self.dtype)
