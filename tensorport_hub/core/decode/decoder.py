"""What a decoder is: one layout bound to one module's stored tensors.

A decoder turns stored bytes into output items. Items are counted in C order over the decoder's own output
`shape`; any range of them that starts and stops at multiples of `grain` (or at the end) can be decoded alone.
`needs` says which bytes of each input such a range needs, so that reading, budget, cutting into parts and
resuming never depend on the layout. The first input is the *primary*: the big one; its bytes arrive in order.

Most layouts pack along rows, so bytes of the primary and items grow together and are decoded as they come.
Those that don't (GPTQ packs along the input axis and comes out transposed) are *held*: what a range needs of
the primary is gathered before any of it is decoded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, ClassVar

import numpy.typing as npt

from tensorport_hub.core.ranges import Range
from tensorport_hub.core.strips import Bytes as Bytes
from tensorport_hub.core.strips import Strip, contiguous
from tensorport_hub.core.tensor import DTYPES, DType, TensorSpec

Dense = npt.NDArray[Any]
Params = Mapping[str, Any]


class Decoder(ABC):
    """One layout bound to one module's stored tensors; immutable and safe to share between threads.

    A subclass is a frozen dataclass whose fields are, in this order, its inputs and then its `params`, so
    that `Subclass(*inputs, **params)` makes it again from a plan's JSON. Its constructor checks dtypes and
    shapes of the inputs against each other.

    Raises:
        CheckpointError: the inputs don't belong together.
    """

    __slots__ = ()

    scheme: ClassVar[str]
    """The layout's name in plan and manifest."""

    held: ClassVar[bool] = False
    """Bytes of the primary and items don't grow together."""

    indexed: ClassVar[bool] = False
    """Where a range's bytes of the primary begin is known once its companions are: see `settled`."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Stored tensors that it reads, the primary first."""

    @property
    def params(self) -> Params:
        """What besides the inputs determines the output."""
        return {}

    @property
    @abstractmethod
    def dtype(self) -> DType:
        """Element type that the layout's reference decoder returns: what `keep` gives."""

    @property
    def exact(self) -> DType:
        """Element type of what `decode` returns: F32, before the one rounding to `dtype` or to another.

        A layout whose reference rounds twice returns values already rounded to its own type.
        """
        return DTYPES["F32"]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Logical shape of the output."""

    @property
    def items(self) -> int:
        """Number of output items: elements, or bytes of packed elements."""
        return prod(self.shape)

    @property
    def parameters(self) -> int:
        """True logical number of weights in the output."""
        return prod(self.shape)

    @property
    def grain(self) -> int:
        """Items that can be decoded alone; cuts fall on its multiples, but for parts'. By default a row."""
        return max(self.shape[-1], 1) if self.shape else 1

    @property
    def unit(self) -> int:
        """Bytes of the primary that hold one grain, if it isn't held."""
        first, last = self.spans(0, self.grain)[0]
        return max(last - first, 1)

    @property
    def panel(self) -> int:
        """Items of one of several matrices above one another: no range that is held crosses its multiples."""
        return max(self.items, 1)

    def spans(self, start: int, stop: int) -> tuple[Range, ...]:
        """For output items `start:stop`: the byte range of each input, from that tensor's first byte."""
        return tuple((0, tensor.nbytes) for tensor in self.inputs)

    def needs(self, start: int, stop: int) -> tuple[Strip, ...]:
        """For output items `start:stop`: the bytes of each input, as strips.

        By default the ranges of `spans`; a layout that is stored transposed overrides this instead.
        """
        return tuple(contiguous(first, last) for first, last in self.spans(start, stop))

    def reached(self, stop: int) -> int:
        """The items that are whole once the primary's bytes before `stop` are there.

        Bytes of layouts that are not indexed are cut at multiples of `unit`.
        """
        return min(-(-stop // self.unit) * self.grain, self.items)

    def settled(self, companions: Sequence[Bytes], start: int, stop: int) -> Decoder:
        """The decoder for exactly these items, given the bytes of every input but the primary.

        Only `indexed` layouts override it: before, their spans are an upper bound; after, exact.
        """
        return self

    @abstractmethod
    def decode(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Dense, int]:
        """Decode items `start:stop` from the bytes that `needs(start, stop)` names.

        Args:
            inputs: 1-D each, or [rows, bytes] for a strip of several rows.

        Returns:
            The items, 1-D, in `exact.numpy`: a view of the input where nothing changes, else a fresh array.
            And how many of them are infinite although the stored value is finite (too large for `exact`);
            where that is not 0, no infinity was stored.
        """

    def rounded(self, inputs: Sequence[Bytes], start: int, stop: int, target: DType) -> Dense | None:
        """Items `start:stop` already rounded to `target`, where the layout knows a shorter way.

        Returns:
            Bit for bit what the one rounding of `decode`'s items gives, 1-D, in `target.numpy`; None where
            the layout has no such way, or where an item might overflow or underflow: then they are decoded,
            rounded and counted.
        """
        return None
