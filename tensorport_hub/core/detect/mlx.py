"""MLX, and the `metal` method of transformers: `X.weight` U32 and `X.scales`.

- Float scales and `X.biases`: affine. Shapes tell the product of bits and group size, and the configuration
  one of the two: `quantization` in config.json (or `quantization_config` without, or with one of MLX's or
  metal's own `quant_method`), where an entry named as the module comes first. Names are also looked for with
  leading parts less or more, since the configurations of wrapped models differ in them.
- Float scales and `X.qbiases`: the same of `metal`, whose words hold whole codes: 2, 4 or 8 bits.
- U8 scales: how many words share one tells MXFP4, MXFP8 and NVFP4 apart.

`X.bias` is a real bias. Sources: ml-explore/mlx-lm `utils.py`, `quantize_model` and `load_model`;
ml-explore/mlx `ops.cpp`, `quantize`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tensorport_hub.core.decode.decoder import Decoder
from tensorport_hub.core.decode.float8 import Float8
from tensorport_hub.core.decode.mlx_affine import BITS, MetalAffine, MlxAffine
from tensorport_hub.core.decode.mxfp4 import Mxfp4
from tensorport_hub.core.decode.nvfp4 import Nvfp4
from tensorport_hub.core.detect.checkpoint import Checkpoint, Claim
from tensorport_hub.core.tensor import TensorSpec, shorten
from tensorport_hub.errors import CheckpointError

SUFFIXES = ((".scales", ".weight"), (".biases", ".weight"), (".qbiases", ".weight"))
FACTS: tuple[str, ...] = ()

_GROUPS = (32, 64, 128)
_METAL_BITS = (2, 4, 8)
_OWN_METHODS = (None, "mlx", "metal")


def claim(tensor: TensorSpec, checkpoint: Checkpoint) -> Claim | None:
    """The module whose primary `tensor` is."""
    stem, _, last = tensor.name.rpartition(".")
    if last in ("biases", "qbiases"):
        _refuse_orphan(tensor, stem, checkpoint)
    if last != "weight" or tensor.dtype.name != "U32":
        return None
    offsets = [found for end in ("biases", "qbiases") if (found := checkpoint.find(f"{stem}.{end}"))]
    scales = checkpoint.find(f"{stem}.scales")
    if scales is None:
        if offsets:
            checkpoint.need(f"{stem}.scales", of=tensor, scheme="MLX affine")
        return None
    if scales.dtype.name == "U8":
        if offsets:
            raise CheckpointError(f"{tensor} has scales of powers, {scales}, and offsets too: {offsets[0]}")
        return Claim(tensor.name, _small_floats(tensor, scales))
    if len(offsets) > 1:
        raise CheckpointError(f"{tensor} has offsets of MLX and of metal: {offsets[0]} and {offsets[1]}")
    biases = offsets[0] if offsets else checkpoint.need(f"{stem}.biases", of=tensor, scheme="MLX affine")
    metal = biases.name.endswith(".qbiases")
    bits = _bits(tensor, scales, stem, checkpoint, _METAL_BITS if metal else BITS)
    return Claim(tensor.name, (MetalAffine if metal else MlxAffine)(tensor, scales, biases, bits))


def _refuse_orphan(tensor: TensorSpec, stem: str, checkpoint: Checkpoint) -> None:
    """Refuse offsets beside scales that no weight belongs to.

    Raises:
        CheckpointError: it is absent.
    """
    if tensor.name.endswith(".qbiases") or f"{stem}.scales" in checkpoint.tensors:
        checkpoint.need(f"{stem}.weight", of=tensor, scheme="the offsets of MLX affine")


def _small_floats(weight: TensorSpec, scales: TensorSpec) -> Decoder:
    """MXFP4, MXFP8 or NVFP4 in words of four bytes.

    Raises:
        CheckpointError: none of them.
    """
    words, count = (tensor.shape[-1] if tensor.shape else 0 for tensor in (weight, scales))
    if words == 4 * count:
        return Mxfp4(weight, scales)
    if words == 2 * count:
        return Nvfp4(weight, scales)
    if words == 8 * count:
        return Float8(weight, scales, stack=1, rows=1, cols=32, codes="F8_E4M3", returns="BF16")
    raise CheckpointError(
        f"scales {scales}: expected one for every 4 words (MXFP4), 2 (NVFP4) or 8 (MXFP8) of {weight}"
    )


def _bits(
    weight: TensorSpec, scales: TensorSpec, module: str, checkpoint: Checkpoint, allowed: tuple[int, ...]
) -> int:
    """Bits of a code: `bits * group size * scales of a row = 32 * words of a row`.

    Raises:
        CheckpointError: the configuration contradicts the shapes, or doesn't settle what they leave open.
    """
    words, groups = (tensor.shape[-1] if tensor.shape else 0 for tensor in (weight, scales))
    if not groups or 32 * words % groups:
        raise CheckpointError(f"scales {scales}: expected groups of equal size to match {weight}")
    share = 32 * words // groups
    stated = _stated(module, checkpoint)
    bits, size = (stated.get(key) for key in ("bits", "group_size"))
    if type(bits) is int or type(size) is int:
        fits = [b for b in allowed if share % b == 0 and bits in (None, b) and size in (None, share // b)]
        if not fits:
            raise CheckpointError(
                f"{weight} with {scales}: the configuration says {bits} bits in groups of {size},"
                f" the shapes {share} bits a group"
            )
    else:
        fits = [b for b in allowed if share % b == 0 and share // b in _GROUPS]
        if not fits:
            raise CheckpointError(f"{weight} with {scales}: expected groups of {_GROUPS}, got {share} bits")
    if len(fits) > 1:
        readings = " or ".join(f"{b} bits in groups of {share // b}" for b in fits)
        raise CheckpointError(
            f"{weight} with {scales} may have {readings}, and no `quantization` in `config.json` says which"
        )
    return fits[0]


def _stated(module: str, checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Bits and group size that the configuration states for a module, as far as it does."""
    for place in _places(checkpoint):
        entry = _entry(place, module)
        affine = str(place.get("mode") or "affine") == "affine"
        general = {key: place.get(key) for key in ("bits", "group_size")} if affine else {}
        if entry is None or not ("bits" in entry or "group_size" in entry):
            if any(value is not None for value in general.values()):
                return general
            continue
        return entry
    return {}


def _places(checkpoint: Checkpoint) -> Iterator[Mapping[str, Any]]:
    config = checkpoint.configs.get("config.json", {})
    for holder in (config, config.get("text_config")):
        if not isinstance(holder, Mapping):
            continue
        for key in ("quantization", "quantization_config"):
            place = holder.get(key)
            if isinstance(place, Mapping) and place.get("quant_method") in _OWN_METHODS:
                yield place


def _entry(place: Mapping[str, Any], module: str) -> Mapping[str, Any] | None:
    """A module's own entry: by its name, else by one that differs in leading parts.

    Raises:
        CheckpointError: two such names state different things.
    """
    exact = place.get(module)
    if isinstance(exact, Mapping):
        return exact
    near = [
        value
        for name, value in place.items()
        if isinstance(value, Mapping) and (name.endswith(f".{module}") or module.endswith(f".{name}"))
    ]
    if any(value != near[0] for value in near):
        raise CheckpointError(f"`quantization` in `config.json` says two things of `{shorten(module)}`")
    return near[0] if near else None
