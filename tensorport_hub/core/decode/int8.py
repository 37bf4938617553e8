"""8-bit integers in blocks with one scale each, and perhaps a zero point: compressed-tensors W8A8, gemma.

Layout: `weight` I8, row-major; scales F32, F16 or BF16 that form a `Grid` over the output [..., out, in];
zero points I8, one beside each scale.

Arithmetic: float32(q - zero) * float32(scale), the difference exact; rounded once. No zero comes out as -0
but under a negative scale. A NaN or infinite scale is damage. Output dtype: that of the scales, or what the
producer's reference returns.

Source: compressed-tensors `quantization/lifecycle/forward.py` (`_dequantize`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from tensorport_hub.core.decode.decoder import Bytes, Decoder, Dense, Params
from tensorport_hub.core.decode.grid import Grid
from tensorport_hub.core.decode.scales import FLOATS, finite
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.tensor import DTYPES, DType, TensorSpec
from tensorport_hub.errors import CheckpointError

"""Dtypes of scales."""


class _Int8(Decoder):
    """What the two layouts share: codes first, scales second, zero points perhaps third."""

    weight: TensorSpec
    scale: TensorSpec
    stack: int
    rows: int
    cols: int
    returns: str

    def __post_init__(self) -> None:
        if self.weight.dtype.name != "I8":
            raise CheckpointError(f"8-bit integer weight {self.weight}: expected I8")
        self._grid.check(self.scale, FLOATS, of=self.weight)
        for zero in self.inputs[2:]:
            if zero.dtype.name != "I8" or zero.shape != self.scale.shape:
                raise CheckpointError(
                    f"zero point {zero}: expected I8 {list(self.scale.shape)} to match `{self.scale.name}`"
                )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (self.weight, self.scale)

    @property
    def params(self) -> Params:
        return {"stack": self.stack, "rows": self.rows, "cols": self.cols, "returns": self.returns}

    @property
    def dtype(self) -> DType:
        return DTYPES[self.returns]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    @cached_property
    def _grid(self) -> Grid:
        return Grid(self.weight.shape, self.stack, self.rows, self.cols)

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        size = self.scale.dtype.itemsize
        first, last = self._grid.span(start, stop)
        return ((start, stop), (first * size, last * size), (first, last))[: len(self.inputs)]

    def decode(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Dense, int]:
        scales = finite(self.scale, inputs[1])
        values = inputs[0].view(np.int8).astype(np.float32)
        for zero in inputs[2:]:
            self._grid.combine(np.subtract, values, zero.view(np.int8).astype(np.float32), start)
        with np.errstate(over="ignore", under="ignore"):
            self._grid.combine(np.multiply, values, scales, start)
            safe = np.abs(scales).max(initial=0) * np.float64(255) <= np.finfo(np.float32).max
        return values, 0 if safe else int(np.count_nonzero(np.isinf(values)))


@dataclass(frozen=True)
class Int8(_Int8):
    """Codes and scales; `rows` x `cols` elements of each of `stack` matrices share a scale.

    `returns` names the output dtype.

    Raises:
        CheckpointError: dtypes or shapes don't belong together.
    """

    weight: TensorSpec
    scale: TensorSpec
    stack: int
    rows: int
    cols: int
    returns: str
    scheme: ClassVar[str] = "int8"


@dataclass(frozen=True)
class Int8Zero(_Int8):
    """As `Int8`, and zero points of the scales' shape.

    Raises:
        CheckpointError: dtypes or shapes don't belong together.
    """

    weight: TensorSpec
    scale: TensorSpec
    zero: TensorSpec
    stack: int
    rows: int
    cols: int
    returns: str
    scheme: ClassVar[str] = "int8_zero"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (self.weight, self.scale, self.zero)
