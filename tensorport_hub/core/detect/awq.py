"""AWQ: `X.qweight`, `X.qzeros` and `X.scales` make `X.weight`; the shapes tell which of three layouts.

The configuration (`quant_method: "awq"`, `quant_config.json` of 2023, or auto-round's `auto_awq`) must say 4
bits if it says any, and says the group size where padding hides it. `zero_point: false` is only believed
where all stored zero points are the middle, which is checked when they are read. This family is the last to
be asked of `qweight`, so shapes that nobody explains are an error here.
"""

from __future__ import annotations

from tensorport_hub.core.decode.awq import AwqGemm
from tensorport_hub.core.decode.awq_gemv import AwqGemv, AwqGemvFast
from tensorport_hub.core.detect.checkpoint import Checkpoint, Claim
from tensorport_hub.core.detect.qweight import Module, module
from tensorport_hub.core.tensor import TensorSpec
from tensorport_hub.errors import CheckpointError

SUFFIXES: tuple[str, ...] = ()
FACTS: tuple[str, ...] = ()

_VERSIONS = {
    "gemm": "gemm",
    "exllama": "gemm",
    "gemv": "gemv",
    "gemv_fast": "gemv_fast",
    "llm-awq": "gemv_fast",
}
_WIDTHS = {32: 4, 64: 2}
"""Group size -> what the words of a row's zero points are a multiple of."""


def claim(tensor: TensorSpec, checkpoint: Checkpoint) -> Claim | None:
    """The module whose primary `tensor` is."""
    found = module(tensor, checkpoint)
    if found is None or found.layouts == ("gptq",):
        return None
    bits = found.number("bits", "w_bit")
    if bits not in (None, 4):
        raise CheckpointError(
            f"{tensor} has the shapes of AWQ; expected 4 bits, the configuration says {bits}"
        )
    layout = _layout(found)
    stated = found.number("group_size", "q_group_size")
    middle = found.config.get("zero_point") is False
    tensors = (found.qweight, found.qzeros, found.scales)
    if layout == "gemm":
        size = found.group_size(tensor.shape[-2], found.scales.shape[-2], stated)
        zeros = "middle" if middle else "stored"
        return Claim(found.name, AwqGemm(*tensors, size=size, signed=0, zeros=zeros))
    if middle:
        raise CheckpointError(f"{tensor}: AWQ {layout} with `zero_point: false` is not supported")
    if layout == "gemv":
        size = _padded_size(found, tensor.shape[-1] * 8, found.qzeros.shape[-1], stated)
        return Claim(found.name, AwqGemv(*tensors, size=size))
    size = _padded_size(found, tensor.shape[-1], found.scales.shape[-2] // 8, stated)
    return Claim(found.name, AwqGemvFast(*tensors, size=size))


def _layout(found: Module) -> str:
    """The one layout that the shapes have, and the configuration says where they have two.

    Raises:
        CheckpointError: there is none.
    """
    layouts = [layout for layout in found.layouts if layout != "gptq"]
    said = str(found.config.get("version") or found.config.get("checkpoint_format") or "").lower()
    version = _VERSIONS.get(said)
    if version is not None and version not in layouts:
        raise CheckpointError(
            f"{found.qweight} with {found.scales}: the configuration says AWQ {said}, got the shapes of"
            f" {' or '.join(layouts)}"
        )
    if len(layouts) == 1:
        return layouts[0]
    if version is None:
        raise CheckpointError(
            f"{found.qweight} may be AWQ {' or '.join(layouts)}, and no `version` says which"
        )
    return version


def _padded_size(found: Module, columns: int, width: int, stated: int | None) -> int:
    """Columns of a group, where groups are padded to `width` words.

    Raises:
        CheckpointError: the stated size needs more, or none is stated and several would do.
    """
    if stated is not None:
        return columns if stated <= 0 else stated
    fits = {size for size in (32, 64, 128, columns) if size and _width(columns, size) == width}
    if len(fits) != 1:
        raise CheckpointError(
            f"scales {found.scales}: groups of {columns} columns may be of {sorted(fits)}, and no"
            " configuration says which"
        )
    return fits.pop()


def _width(columns: int, size: int) -> int:
    """Words of a row's zero points, as AutoAWQ pads them."""
    multiple = _WIDTHS.get(size, 1)
    words = -(-(columns // size) // 8)
    return -(-words // multiple) * multiple
