"""The closed table of layouts: scheme name -> decoder, for plans read back from JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

from tensorport_hub.core.decode.awq import AwqGemm
from tensorport_hub.core.decode.awq_gemv import AwqGemv, AwqGemvFast
from tensorport_hub.core.decode.bitnet import BitnetOver, BitnetTimes
from tensorport_hub.core.decode.bnb4 import Bnb4, Bnb4Nested
from tensorport_hub.core.decode.bnb8 import Bnb8
from tensorport_hub.core.decode.decoder import Decoder, Params
from tensorport_hub.core.decode.float8 import Float8
from tensorport_hub.core.decode.gemma import GemmaLowBits
from tensorport_hub.core.decode.gptq import Gptq, GptqOrdered
from tensorport_hub.core.decode.hqq import Hqq
from tensorport_hub.core.decode.int8 import Int8, Int8Zero
from tensorport_hub.core.decode.mlx_affine import MetalAffine, MlxAffine
from tensorport_hub.core.decode.modelopt_int4 import ModelOptInt4, ModelOptInt4Awq
from tensorport_hub.core.decode.mxfp4 import Mxfp4
from tensorport_hub.core.decode.mxfp6 import Mxfp6
from tensorport_hub.core.decode.nvfp4 import Nvfp4, Nvfp4Awq, Nvfp4Over, Nvfp4Times
from tensorport_hub.core.decode.nvfp4_bmm import Nvfp4Bmm
from tensorport_hub.core.decode.packed_int import PackedInt
from tensorport_hub.core.decode.plain import Plain
from tensorport_hub.core.decode.quanto import QuantoBits
from tensorport_hub.core.decode.sparse import Sparse24, SparseBitmask
from tensorport_hub.core.decode.stacked import Stacked, stack
from tensorport_hub.core.tensor import TensorSpec, shorten
from tensorport_hub.errors import CheckpointError

SCHEMES: Mapping[str, type[Decoder]] = {
    kind.scheme: kind
    for kind in (
        Plain,
        Mxfp4,
        Mxfp6,
        Nvfp4,
        Nvfp4Times,
        Nvfp4Over,
        Nvfp4Awq,
        Nvfp4Bmm,
        Gptq,
        GptqOrdered,
        AwqGemm,
        AwqGemv,
        AwqGemvFast,
        PackedInt,
        ModelOptInt4,
        ModelOptInt4Awq,
        Sparse24,
        SparseBitmask,
        Float8,
        Int8,
        Int8Zero,
        Bnb4,
        Bnb4Nested,
        Bnb8,
        Hqq,
        MetalAffine,
        MlxAffine,
        QuantoBits,
        GemmaLowBits,
        BitnetOver,
        BitnetTimes,
    )
}


def bind(scheme: str, inputs: Sequence[TensorSpec], params: Params) -> Decoder:
    """The decoder that `scheme`, `inputs` and `params` of a plan describe.

    Raises:
        CheckpointError: they don't belong together, or what counts something is no whole number.
    """
    if scheme == Stacked.scheme:
        _check_count("experts", params.get("experts"))
        return stack(_bind_one, inputs, **params)
    return _bind_one(scheme, inputs, params)


def _bind_one(scheme: str, inputs: Sequence[TensorSpec], params: Params) -> Decoder:
    kind = SCHEMES[scheme]
    for field in fields(kind):  # type: ignore[arg-type] # every decoder is a dataclass
        if field.type == "int" and field.name in params:
            _check_count(field.name, params[field.name])
    return kind(*inputs, **params)


def _check_count(name: str, value: object) -> None:
    """JSON has `1.0`, `true` and `1e999` too, which would do as numbers for a while."""
    if type(value) is not int:
        raise CheckpointError(f"`{name}` of a decoder: expected a whole number, got {shorten(repr(value))}")
