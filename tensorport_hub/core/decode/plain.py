"""Tensors stored as what they are: the bytes pass through.

Rules: nothing is computed, so NaN payloads, -0 and infinities keep their bits. F4 and F6 tensors pass as
their packed bytes (items are bytes). Source: the safetensors format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tensorport_hub.core.decode.decoder import Bytes, Decoder, Dense
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.tensor import DType, TensorSpec


@dataclass(frozen=True, slots=True)
class Plain(Decoder):
    """One stored tensor, unchanged."""

    tensor: TensorSpec
    scheme: ClassVar[str] = "plain"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (self.tensor,)

    @property
    def dtype(self) -> DType:
        return self.tensor.dtype

    @property
    def exact(self) -> DType:
        return self.tensor.dtype

    @property
    def grain(self) -> int:
        return 1

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def items(self) -> int:
        return self.tensor.nbytes // self.dtype.itemsize

    @property
    def parameters(self) -> int:
        """Position ids and masks are no weights."""
        return self.tensor.numel if self.dtype.kind in ("float", "complex") else 0

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        return ((start * self.dtype.itemsize, stop * self.dtype.itemsize),)

    def decode(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Dense, int]:
        return inputs[0].view(self.dtype.numpy), 0
