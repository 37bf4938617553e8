"""bitsandbytes: `X` beside `X.quant_state.bitsandbytes__nf4` or `__fp4`; 8-bit: `X.weight` beside `X.SCB`.

The 4-bit module's blob is JSON in a U8 tensor: quant_type, blocksize, dtype, shape and, where the maxima of
blocks are quantized themselves, nested_blocksize, nested_dtype and nested_offset. The weight's stored shape
says nothing. The 8-bit `weight_format` must be 0: the others are permuted for one generation of GPUs. Conv1D
weights of GPT-2-like models come out as they are stored, [out, in].
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tensorport_hub.core.decode.bnb4 import OUTPUTS, Bnb4, Bnb4Nested
from tensorport_hub.core.decode.bnb8 import Bnb8
from tensorport_hub.core.detect.checkpoint import Checkpoint, Claim
from tensorport_hub.core.tensor import TensorSpec, shorten
from tensorport_hub.errors import CheckpointError

_STATE = ".quant_state.bitsandbytes__"
_TYPES = ("nf4", "fp4")
_SCHEME = "bitsandbytes 4-bit"
_SCHEME8 = "bitsandbytes int8"
_OUTPUTS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}

SUFFIXES = (
    *(_STATE + kind for kind in _TYPES),
    ".nested_absmax",
    ".nested_quant_map",
    ".absmax",
    ".quant_map",
    (".SCB", ".weight"),
    (".weight_format", ".weight"),
)
FACTS = (*(_STATE + kind for kind in _TYPES), ".weight_format")


def claim(tensor: TensorSpec, checkpoint: Checkpoint) -> Claim | None:
    """The module whose primary `tensor` is."""
    name = tensor.name
    weight, state, _ = name.partition(_STATE)
    if state:
        checkpoint.need(weight, of=tensor, scheme=_SCHEME)
        return None
    states = checkpoint.present(*(name + _STATE + kind for kind in _TYPES))
    if states:
        return _claim4(tensor, states, checkpoint)
    module, _, last = name.rpartition(".")
    if last in ("SCB", "weight_format"):
        checkpoint.need(f"{module}.weight", of=tensor, scheme=_SCHEME8)
    if last == "weight" and checkpoint.find(f"{module}.SCB") is not None:
        return _claim8(tensor, module, checkpoint)
    return None


def _claim8(tensor: TensorSpec, module: str, checkpoint: Checkpoint) -> Claim:
    spent = checkpoint.present(f"{module}.weight_format")
    for name in spent:
        stored = checkpoint.fact(name, of=tensor, scheme=_SCHEME8)
        if int.from_bytes(stored, "little") != 0:
            raise CheckpointError(
                f"{tensor}: expected `{shorten(name)}` 0 (rows), got {[*stored[:8]]}: permuted for a GPU"
            )
    return Claim(tensor.name, Bnb8(tensor, checkpoint.tensors[f"{module}.SCB"]), spent)


def _claim4(tensor: TensorSpec, states: tuple[str, ...], checkpoint: Checkpoint) -> Claim:
    name = tensor.name
    if len(states) > 1:
        raise CheckpointError(f"{tensor} has two quantization states: `{'`, `'.join(map(shorten, states))}`")
    blob = _State(states[0], checkpoint.fact(states[0], of=tensor, scheme=_SCHEME))
    absmax = checkpoint.need(f"{name}.absmax", of=tensor, scheme=_SCHEME)
    table = checkpoint.need(f"{name}.quant_map", of=tensor, scheme=_SCHEME)
    params: Any = {"dims": blob.dims, "blocksize": blob.integer("blocksize"), "output": blob.output}
    nested = checkpoint.present(f"{name}.nested_absmax", f"{name}.nested_quant_map")
    if absmax.dtype.name != "U8":
        if nested:
            raise CheckpointError(f"{absmax}: expected U8 beside `{shorten(nested[0])}`")
        return Claim(name, Bnb4(tensor, absmax, table, **params), states)
    maxima = checkpoint.need(f"{name}.nested_absmax", of=tensor, scheme=_SCHEME)
    nested_table = checkpoint.need(f"{name}.nested_quant_map", of=tensor, scheme=_SCHEME)
    params["nested_blocksize"] = blob.integer("nested_blocksize")
    params["nested_offset"] = blob.number("nested_offset")
    return Claim(name, Bnb4Nested(tensor, absmax, table, maxima, nested_table, **params), states)


class _State:
    """The JSON blob, asked key by key."""

    def __init__(self, name: str, stored: bytes) -> None:
        self._name = shorten(name)
        try:
            value = json.loads(stored)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"`{self._name}` is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise CheckpointError(f"`{self._name}`: expected a JSON object, got {type(value).__name__}")
        self._values: Mapping[str, Any] = value
        kind = name.rpartition("__")[2]
        if value.get("quant_type") != kind:
            raise self._wrong("quant_type", kind)

    @property
    def dims(self) -> str:
        """The logical shape, as the decoder's parameter."""
        shape = self._values.get("shape")
        sound = isinstance(shape, list) and shape and all(type(n) is int and n > 0 for n in shape)
        if not isinstance(shape, list) or not sound:
            raise self._wrong("shape", "a list of sizes")
        return ",".join(map(str, shape))

    @property
    def output(self) -> str:
        """The name of the dtype that the weight had."""
        found = _OUTPUTS.get(str(self._values.get("dtype")).removeprefix("torch."))
        if found not in OUTPUTS:
            raise self._wrong("dtype", " or ".join(_OUTPUTS))
        return found

    def integer(self, key: str) -> int:
        value = self._values.get(key)
        if type(value) is not int or value < 1:
            raise self._wrong(key, "a positive integer")
        return value

    def number(self, key: str) -> float:
        value = self._values.get(key)
        if not isinstance(value, int | float):
            raise self._wrong(key, "a number")
        return float(value)

    def _wrong(self, key: str, expected: str) -> CheckpointError:
        return CheckpointError(f"`{self._name}`: expected `{key}` {expected}, got {self._values.get(key)!r}")
