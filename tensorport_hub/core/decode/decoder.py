"""What a decoder is: one layout bound to one module's stored tensors.

A decoder turns ranges of stored bytes into ranges of output elements. Elements are counted in C order over
the decoder's own output `shape`; a range starts and stops at multiples of `grain` (or at the end), the
smallest number of elements that can be decoded alone: 1 for plain tensors, 32 for MXFP4. `spans` says which
bytes of each input such a range needs, so that reading, cutting into parts and resuming never depend on the
layout. The first input is the *primary*: the big one, whose bytes arrive in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tensorport_hub.core.ranges import Range
from tensorport_hub.core.tensor import DType, TensorSpec

Bytes = npt.NDArray[np.uint8]
Dense = npt.NDArray[Any]


class Decoder(Protocol):
    """One layout bound to one module's stored tensors; immutable and safe to share between threads."""

    @property
    def scheme(self) -> str:
        """The layout's name in plan and manifest."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Stored tensors that it reads, the primary first."""

    @property
    def params(self) -> Mapping[str, int | str]:
        """What besides the inputs determines the output; JSON values."""

    @property
    def dtype(self) -> DType:
        """Element type of the output: what the layout's reference decoder returns."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape of the output."""

    @property
    def items(self) -> int:
        """Number of output items: elements, or bytes of packed elements."""

    @property
    def grain(self) -> int:
        """Items that can be decoded alone; ranges start at its multiples."""

    @property
    def parameters(self) -> int:
        """True logical number of weights in the output."""

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        """For output items `start:stop`: the byte range of each input, from that tensor's first byte."""

    def decode(self, inputs: Sequence[Bytes]) -> tuple[Dense, int]:
        """Decode the bytes that `spans` names for some range.

        Returns:
            The items, 1-D, in `dtype.numpy`: a view of the input where nothing changes, else a fresh array.
            And how many of them are infinite although the stored value is finite (too large for `dtype`);
            where that is not 0, no infinity was stored.
        """
