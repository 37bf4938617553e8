"""HQQ: `X.W_q` with `X.scale` and `X.zero` makes `X.weight`.

What dequantization must know is stored beside it, numbers as small tensors and words as their bytes: shape,
nbits, group_size, axis, packing, compute_dtype, and flags. Where bits, groups or axis are absent there, the
configuration's `weight_quant_params` say them; the shape has no other place. Scales or zero points that are
quantized themselves, and one scale for a whole weight, are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tensorport_hub.core.decode.hqq import Hqq
from tensorport_hub.core.detect.checkpoint import Checkpoint, Claim
from tensorport_hub.core.tensor import TensorSpec, shorten
from tensorport_hub.errors import CheckpointError

_SCHEME = "HQQ"
_NUMBERS = (".shape", ".nbits", ".group_size", ".axis")
_WORDS = (".packing", ".compute_dtype")
_UNSUPPORTED = {".quant_scale": 0, ".quant_zero": 0, ".channel_wise": 1}
"""Flags, and what they must be."""
_AUXILIARY = (
    ".encoded_state_dict",
    ".offload_meta",
    ".optimize",
    ".round_zero",
    ".stores_quant_config",
    ".unpack_view_dtype",
    ".view_as_float",
)
_COMPUTE = {"torch.bfloat16": "BF16", "torch.float16": "F16", "torch.float32": "F32"}

FACTS = (*_NUMBERS, *_WORDS, *_UNSUPPORTED)
SUFFIXES = tuple((end, ".weight") for end in (".W_q", ".scale", ".zero", *FACTS, *_AUXILIARY))


def claim(tensor: TensorSpec, checkpoint: Checkpoint) -> Claim | None:
    """The module whose primary `tensor` is."""
    module, _, last = tensor.name.rpartition(".")
    if last != "W_q" or checkpoint.method == "sinq":
        return None
    scale = checkpoint.need(f"{module}.scale", of=tensor, scheme=_SCHEME)
    zero = checkpoint.need(f"{module}.zero", of=tensor, scheme=_SCHEME)
    meta = _Meta(tensor, module, checkpoint)
    meta.refuse_unsupported()
    shape = meta.numbers(".shape")
    if shape is None or min(shape, default=0) < 1:
        raise CheckpointError(
            f"{tensor}: expected `{shorten(module)}.shape` with sizes, got {shorten(shape)}"
        )
    decoder = Hqq(
        tensor,
        scale,
        zero,
        dims=",".join(map(str, shape)),
        nbits=meta.bits(),
        group_size=meta.setting(".group_size", optional=True),
        axis=meta.setting(".axis"),
        compute=meta.compute(scale),
    )
    spent = checkpoint.present(*(module + end for end in (*FACTS, *_AUXILIARY)))
    return Claim(f"{module}.weight", decoder, spent)


class _Meta:
    """What is stored beside one module's codes."""

    def __init__(self, codes: TensorSpec, module: str, checkpoint: Checkpoint) -> None:
        self._codes, self._module, self._checkpoint = codes, module, checkpoint

    def _stored(self, end: str) -> tuple[TensorSpec, bytes] | None:
        name = self._module + end
        found = self._checkpoint.find(name)
        if found is None:
            return None
        return found, self._checkpoint.fact(name, of=self._codes, scheme=_SCHEME)

    def numbers(self, end: str) -> list[int] | None:
        """Whole numbers stored as a tensor."""
        stored = self._stored(end)
        if stored is None:
            return None
        spec, data = stored
        values = np.frombuffer(data, spec.dtype.numpy).astype(np.float64)
        if not np.all(values == np.rint(values)) or len(spec.shape) > 1:
            raise CheckpointError(
                f"{self._codes}: expected whole numbers in {spec}, got {shorten(values.tolist())}"
            )
        return [int(value) for value in values]

    def setting(self, end: str, *, optional: bool = False) -> int:
        """One whole number, stored or else configured; 0 where it may be absent and is."""
        stored = self.numbers(end)
        if stored is not None:
            if len(stored) != 1:
                raise CheckpointError(
                    f"{self._codes}: expected one number in `{shorten(self._module + end)}`,"
                    f" got {shorten(stored)}"
                )
            return stored[0]
        value = self._configured.get(end[1:])
        if value is None and optional:
            return 0
        if type(value) is not int:
            raise CheckpointError(
                f"{self._codes}: expected `{shorten(self._module + end)}`, or `{end[1:]}` in the"
                f" configuration, got {value!r}"
            )
        return value

    @property
    def _configured(self) -> Mapping[str, Any]:
        config = self._checkpoint.quantization.get("quant_config")
        params = config.get("weight_quant_params") if isinstance(config, Mapping) else None
        return params if isinstance(params, Mapping) else {}

    def bits(self) -> int:
        """Bits of a stored code: 1.58-bit weights have 2."""
        packing = self._stored(".packing")
        if packing is None:
            return self.setting(".nbits")
        text = packing[1].decode("ascii", "replace")
        match = re.fullmatch(r"(\d)bit_(u8|32)", text)
        if match is None:
            raise CheckpointError(f"{self._codes}: expected a packing like `4bit_u8`, got `{shorten(text)}`")
        return int(match[1])

    def compute(self, scale: TensorSpec) -> str:
        """The dtype that the reference computes in; that of the scale where none is stored."""
        stored = self._stored(".compute_dtype")
        if stored is None:
            return scale.dtype.name
        text = stored[1].decode("ascii", "replace")
        if text not in _COMPUTE:
            raise CheckpointError(
                f"{self._codes}: expected a compute dtype {' or '.join(_COMPUTE)}, got `{shorten(text)}`"
            )
        return _COMPUTE[text]

    def refuse_unsupported(self) -> None:
        """Raises CheckpointError where a flag says that factors are stored in another way."""
        for end, expected in _UNSUPPORTED.items():
            got = self.numbers(end)
            if got not in (None, [expected]):
                raise CheckpointError(
                    f"{self._codes}: expected `{shorten(self._module + end)}` {expected}, got {got}"
                )
