"""Gemma QAT (`quant_method` gemma): `X.weight`, `X.weight_scale`; or `X.embedding_quantized`, its scale.

U8 with F32 scales [rows, blocks] holds 4 or 2 bits: `num_bits` of the configuration says which, and for a
module that a pattern of `module_quant_configs` finds, that pattern's; shapes can't tell. I8 is 8 bits.
Embeddings come out as `X.weight`.

Source: transformers `integrations/gemma_quant.py`, `replace_with_quant_layers`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from tensorport_hub.core.decode.gemma import BITS, GemmaLowBits
from tensorport_hub.core.decode.int8 import Int8
from tensorport_hub.core.detect.checkpoint import Checkpoint, Claim
from tensorport_hub.core.tensor import TensorSpec, shorten
from tensorport_hub.errors import CheckpointError

SUFFIXES = (
    (".weight_scale", ".weight"),
    (".embedding_quantized", ".weight"),
    (".embedding_scale", ".weight"),
)
FACTS: tuple[str, ...] = ()

_SCALE_OF = {"weight": "weight_scale", "embedding_quantized": "embedding_scale"}
_ACTIVATIONS = ("input_activation_scale", "output_activation_scale")


def claim(tensor: TensorSpec, checkpoint: Checkpoint) -> Claim | None:
    """The module whose primary `tensor` is."""
    stem, dot, last = tensor.name.rpartition(".")
    if last not in _SCALE_OF or tensor.dtype.name not in ("U8", "I8"):
        return None
    scale = checkpoint.find(f"{stem}{dot}{_SCALE_OF[last]}")
    if scale is None and (last != "weight" or checkpoint.method == "gemma"):
        scale = checkpoint.need(f"{stem}{dot}{_SCALE_OF[last]}", of=tensor, scheme="gemma")
    if scale is None or not _is_mine(tensor, scale, last, checkpoint):
        return None
    spent = checkpoint.present(*(f"{stem}{dot}{name}" for name in _ACTIVATIONS))
    name = f"{stem}{dot}weight"
    if tensor.dtype.name == "U8":
        return Claim(name, GemmaLowBits(tensor, scale, _bits(tensor, stem, checkpoint)), spent)
    if len(tensor.shape) < 2 or scale.shape[:-1] != tensor.shape[:-1] or not scale.shape[-1]:
        raise CheckpointError(f"gemma scale {scale}: expected F32 {[*tensor.shape[:-1], 1]} of {tensor}")
    if tensor.shape[-1] % scale.shape[-1]:
        raise CheckpointError(f"gemma scale {scale}: expected blocks of equal size of {tensor}")
    blocks = {"stack": 1, "rows": 1, "cols": max(tensor.shape[-1] // scale.shape[-1], 1)}
    return Claim(name, Int8(tensor, scale, **blocks, returns="F32"), spent)


def _is_mine(tensor: TensorSpec, scale: TensorSpec, last: str, checkpoint: Checkpoint) -> bool:
    """A float scale for each row; `X.weight` I8 has the same in other families."""
    if last != "weight" or checkpoint.method == "gemma":
        return True
    rows = len(scale.shape) > 1 and scale.shape[:-1] == tensor.shape[:-1]
    return tensor.dtype.name == "U8" and scale.dtype.name == "F32" and rows


def _bits(tensor: TensorSpec, module: str, checkpoint: Checkpoint) -> int:
    """Bits of a module's codes, as the configuration says.

    Raises:
        CheckpointError: it says nothing, or what a U8 tensor can't hold.
    """
    config = checkpoint.quantization
    bits = config.get("num_bits")
    patterns = config.get("module_quant_configs")
    if isinstance(patterns, Mapping):
        found = []
        for number, (pattern, options) in enumerate(patterns.items()):
            try:
                match = re.search(pattern, module)
            except (re.error, RecursionError):
                raise CheckpointError(
                    f"`module_quant_configs`: `{shorten(pattern)}` is no regular expression"
                ) from None
            if match and isinstance(options, Mapping):
                found.append((match.start(), number, options.get("num_bits", bits)))
        if found:  # as one alternation: the leftmost match, then the first pattern
            bits = min(found, key=lambda each: each[:2])[2]
    if type(bits) is not int or bits not in BITS:
        raise CheckpointError(
            f"{tensor} looks like gemma's 4 or 2 bits, and the configuration says {shorten(bits)}"
        )
    return bits
