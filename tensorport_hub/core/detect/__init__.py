"""Which layout a stored tensor belongs to: one family of producers a file, and the order they are asked in.

Each family exports `claim(tensor, checkpoint) -> Claim | None` (None: not mine, or a companion of mine; a
`CheckpointError`: mine, and damaged or ambiguous), `SUFFIXES` (ends of stored names that are parts of a
logical tensor: what is left without them is its name; or pairs of an end and what stands there instead) and
`FACTS` (ends of names of small tensors that it must read at plan time). Formats repeat across families, so
decoders live in `core/decode/`.
"""

from __future__ import annotations

from collections.abc import Callable

from tensorport_hub.core.detect import (
    awq,
    bitnet,
    bitsandbytes,
    float4,
    float8,
    gemma,
    gpt_oss,
    gptq,
    hqq,
    int8,
    mlx,
    modelopt_int4,
    packed_int,
    quanto,
    quark_int4,
    sparse,
    torchao,
)
from tensorport_hub.core.detect.checkpoint import CONFIG_FILES, Checkpoint, Claim
from tensorport_hub.core.tensor import TensorSpec

FAMILIES = (
    gpt_oss,
    bitsandbytes,
    gptq,
    awq,
    packed_int,
    float4,
    modelopt_int4,
    int8,
    float8,
    quark_int4,
    sparse,
    hqq,
    mlx,
    quanto,
    torchao,
    bitnet,
    gemma,
)

CLAIMS: tuple[Callable[[TensorSpec, Checkpoint], Claim | None], ...] = tuple(f.claim for f in FAMILIES)
_SUFFIXES: list[tuple[str, str]] = sorted(
    ((suffix, "") if isinstance(suffix, str) else suffix for f in FAMILIES for suffix in f.SUFFIXES),
    key=lambda pair: -len(pair[0]),
)
_ENDINGS = tuple(suffix for suffix, _ in _SUFFIXES)
_FACTS = tuple(suffix for family in FAMILIES for suffix in family.FACTS)
FACT_LIMIT = 1 << 16
"""A fact is small: larger tensors of such names are not read at plan time."""


def logical_name(stored: str) -> str:
    """The output tensor that a stored tensor's name belongs to, if it is one of a group."""
    for suffix, instead in _SUFFIXES if stored.endswith(_ENDINGS) else ():
        if stored.endswith(suffix):
            return stored.removesuffix(suffix) + instead
    return stored


def is_fact(tensor: TensorSpec) -> bool:
    """Whether a tensor's content is needed to know shapes or conventions."""
    return tensor.name.endswith(_FACTS) and tensor.nbytes <= FACT_LIMIT


__all__ = ["CLAIMS", "CONFIG_FILES", "Checkpoint", "Claim", "is_fact", "logical_name"]
