"""Experts that are stored one by one, as one tensor: decoders of equal shape above one another.

Nothing is computed here: each expert is decoded by its own decoder, in order. Where their bytes lie is as
free as their order in the files, so none of it is fed by a walk: experts are read one after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tensorport_hub.core.decode.decoder import Bytes, Decoder, Dense, Params
from tensorport_hub.core.ranges import Range
from tensorport_hub.core.strips import Strip
from tensorport_hub.core.tensor import DType, TensorSpec
from tensorport_hub.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Member:
    """Items `items[0]:items[1]` of one of several decoders, whose first item is number `first` of all."""

    decoder: Decoder
    items: Range
    first: int


@dataclass(frozen=True)
class Stacked(Decoder):
    """Experts in order; the output is [experts, *shape of one].

    Raises:
        CheckpointError: there is none, or their shapes or dtypes differ.
    """

    experts: tuple[Decoder, ...]
    scheme: ClassVar[str] = "stacked"

    def __post_init__(self) -> None:
        kinds = {(expert.shape, expert.dtype.name) for expert in self.experts}
        if len(kinds) != 1 or any(isinstance(expert, Stacked) for expert in self.experts):
            raise CheckpointError(f"stacked experts: expected one shape and dtype, got {sorted(kinds)[:4]}")

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(tensor for expert in self.experts for tensor in expert.inputs)

    @property
    def params(self) -> Params:
        """`each`: how an expert decodes, and of how many tensors; a list where they differ."""
        each = [{"scheme": e.scheme, "inputs": len(e.inputs), "params": dict(e.params)} for e in self.experts]
        same = all(one == each[0] for one in each)
        return {"experts": len(each), "each": each[0] if same else each}

    @property
    def dtype(self) -> DType:
        return self.experts[0].dtype

    @property
    def exact(self) -> DType:
        return self.experts[0].exact

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.experts), *self.experts[0].shape)

    @property
    def items(self) -> int:
        return len(self.experts) * self.experts[0].items

    @property
    def parameters(self) -> int:
        return sum(expert.parameters for expert in self.experts)

    def members(self, start: int, stop: int) -> Iterator[Member]:
        """What items `start:stop` are made of."""
        size = self.experts[0].items
        for number in range(start // max(size, 1), -(-stop // max(size, 1))):
            first = number * size
            items = max(start - first, 0), min(stop - first, size)
            yield Member(self.experts[number], items, first)

    def needs(self, start: int, stop: int) -> tuple[Strip, ...]:
        raise AssertionError("experts are read one by one: see `members`")

    def decode(self, inputs: Sequence[Bytes], start: int, stop: int) -> tuple[Dense, int]:
        raise AssertionError("experts are decoded one by one: see `members`")


def members(decoder: Decoder, start: int, stop: int) -> Iterator[Member]:
    """What items `start:stop` of any decoder are made of; nothing where there are none."""
    if start == stop:
        return
    if isinstance(decoder, Stacked):
        yield from decoder.members(start, stop)
    else:
        yield Member(decoder, (start, stop), 0)


def stack(bind: Any, inputs: Sequence[TensorSpec], *, experts: int, each: Any) -> Stacked:
    """The stack that `params` describe; `bind` makes a decoder of scheme, inputs and parameters."""
    kinds = each if isinstance(each, list) else [each] * min(experts, len(inputs))
    made: list[Decoder] = []
    at = 0
    for kind in kinds:
        count = kind["inputs"]
        made.append(bind(kind["scheme"], inputs[at : at + count], kind["params"]))
        at += count
    if len(made) != experts or at != len(inputs):
        raise CheckpointError(
            f"stacked experts: expected {experts} of {len(inputs)} tensors, got {len(made)}"
        )
    return Stacked(tuple(made))
