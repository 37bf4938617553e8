"""Which stored tensors make which output tensor.

Every tensor is offered to the families of `core/detect/` in their order; each stored tensor is claimed by
exactly one recipe. Auxiliaries that are no weights (activation scales, KV-cache scales) are left out with a
reason. What is left over passes as it is, unless it looks quantized: then it is refused by name, all such
tensors at once, because a silent copy of packed bytes would look like weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tensorport_hub.core.decode.cast import is_castable
from tensorport_hub.core.decode.decoder import Decoder
from tensorport_hub.core.decode.plain import Plain
from tensorport_hub.core.decode.stacked import Stacked
from tensorport_hub.core.detect import CLAIMS, Checkpoint, Claim
from tensorport_hub.core.npy import stored_shape
from tensorport_hub.core.tensor import PRECISIONS, DType, TensorSpec, shorten
from tensorport_hub.errors import CheckpointError, gather

_AUXILIARY = re.compile(
    r"(^|[._])(input_scale|input_global_scale|input_zero_point|output_scale|activation_scale|input_scale_ub|"
    r"q_scale|k_scale|v_scale|kv_scale|qscale_act|input_activation_scale|output_activation_scale)$"
)
"""Scales of activations and caches: never weights."""

_SCHEME_OF_SUFFIX = {
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "scales": "GPTQ, AWQ or MLX",
    "g_idx": "GPTQ",
    "biases": "MLX",
    "qbiases": "metal",
    "weight_packed": "compressed-tensors",
    "weight_shape": "compressed-tensors",
    "weight_g_idx": "compressed-tensors",
    "compressed": "compressed-tensors sparse",
    "bitmask": "compressed-tensors sparse",
    "row_offsets": "compressed-tensors sparse",
    "scale_packed": "marlin-24",
    "meta": "marlin-24",
    "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "nested_absmax": "bitsandbytes",
    "nested_quant_map": "bitsandbytes",
    "SCB": "bitsandbytes int8",
    "weight_format": "bitsandbytes int8",
    "W_q": "HQQ",
    "_data": "quanto",
    "_scale": "quanto",
    "_shift": "quanto",
    "weight_scale": "FP8, compressed-tensors or ModelOpt",
    "weight_scale_2": "ModelOpt NVFP4",
    "weight_scale_inv": "FP8",
    "weight_global_scale": "compressed-tensors NVFP4",
    "weight_zero_point": "compressed-tensors",
    "weight_scales": "EETQ",
    "qscale_weight": "Mistral FP8",
    "embedding_quantized": "gemma QAT",
    "embedding_scale": "gemma QAT",
    "codes": "AQLM",
    "codebooks": "AQLM",
    "centroids": "VPTQ",
    "trellis": "EXL3",
    "suh": "EXL3",
    "svh": "EXL3",
    "qidxs": "QuIP",
    "dqweight": "FP-Quant",
    "pre_quant_scale": "ModelOpt AWQ",
    "act_pre_scale": "torchao",
    "svdquant_lora_a": "ModelOpt SVD",
    "svdquant_lora_b": "ModelOpt SVD",
}
_COMMON_WORDS = frozenset({"scales", "biases", "codes", "meta", "_scale", "_shift"})
_SCALE_BESIDE = ("_scale", "_scale_inv", "_weight_scale")


_GPT_OSS_EXPERTS = (".mlp.experts.gate_up_proj", ".mlp.experts.down_proj")


@dataclass(frozen=True, slots=True)
class Recipe:
    """One output tensor: what decodes it, and the dtype that its elements are rounded to.

    Attributes:
        every: first and step: only these of the rows that the decoder makes of each matrix (axis 1), or of
            the columns where they are `swapped`.
        swapped: the last two axes come out the other way round.
    """

    name: str
    decoder: Decoder
    dtype: DType
    every: tuple[int, int] | None = None
    swapped: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape."""
        shape = self.decoder.shape
        if self.swapped:
            shape = (*shape[:-2], shape[-1], shape[-2])
        return shape if self.every is None else (shape[0], shape[1] // self.every[1], *shape[2:])

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of stored items: as `shape`, with the last axis in bytes for packed dtypes."""
        return stored_shape(self.dtype, self.shape)

    @property
    def source_shape(self) -> tuple[int, ...]:
        """The same of what the decoder makes, before rows are chosen and axes swapped."""
        return stored_shape(self.dtype, self.decoder.shape)

    @property
    def parameters(self) -> int:
        """True logical number of weights."""
        return self.decoder.parameters // (1 if self.every is None else self.every[1])

    @property
    def is_transposed_in_transformers(self) -> bool:
        """gpt-oss' experts as they are packed: its model has [E, in, out], gate and up interleaved there."""
        packed = self.decoder.scheme == "mxfp4" and self.decoder.inputs[0].name.endswith("_blocks")
        return packed and len(self.shape) == 3 and self.name.endswith(_GPT_OSS_EXPERTS)

    @property
    def schemes(self) -> frozenset[str]:
        """The layouts that it is decoded from: those of its experts where they are stacked."""
        one = self.decoder
        return (
            frozenset(e.scheme for e in one.experts) if isinstance(one, Stacked) else frozenset([one.scheme])
        )

    @property
    def casts(self) -> bool:
        return self.dtype != self.decoder.exact


@dataclass(frozen=True)
class Recipes:
    """All recipes, in the order of their primary inputs.

    Attributes:
        left_out: stored tensors that are no weights, with the reason.
        packed: under `keep`, logical tensor -> how it decodes from the tensors as stored.
    """

    made: tuple[Recipe, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    packed: Mapping[str, Any] = field(default_factory=dict)


def recipes(checkpoint: Checkpoint, *, precision: str = "keep", quantized: str = "decode") -> Recipes:
    """The output tensors.

    Args:
        checkpoint: all wanted tensors, files by name, then by offset.
        precision: `keep`, or a key of `PRECISIONS` that floats are rounded to.
        quantized: `decode`, or `keep`: packed tensors pass as stored, under their stored names.

    Raises:
        CheckpointError: all tensors of unsupported schemes, all companions without partner.
    """
    claims, problems = _claims(checkpoint, strict=quantized == "decode")
    spent = {name: claim.name for claim in claims.values() for name in claim.spent}
    consumed = {t.name for claim in claims.values() for t in claim.decoder.inputs}
    if quantized == "keep":
        kept = frozenset(consumed | spent.keys())
        made = [
            _plain(t, "keep" if t.name in kept or _is_packed(t, checkpoint) else precision)
            for t in checkpoint.tensors.values()
        ]
        return Recipes(tuple(made), {}, {claim.name: _described(claim) for claim in claims.values()})
    made = []
    left_out = {name: f"belongs to `{owner}`" for name, owner in spent.items() if name not in consumed}
    for tensor in checkpoint.tensors.values():
        try:
            if tensor.name in claims:
                made.append(_decoded(claims[tensor.name], tensor, checkpoint, precision))
            elif tensor.name in consumed or tensor.name in left_out:
                continue
            elif _AUXILIARY.search(tensor.name):
                left_out[tensor.name] = "scale of activations or caches"
            elif tensor.name not in problems:
                refuse_unsupported(tensor, checkpoint)
                made.append(_plain(tensor, precision))
        except CheckpointError as error:
            problems[tensor.name] = error.message
    if problems:
        raise gather(
            CheckpointError,
            list(problems.values()),
            hint="`--exclude` leaves tensors out, `--quantized keep` copies them as they are stored",
        )
    return Recipes(tuple(made), left_out)


def _claims(checkpoint: Checkpoint, *, strict: bool) -> tuple[dict[str, Claim], dict[str, str]]:
    """Claims by the name of their primary; and, by tensor, what is wrong with the ones that failed."""
    claims: dict[str, Claim] = {}
    problems: dict[str, str] = {}
    for tensor in checkpoint.tensors.values():
        try:
            found = next((c for c in (ask(tensor, checkpoint) for ask in CLAIMS) if c is not None), None)
        except CheckpointError as error:
            if strict:
                problems[tensor.name] = error.message
            continue
        if found is not None:
            claims[found.decoder.inputs[0].name] = found
    return claims, problems


def _described(claim: Claim) -> dict[str, Any]:
    decoder = claim.decoder
    return {
        "scheme": decoder.scheme,
        "inputs": [tensor.name for tensor in decoder.inputs],
        "params": dict(decoder.params),
        "dtype": decoder.dtype.name,
        "shape": [*decoder.shape],
    }


def _decoded(claim: Claim, primary: TensorSpec, checkpoint: Checkpoint, precision: str) -> Recipe:
    own = {t.name for t in claim.decoder.inputs} | set(claim.spent)
    if claim.name in checkpoint.tensors and claim.name not in own:
        raise CheckpointError(f"{primary} decodes to `{shorten(claim.name)}`, which is a stored tensor too")
    return Recipe(claim.name, claim.decoder, PRECISIONS.get(precision, claim.decoder.dtype))


def _plain(tensor: TensorSpec, precision: str) -> Recipe:
    dtype = tensor.dtype
    if precision != "keep" and dtype.kind == "float":
        if not is_castable(dtype):
            raise CheckpointError(f"{tensor} can't be rounded to {precision}: packed {dtype} has no decoder")
        dtype = PRECISIONS[precision]
    try:
        stored_shape(dtype, tensor.shape)
    except ValueError as error:
        raise CheckpointError(f"{tensor}: {error}") from None
    return Recipe(tensor.name, Plain(tensor), dtype)


def refuse_unsupported(tensor: TensorSpec, checkpoint: Checkpoint) -> None:
    """Refuse an unclaimed tensor that must not pass as it is.

    Raises:
        CheckpointError: it looks like a part of something quantized.
    """
    last = tensor.name.rpartition(".")[2]
    scheme = _scheme(tensor, last)
    if scheme is not None and _is_companion(tensor, last, checkpoint):
        raise CheckpointError(f"{tensor} belongs to a module that no supported scheme explains: {scheme}")
    if tensor.dtype.kind in ("int", "bool") and len(tensor.shape) in (2, 3):
        beside = checkpoint.present(*(tensor.name + end for end in _SCALE_BESIDE))
        if beside:
            raise CheckpointError(f"{tensor} looks like a packed weight: its scale is `{shorten(beside[0])}`")
        if last.endswith("weight"):
            raise CheckpointError(f"{tensor} looks like a packed weight of a scheme that is not supported")
    small = tensor.dtype.kind == "float" and tensor.dtype.nbits <= 8
    if small and (checkpoint.quantization or checkpoint.has_scales):
        raise CheckpointError(f"{tensor} looks like a scaled weight, but no scale explains it")


def _is_packed(tensor: TensorSpec, checkpoint: Checkpoint) -> bool:
    """Whether an unclaimed tensor belongs to something quantized that no layout here explains."""
    try:
        refuse_unsupported(tensor, checkpoint)
    except CheckpointError:
        return True
    return False


def _scheme(tensor: TensorSpec, last: str) -> str | None:
    """The scheme that a name gives away; experts' names have the suffix after a `_`."""
    if ".quant_state." in tensor.name:
        return "bitsandbytes"
    if last == "blocks" and tensor.dtype.name == "U8":
        return "MXFP4 as in `original/` of gpt-oss"
    experts = last[last.find("_weight_") + 1 :] if "_weight_" in last else last
    return _SCHEME_OF_SUFFIX.get(last) or _SCHEME_OF_SUFFIX.get(experts)


def _is_companion(tensor: TensorSpec, last: str, checkpoint: Checkpoint) -> bool:
    """A common word says little by itself; a sibling of packed dtype says much."""
    if last not in _COMMON_WORDS:
        return True
    return checkpoint.has_packed_sibling(tensor.name.removesuffix(last))
