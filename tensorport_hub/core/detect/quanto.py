"""quanto: `X._data` and `X._scale` (8 bits), or `X._data._data`, `X._scale` and `X._shift` (4, 2) make `X`.

The 4- and 2-bit weights are stored without their shape. Convolutions without groups keep theirs. A matrix
stored with rows of 128, 96, 64 or 32 codes may have been cut into groups, which quanto does where the rows of
the weight are longer than 128: the module's bias then says how many rows there are, and without one nothing
does. Groups of a module that is named as a convolution are refused, since nothing says what its other axes
were. Whether codes have 4 or 2 bits follows from the number of scales, or else from `weights` in the
configuration.
"""

from __future__ import annotations

from math import prod

from tensorport_hub.core.decode.decoder import Decoder
from tensorport_hub.core.decode.float8 import CODES, Float8
from tensorport_hub.core.decode.int8 import Int8
from tensorport_hub.core.decode.quanto import QuantoBits
from tensorport_hub.core.detect.checkpoint import Checkpoint, Claim
from tensorport_hub.core.tensor import TensorSpec, shorten
from tensorport_hub.errors import CheckpointError

_SCHEME = "quanto"
_GROUPS = (128, 96, 64, 32)
_LONGEST_WHOLE = 128
_BITS = {"int4": 4, "qint4": 4, "int2": 2, "qint2": 2}

SUFFIXES = ("._data._data", "._data", "._scale", "._shift")
FACTS: tuple[str, ...] = ()


def claim(tensor: TensorSpec, checkpoint: Checkpoint) -> Claim | None:
    """The module whose primary `tensor` is."""
    name = tensor.name
    if name.endswith("._data._data"):
        stem = name.removesuffix("._data._data")
        scale = checkpoint.need(f"{stem}._scale", of=tensor, scheme=_SCHEME)
        shift = checkpoint.need(f"{stem}._shift", of=tensor, scheme=_SCHEME)
        nbits = _nbits(tensor, scale, checkpoint)
        dims = ",".join(map(str, _shape(tensor, scale, stem, checkpoint)))
        return Claim(stem, QuantoBits(tensor, scale, shift, dims, nbits))
    if name.endswith("._data"):
        stem = name.removesuffix("._data")
        scale = checkpoint.need(f"{stem}._scale", of=tensor, scheme=_SCHEME)
        return Claim(stem, _bytes(tensor, scale))
    if name.endswith((".weight._scale", ".weight._shift")):
        stem = name.rpartition(".")[0]
        if not checkpoint.present(f"{stem}._data", f"{stem}._data._data"):
            checkpoint.need(f"{stem}._data", of=tensor, scheme=_SCHEME)
    return None


def _bytes(tensor: TensorSpec, scale: TensorSpec) -> Decoder:
    """8-bit codes with one scale, one per output row, or one per column."""
    shape = tensor.shape
    if tensor.dtype.name != "I8" and tensor.dtype.name not in CODES:
        raise CheckpointError(f"quanto {tensor}: expected I8 or an 8-bit float")
    rows, width = prod(shape[:-1]), shape[-1] if shape else 1
    ones = (1,) * len(shape[1:])
    if scale.dtype.name not in ("F32", "BF16", "F16"):
        raise CheckpointError(f"quanto {scale}: expected F32, BF16 or F16")
    if scale.numel == 1:
        block = rows, width
    elif scale.shape == (*shape[:1], *ones):
        block = prod(shape[1:-1]), width
    elif scale.shape == (*ones, width):
        block = rows, 1
    else:
        raise CheckpointError(
            f"quanto {scale}: expected one scale, {[*shape[:1], *ones]} or {[*ones, width]}"
            f" to match `{shorten(tensor.name)}`"
        )
    returns = scale.dtype.name
    if tensor.dtype.name == "I8":
        return Int8(tensor, scale, 1, *block, returns)
    return Float8(tensor, scale, 1, *block, tensor.dtype.name, returns)


def _nbits(tensor: TensorSpec, scale: TensorSpec, checkpoint: Checkpoint) -> int:
    rows, packed = scale.numel, tensor.shape[0] if tensor.shape else 0
    fitting = [nbits for nbits in (4, 2) if -(-rows * nbits // 8) == packed]
    if len(fitting) > 1:
        configured = _BITS.get(str(checkpoint.quantization.get("weights")).lower())
        fitting = [nbits for nbits in fitting if nbits == configured]
    if len(fitting) != 1:
        raise CheckpointError(
            f"quanto {tensor}: expected {rows} rows of 4-bit or of 2-bit codes to match {scale}"
        )
    return fitting[0]


def _shape(tensor: TensorSpec, scale: TensorSpec, stem: str, checkpoint: Checkpoint) -> tuple[int, ...]:
    """The weight's shape."""
    stored = (scale.numel, *tensor.shape[1:])
    if len(stored) != 2:
        return stored
    module, _, last = stem.rpartition(".")
    bias = checkpoint.find(f"{module}.bias") if last == "weight" else None
    if bias is not None:
        rows = prod(bias.shape)
        if len(bias.shape) != 1 or rows == 0 or stored[0] % rows:
            raise CheckpointError(f"quanto {tensor}: {bias} does not divide its {stored[0]} groups into rows")
        shape = rows, stored[0] // rows * stored[1]
        if rows != stored[0] and (stored[1] not in _GROUPS or shape[1] <= _LONGEST_WHOLE):
            raise CheckpointError(f"quanto {tensor}: expected {rows} rows to match {bias}, got {stored[0]}")
        if rows != stored[0] and "conv" in module.rpartition(".")[2].lower():
            raise CheckpointError(
                f"quanto {tensor}: its shape is not stored; `{shorten(module)}` is named as a convolution,"
                f" whose rows of {shape[1]} may have had more axes"
            )
        return shape
    if stored[1] in _GROUPS:
        raise CheckpointError(
            f"quanto {tensor}: its shape is not stored; it is {[*stored]} or groups of longer rows,"
            f" and no `{shorten(module)}.bias` says how many rows there are"
        )
    return stored
