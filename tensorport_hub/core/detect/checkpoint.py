"""What detection looks at: all stored tensors, facts, and what configuration files say.

Detection is per tensor, from names, dtypes and shapes, because skip lists and configurations are only hints;
the configuration is asked for what shapes can't tell: bits, group sizes, blocks, the zero point's convention.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tensorport_hub.core.decode.decoder import Decoder
from tensorport_hub.core.tensor import TensorSpec, shorten
from tensorport_hub.errors import CheckpointError

_SCALE = re.compile(r"(^|_)q?scales?(_inv|_\d+|_ub|_weight|_act)?$")
_PACKED = frozenset({"U8", "I8", "U16", "I16", "U32", "I32"})

CONFIG_FILES = (
    "config.json",
    "hf_quant_config.json",
    "quantize_config.json",
    "quant_config.json",
    "quantization_config.json",
)
"""Files beside the weights that may say how they are quantized."""


@dataclass(frozen=True)
class Claim:
    """A module that a layout recognizes.

    Attributes:
        name: the logical name of the output tensor.
        decoder: bound to the module's tensors; its inputs are consumed.
        spent: names of further stored tensors that this output accounts for: facts, and auxiliaries that
            don't belong to weights (activation scales).
    """

    name: str
    decoder: Decoder
    spent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """All wanted tensors by name; facts (contents of small tensors) by name; configuration files by name.

    Attributes:
        metadata: `__metadata__` of all weight files, merged.
    """

    tensors: Mapping[str, TensorSpec]
    facts: Mapping[str, bytes] = field(default_factory=dict)
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def find(self, name: str) -> TensorSpec | None:
        return self.tensors.get(name)

    def need(self, name: str, *, of: TensorSpec, scheme: str) -> TensorSpec:
        """A companion that must be there.

        Raises:
            CheckpointError: it is not.
        """
        found = self.tensors.get(name)
        if found is None:
            raise CheckpointError(f"{of} looks like {scheme}, but `{shorten(name)}` is absent")
        return found

    def present(self, *names: str) -> tuple[str, ...]:
        """Those of `names` that are stored."""
        return tuple(name for name in names if name in self.tensors)

    def fact(self, name: str, *, of: TensorSpec, scheme: str) -> bytes:
        """The content of a small tensor, read at plan time.

        Raises:
            CheckpointError: it is absent.
        """
        self.need(name, of=of, scheme=scheme)
        if name not in self.facts:
            raise CheckpointError(f"{of}: `{shorten(name)}` is too large for what it should be")
        return self.facts[name]

    @cached_property
    def quantization(self) -> Mapping[str, Any]:
        """What the configuration says of quantization, in the documented order of places, first one wins.

        `config.json`: `quantization_config`, `text_config.quantization_config`, `compression_config`,
        `quantization` (MLX); then `hf_quant_config.json` (`quantization`), `quantize_config.json` (GPTQ),
        `quant_config.json` (AWQ), `quantization_config.json` (auto-round). Empty where nothing is said.
        """
        config = self.configs.get("config.json", {})
        inner = config.get("text_config")
        places: list[object] = [
            config.get("quantization_config"),
            inner.get("quantization_config") if isinstance(inner, Mapping) else None,
            config.get("compression_config"),
            config.get("quantization"),
            self.configs.get("hf_quant_config.json", {}).get("quantization"),
            *(self.configs.get(name) for name in CONFIG_FILES[2:]),
        ]
        merged: dict[str, Any] = {}
        for place in places:
            if isinstance(place, Mapping):
                merged = {**place, **merged}
        return merged

    @cached_property
    def settings(self) -> frozenset[tuple[str, str]]:
        """Every key with a text value, at any depth of what the configuration says of quantization."""
        found: set[tuple[str, str]] = set()
        inside: list[object] = [self.quantization]
        while inside:
            value = inside.pop()
            if isinstance(value, Mapping):
                found |= {(str(k), v) for k, v in value.items() if isinstance(v, str)}
                inside += value.values()
            elif isinstance(value, list):
                inside += value
        return frozenset(found)

    @cached_property
    def has_scales(self) -> bool:
        """Whether any name reads as a scale."""
        return any(_SCALE.search(name.rpartition(".")[2]) for name in self.tensors)

    @cached_property
    def _packed_modules(self) -> frozenset[str]:
        return frozenset(
            name.rpartition(".")[0] + "." for name, t in self.tensors.items() if t.dtype.name in _PACKED
        )

    def has_packed_sibling(self, module: str) -> bool:
        """Whether a tensor of packed dtype lies beside one of `module` (its name with the final dot)."""
        return module in self._packed_modules

    @property
    def method(self) -> str:
        """`quant_method`, lower case; "" where none is stated."""
        return str(self.quantization.get("quant_method", "")).lower()
