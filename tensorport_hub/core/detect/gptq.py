"""GPTQ and auto-round: `X.qweight`, `X.qzeros`, `X.scales` and perhaps `X.g_idx` make `X.weight`.

Bits come from the shapes and must be those that the configuration says, if it says any. How zero points are
stored and whether codes are in planes only the configuration knows:

| quant_method | says | zero points |
| gptq | `checkpoint_format` or `format` absent or `gptq` | v1 |
| gptq | `gptq_v2` | v2 |
| gptq | `gptq_p` | v2; 3, 5, 6 and 7 bits in planes |
| auto-round | `packing_format` `auto_round:auto_gptq`, `auto_round:gptq` | v1 |
| auto-round | `auto_round`, `auto_round:gptqmodel` | v2 |

Without any configuration, only symmetric zero points tell; that is checked when they are read. Columns in
the order of activations (`desc_act`) need `g_idx`.
"""

from __future__ import annotations

from tensorport_hub.core.decode.gptq import Gptq, GptqOrdered
from tensorport_hub.core.detect.checkpoint import Checkpoint, Claim
from tensorport_hub.core.detect.qweight import AUTO_ROUND, SUFFIXES, Module, module
from tensorport_hub.core.tensor import TensorSpec
from tensorport_hub.errors import CheckpointError

FACTS: tuple[str, ...] = ()

_FORMATS = {"gptq": ("v1", "stream"), "gptq_v2": ("v2", "stream"), "gptq_p": ("v2", "planar")}
_PACKING_FORMATS = {
    "auto_round": ("v2", "stream"),
    "auto_round:auto_round": ("v2", "stream"),
    "auto_round:gptqmodel": ("v2", "stream"),
    "auto_round:gptq": ("v1", "stream"),
    "auto_round:auto_gptq": ("v1", "stream"),
}
_PLANAR_ONLY = (5, 6, 7)


def claim(tensor: TensorSpec, checkpoint: Checkpoint) -> Claim | None:
    """The module whose primary `tensor` is."""
    found = module(tensor, checkpoint)
    if found is None:
        return None
    layouts = found.layouts
    if layouts != ("gptq",):
        if "gptq" in layouts and checkpoint.method != "awq":
            raise CheckpointError(f"{tensor} may be GPTQ or AWQ by its shapes")
        return None
    if checkpoint.method == "awq":
        raise CheckpointError(f"{tensor} has the shapes of GPTQ, but the configuration says AWQ")
    bits = _bits(found)
    zeros, packing = _conventions(found, bits)
    tensors = (found.qweight, found.qzeros, found.scales)
    columns = found.qweight.shape[-2] * found.qweight.dtype.nbits // bits
    if found.g_idx is not None:
        return Claim(
            found.name,
            GptqOrdered(*tensors, found.g_idx, bits=bits, size=0, zeros=zeros, packing=packing),
        )
    size = found.group_size(columns, found.scales.shape[-2], found.number("group_size"))
    if found.config.get("desc_act") is True and found.scales.shape[-2] > 1:
        raise CheckpointError(
            f"{tensor}: the configuration says `desc_act`, but `{found.stem}g_idx`, the order, is absent"
        )
    return Claim(found.name, Gptq(*tensors, bits=bits, size=size, zeros=zeros, packing=packing))


def _bits(found: Module) -> int:
    """Bits of a code.

    Raises:
        CheckpointError: the shapes allow none, or several and the configuration doesn't say which, or others
            than it says.
    """
    weight, zeros = found.qweight, found.qzeros
    word, (rows, out) = weight.dtype.nbits, weight.shape[-2:]
    index = found.g_idx
    fits = []
    for bits in range(2, 9):
        nbits = rows * word
        if index is not None and index.shape:  # only then may a word be partly filled
            nbits = -(-index.shape[-1] * bits // word) * word
        elif nbits % bits:
            continue
        if zeros.shape[-1] == -(-out * bits // word) and rows * word == nbits:
            fits.append(bits)
    stated = found.number("bits", "w_bit")
    if stated is not None and stated in fits:
        return stated
    if stated is not None or not fits:
        said = "2 to 8" if stated is None else f"the configuration's {stated}"
        raise CheckpointError(
            f"{weight} with {zeros}{'' if index is None else f' and {index}'}: expected the shapes of {said}"
            f" bits, got those of {' or '.join(map(str, fits)) or 'none'}"
        )
    if len(fits) > 1:
        raise CheckpointError(f"{weight} with {zeros} may have {fits} bits, and no configuration says which")
    return fits[0]


def _conventions(found: Module, bits: int) -> tuple[str, str]:
    """How zero points and codes are stored.

    Raises:
        CheckpointError: the configuration says what is not known, or leaves open what it must say.
    """
    config, method = found.config, found.checkpoint.method
    if method in AUTO_ROUND:
        said = str(config.get("packing_format") or "").lower()
        if said not in _PACKING_FORMATS:
            raise CheckpointError(
                f"{found.qweight}: expected a `packing_format` of {', '.join(_PACKING_FORMATS)}, got {said!r}"
            )
        return _PACKING_FORMATS[said]
    stated = config.get("checkpoint_format") or config.get("format")
    if not stated and bits in _PLANAR_ONLY:
        raise CheckpointError(
            f"{found.qweight}: {bits} bits may be in planes, and no `checkpoint_format` says whether"
        )
    if not stated and not config:
        return ("middle", "stream")
    said = str(stated or "gptq").lower()
    if said not in _FORMATS:
        raise CheckpointError(
            f"{found.qweight}: expected a `checkpoint_format` of {', '.join(_FORMATS)}, got {said!r}"
        )
    return _FORMATS[said]


__all__ = ["FACTS", "SUFFIXES", "claim"]
