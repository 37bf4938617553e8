"""Which stored tensors make which output tensor.

`recipes` looks at names, dtypes and shapes, tensor by tensor; the model's configuration is only asked whether
it states a quantization at all. A stored tensor is claimed by exactly one recipe. Whatever looks quantized
and is not a layout of `core/decode/` is refused by name, all of them at once: a silent copy of packed bytes
would look like weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tensorport_hub.core.decode.cast import is_castable
from tensorport_hub.core.decode.decoder import Decoder
from tensorport_hub.core.decode.mxfp4 import Mxfp4
from tensorport_hub.core.decode.plain import Plain
from tensorport_hub.core.npy import stored_shape
from tensorport_hub.core.safetensors import shorten
from tensorport_hub.core.tensor import PRECISIONS, DType, TensorSpec
from tensorport_hub.errors import CheckpointError, gather

_SCHEME_OF_SUFFIX = {
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "g_idx": "GPTQ",
    "weight_packed": "compressed-tensors",
    "weight_g_idx": "compressed-tensors",
    "bitmask": "compressed-tensors sparse",
    "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "SCB": "bitsandbytes int8",
    "W_q": "HQQ",
    "_data": "quanto",
    "_weight_qdata": "torchao",
    "weight_scale": "FP8, compressed-tensors or ModelOpt",
    "weight_scale_2": "ModelOpt NVFP4",
    "weight_scale_inv": "FP8",
    "weight_global_scale": "compressed-tensors NVFP4",
    "weight_zero_point": "compressed-tensors",
    "qscale_weight": "Mistral FP8",
    "codebooks": "AQLM",
    "centroids": "VPTQ",
    "trellis": "EXL3",
    "qidxs": "QuIP",
    "dqweight": "FP-Quant",
    "pre_quant_scale": "ModelOpt AWQ",
    "embedding_quantized": "Gemma QAT",
}
_SCALE = re.compile(r"(^|_)q?scales?(_inv|_\d+|_ub|_weight|_act)?$")
_SCALE_BESIDE = ("_scale", "_scale_inv", "_weight_scale")


@dataclass(frozen=True)
class Recipe:
    """One output tensor: what decodes it, and the dtype that its elements are rounded to."""

    name: str
    decoder: Decoder
    dtype: DType

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape."""
        return self.decoder.shape

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of stored items: as `shape`, with the last axis in bytes for packed dtypes."""
        return stored_shape(self.dtype, self.shape)

    @property
    def casts(self) -> bool:
        return self.dtype != self.decoder.dtype


def recipes(
    tensors: Iterable[TensorSpec], *, precision: str = "keep", quantization_stated: bool = False
) -> list[Recipe]:
    """The output tensors, in the order of their primary inputs.

    Args:
        tensors: all wanted stored tensors, files by name, then by offset.
        precision: `keep`, or a key of `PRECISIONS` that floats are rounded to.
        quantization_stated: the model's configuration names a quantization.

    Raises:
        CheckpointError: all tensors of unsupported schemes, all companions without partner.
    """
    by_name: dict[str, TensorSpec] = {tensor.name: tensor for tensor in tensors}
    scaled = any(_SCALE.search(name.rpartition(".")[2]) for name in by_name)
    made: list[Recipe] = []
    problems: list[str] = []
    for tensor in by_name.values():
        try:
            decoder = _decoder(tensor, by_name, lone_floats=not (scaled or quantization_stated))
            if decoder is not None:
                made.append(_recipe(tensor, decoder, precision))
        except CheckpointError as error:
            problems.append(error.message)
    problems += [
        f"{recipe.decoder.inputs[0]} decodes to `{shorten(recipe.name)}`, which is a stored tensor too"
        for recipe in made
        if recipe.name != recipe.decoder.inputs[0].name and recipe.name in by_name
    ]
    if problems:
        raise gather(
            CheckpointError,
            problems,
            hint="`--exclude` leaves tensors out; decoding supports plain dtypes and gpt-oss MXFP4",
        )
    return made


def logical_name(stored: str) -> str:
    """The output tensor that a stored tensor's name belongs to, if it is one of a group."""
    for suffix in ("_blocks", "_scales"):
        if stored.endswith(suffix):
            return stored.removesuffix(suffix)
    return stored


def _recipe(tensor: TensorSpec, decoder: Decoder, precision: str) -> Recipe:
    name = logical_name(tensor.name) if isinstance(decoder, Mxfp4) else tensor.name
    dtype = decoder.dtype
    if precision != "keep" and dtype.kind == "float":
        if not is_castable(dtype):
            raise CheckpointError(f"{tensor} can't be rounded to {precision}: packed {dtype} has no decoder")
        dtype = PRECISIONS[precision]
    recipe = Recipe(name, decoder, dtype)
    try:
        _ = recipe.stored_shape
    except ValueError as error:
        raise CheckpointError(f"{tensor}: {error}") from None
    return recipe


def _decoder(tensor: TensorSpec, by_name: Mapping[str, TensorSpec], *, lone_floats: bool) -> Decoder | None:
    """The decoder whose primary `tensor` is; None for a companion."""
    partner = _mxfp4_partner(tensor, by_name)
    if partner is not None:
        return Mxfp4(tensor, partner) if tensor.name.endswith("_blocks") else None
    _refuse_unsupported(tensor, by_name, lone_floats=lone_floats)
    return Plain(tensor)


def _mxfp4_partner(tensor: TensorSpec, by_name: Mapping[str, TensorSpec]) -> TensorSpec | None:
    for own, other in (("_blocks", "_scales"), ("_scales", "_blocks")):
        if tensor.name.endswith(own) and tensor.dtype.name == "U8":
            name = tensor.name.removesuffix(own) + other
            if name not in by_name:
                raise CheckpointError(f"{tensor} looks like gpt-oss MXFP4, but `{shorten(name)}` is absent")
            return by_name[name]
    return None


def _refuse_unsupported(tensor: TensorSpec, by_name: Mapping[str, TensorSpec], *, lone_floats: bool) -> None:
    last = tensor.name.rpartition(".")[2]
    scheme = _scheme(tensor, last)
    if scheme is not None:
        raise CheckpointError(f"{tensor} belongs to a scheme that is not supported: {scheme}")
    if tensor.dtype.kind in ("int", "bool") and len(tensor.shape) in (2, 3):
        beside = next((tensor.name + s for s in _SCALE_BESIDE if tensor.name + s in by_name), None)
        if beside is not None:
            raise CheckpointError(f"{tensor} looks like a packed weight: its scale is `{shorten(beside)}`")
        if last == "weight":
            raise CheckpointError(f"{tensor} looks like a packed weight of a scheme that is not supported")
    if tensor.dtype.kind == "float" and tensor.dtype.nbits <= 8 and not lone_floats:
        raise CheckpointError(
            f"{tensor} looks like a scaled weight: FP8, FP6 and FP4 schemes are not supported"
        )


def _scheme(tensor: TensorSpec, last: str) -> str | None:
    """The scheme that a name gives away; experts' names have the suffix after a `_`."""
    if ".quant_state." in tensor.name:
        return "bitsandbytes"
    if last == "blocks" and tensor.dtype.name == "U8":
        return "MXFP4 as in `original/` of gpt-oss"
    experts = last[last.find("_weight_") + 1 :] if "_weight_" in last else last
    return _SCHEME_OF_SUFFIX.get(last) or _SCHEME_OF_SUFFIX.get(experts)
