"""Affine groups along the input axis, as MLX quantizes: unsigned codes, one scale and one offset a group.

Layout: `weight` U32 [..., rows, words], an LE bit stream of 2 to 8 bits (3, 5 and 6 cross the words);
`scales` and `biases` [..., rows, groups] of one dtype T (F16, BF16 or F32). Output [..., rows, words * 32 /
bits] in T; a group has as many columns as a row has, divided by `groups`. Any leading axes: stacked experts.

Arithmetic: MLX rounds twice, `round_T(round_T(q * s) + b)`, as its CPU `dequantize` computes in T, so values
come out in T. The `metal` method of transformers computes `q * s + b` in float32, and that is rounded once.
Scales or offsets that are NaN or infinite are damage; what overflows T is an infinity that is counted.

Sources: ml-explore/mlx `mlx/backend/cpu/quantized.cpp`, `affine_dequantize`; transformers
`integrations/metal_quantization.py`, `_affine_dequantize_tensor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tensorport_hub.core.decode.bits import Floats, look_up, unpack
from tensorport_hub.core.decode.cast import cast
from tensorport_hub.core.decode.decoder import Bytes, Decoder, Dense, Params
from tensorport_hub.core.decode.ordinary import is_ordinary, magnitudes, round_in_place
from tensorport_hub.core.decode.scales import FLOATS, finite
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.tensor import DTYPES, DType, TensorSpec
from tensorport_hub.errors import CheckpointError

BITS = (2, 3, 4, 5, 6, 8)
"""Dtypes of scales and offsets."""
_LARGEST = {"F16": 65504.0, "BF16": 2.0**127, "F32": 2.0**127}


@dataclass(frozen=True)
class MlxAffine(Decoder):
    """Codes of `bits` bits, their scales and their offsets.

    Raises:
        CheckpointError: dtypes or shapes of the three don't belong together.
    """

    weight: TensorSpec
    scales: TensorSpec
    biases: TensorSpec
    bits: int
    scheme: ClassVar[str] = "mlx_affine"

    def __post_init__(self) -> None:
        weight, scales, biases = self.inputs
        if weight.dtype.name != "U32" or len(weight.shape) < 2 or self.bits not in BITS:
            raise CheckpointError(f"{weight}: expected U32 [..., rows, words] of 2, 3, 4, 5, 6 or 8 bits")
        if (
            scales.dtype.name not in FLOATS
            or scales.shape[:-1] != weight.shape[:-1]
            or min(*scales.shape, *weight.shape) < 1
        ):
            raise CheckpointError(
                f"scales {scales}: expected F16, BF16 or F32 {[*weight.shape[:-1], 'groups']}"
                f" to match `{weight.name}`"
            )
        if biases.dtype != scales.dtype or biases.shape != scales.shape:
            raise CheckpointError(
                f"offsets {biases}: expected {scales.dtype} {list(scales.shape)} to match `{scales.name}`"
            )
        row = weight.shape[-1] * 32
        if row % self.bits or self.shape[-1] % scales.shape[-1] or self.group_size * self.bits % 8:
            raise CheckpointError(
                f"{weight}: expected whole groups of {self.bits}-bit codes to match `{scales.name}`"
                f" {list(scales.shape)}"
            )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (self.weight, self.scales, self.biases)

    @property
    def params(self) -> Params:
        return {"bits": self.bits}

    @property
    def dtype(self) -> DType:
        return self.scales.dtype

    @property
    def exact(self) -> DType:
        return self.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.weight.shape[:-1], self.weight.shape[-1] * 32 // self.bits)

    @property
    def group_size(self) -> int:
        """Columns that share a scale and an offset."""
        return self.shape[-1] // self.scales.shape[-1]

    @property
    def grain(self) -> int:
        return self.group_size

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        size = self.group_size
        codes = (start * self.bits // 8, stop * self.bits // 8)
        each = self.scales.dtype.itemsize
        groups = (start // size * each, stop // size * each)
        return codes, groups, groups

    def decode(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Dense, int]:
        codes = unpack(inputs[0], self.bits).reshape(-1, self.group_size)
        scales, biases = finite(self.scales, inputs[1])[:, None], finite(self.biases, inputs[2])[:, None]
        with np.errstate(over="ignore", under="ignore"):
            values = self._values(codes, scales, biases)
        widest = np.float64(np.abs(scales).max(initial=0)) * (1 << self.bits)
        overflows = widest + np.abs(biases).max(initial=0) >= _LARGEST[self.exact.name]
        return values.reshape(-1), int(np.count_nonzero(np.isinf(values))) if overflows else 0

    def _values(self, codes: Bytes, scales: Floats, biases: Floats) -> npt.NDArray[Any]:
        """[groups, group_size] of T. Looking up what a group's few codes give saves two roundings of each."""
        every = np.arange(1 << self.bits, dtype=np.uint8)
        if 4 * every.size > self.group_size:
            return self._affine(codes, scales, biases)
        table = self._affine(every, scales, biases)
        first = np.arange(0, 1 << 16, every.size, dtype=np.uint16)[:, None]
        found = np.empty(codes.shape, self.dtype.numpy)
        for at in range(0, len(codes), len(first)):  # as many groups as a 16-bit index tells apart
            here = codes[at : at + len(first)]
            found[at : at + len(first)] = look_up(
                table[at : at + len(first)].reshape(-1), here + first[: len(here)]
            )
        return found

    def _affine(self, codes: Bytes, scales: Floats, biases: Floats) -> npt.NDArray[Any]:
        values = codes.astype(np.float32) * scales
        if self.dtype.name == "BF16":
            round_in_place(values, self.dtype)
            values += biases
            return values.astype(self.dtype.numpy)
        if is_ordinary(self.dtype, (1.0, 2.0**self.bits), magnitudes(scales)):
            round_in_place(values, self.dtype)
        else:
            values = values.astype(self.dtype.numpy).astype(np.float32)
        values += biases
        return cast(values.reshape(-1), DTYPES["F32"], self.dtype)[0].reshape(values.shape)


@dataclass(frozen=True)
class MetalAffine(MlxAffine):
    """The same tensors, of which transformers' `metal` method makes float32 values, rounded once.

    Raises:
        CheckpointError: dtypes or shapes of the three don't belong together.
    """

    scheme: ClassVar[str] = "metal_affine"

    @property
    def exact(self) -> DType:
        return DTYPES["F32"]

    def _values(self, codes: Bytes, scales: Floats, biases: Floats) -> npt.NDArray[Any]:
        values = codes * scales
        np.add(values, biases, out=values)
        return values
