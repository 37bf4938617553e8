"""ModelOpt int4: two's complement nibbles of two output rows in a byte, scales in groups along the input.

Layout: `weight` U8 [..., O / 2, I]: the LOW nibble of byte [i, c] is row 2i, the high one row 2i + 1.
`weight_scale` F32 (or F16, BF16) [..., O, G], G = ceil(I / group_size). `pre_quant_scale` [I] or absent:
ModelOpt multiplies the module's input by it, so the effective weight is multiplied along its input axis.
Output [..., O, I] in BF16.

Arithmetic: (f32(q) * scale) * f32(pre_quant_scale), in float32 and in this order. A zero takes the sign of
its scales' product. A NaN scale is an error. A part that starts at an odd row begins inside a byte, so bytes
are held for the part's own rows.

Source: NVIDIA ModelOpt, `export/quant_utils.py` (`pack_int4_in_uint8`) and the input scaling of its AWQ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from tensorport_hub.core.decode.decoder import Bytes, Decoder, Dense, Params
from tensorport_hub.core.decode.groups import ColumnGroups, Grouped, Rows
from tensorport_hub.core.decode.scales import FLOATS, numbers
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.tensor import DTYPES, DType, TensorSpec
from tensorport_hub.errors import CheckpointError

_OFFSET = 8


@dataclass(frozen=True)
class ModelOptInt4(Grouped):
    """`weight` and `weight_scale`.

    Raises:
        CheckpointError: dtypes or shapes don't belong together.
    """

    weight: TensorSpec
    scale: TensorSpec
    group_size: int
    scheme: ClassVar[str] = "modelopt_int4"

    def __post_init__(self) -> None:
        weight, scale = self.weight, self.scale
        if weight.dtype.name != "U8" or len(weight.shape) < 2 or not weight.shape[-1]:
            raise CheckpointError(f"ModelOpt int4 weight {weight}: expected U8 [..., out / 2, in]")
        *lead, pairs, columns = weight.shape
        groups = -(-columns // max(self.group_size, 1))
        want = (*lead, pairs * 2, groups)
        if self.group_size < 1 or scale.dtype.name not in FLOATS or scale.shape != want:
            raise CheckpointError(
                f"ModelOpt int4 scales {scale}: expected {', '.join(FLOATS)} {list(want)} for groups of"
                f" {self.group_size} columns of `{weight.name}`, got {scale.dtype} {list(scale.shape)}"
            )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (self.weight, self.scale)

    @property
    def params(self) -> Params:
        return {"group_size": self.group_size}

    @property
    def dtype(self) -> DType:
        return DTYPES["BF16"]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.scale.shape[:-1], self.weight.shape[-1])

    @property
    def grain(self) -> int:
        """The two rows that share bytes."""
        return 2 * self.shape[-1]

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        columns = self.weight.shape[-1]
        first, last = start // columns, -(-stop // columns)
        row = self.scale.shape[-1] * self.scale.dtype.itemsize
        return (first // 2 * columns, -(-last // 2) * columns), (first * row, last * row)

    def _rows(self, inputs: Sequence[Bytes], start: int, stop: int) -> Iterator[Rows]:
        columns = self.weight.shape[-1]
        first, last = start // columns, -(-stop // columns)
        scales = numbers(self.scale, inputs[1]).reshape(last - first, self.scale.shape[-1])
        codes = partial(_codes, inputs[0].reshape(-1, columns), first % 2, last - first)
        yield Rows(ColumnGroups(self.group_size), 4, np.full((1, 1), _OFFSET, np.float32), scales, codes)


@dataclass(frozen=True)
class ModelOptInt4Awq(Decoder):
    """The same with `pre_quant_scale`: the effective weight.

    Raises:
        CheckpointError: dtypes or shapes don't belong together.
    """

    weight: TensorSpec
    scale: TensorSpec
    pre_quant_scale: TensorSpec
    group_size: int
    scheme: ClassVar[str] = "modelopt_int4_awq"

    def __post_init__(self) -> None:
        columns = self._unscaled.shape[-1]
        pre = self.pre_quant_scale
        if pre.dtype.name not in FLOATS or pre.shape != (columns,):
            raise CheckpointError(
                f"ModelOpt input scales {pre}: expected {', '.join(FLOATS)} [{columns}] to match"
                f" `{self.weight.name}`, got {pre.dtype} {list(pre.shape)}"
            )

    @property
    def _unscaled(self) -> ModelOptInt4:
        return ModelOptInt4(self.weight, self.scale, self.group_size)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (self.weight, self.scale, self.pre_quant_scale)

    @property
    def params(self) -> Params:
        return {"group_size": self.group_size}

    @property
    def dtype(self) -> DType:
        return self._unscaled.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self._unscaled.shape

    @property
    def grain(self) -> int:
        """As without input scales."""
        return self._unscaled.grain

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        return (*self._unscaled.spans(start, stop), (0, self.pre_quant_scale.nbytes))

    def decode(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Dense, int]:
        flat, overflow = self._unscaled.decode(inputs[:2], start, stop)
        out = flat.reshape(-1, self.weight.shape[-1])
        with np.errstate(over="ignore", invalid="ignore"):
            out *= numbers(self.pre_quant_scale, inputs[2])
        return out.reshape(-1), overflow


def _codes(stored: Bytes, skip: int, count: int) -> Bytes:
    """`count` rows of codes plus 8, which makes two's complement unsigned; [pairs of rows, columns] bytes."""
    both = np.empty((len(stored), 2, stored.shape[1]), np.uint8)
    np.bitwise_and(stored, np.uint8(15), out=both[:, 0])
    np.right_shift(stored, np.uint8(4), out=both[:, 1])
    both ^= np.uint8(_OFFSET)
    return both.reshape(-1, stored.shape[1])[skip : skip + count]
