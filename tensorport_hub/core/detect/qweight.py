"""Modules of `qweight`, `qzeros` and `scales`: which of the layouts that share these names, and what is said.

The shapes tell the layouts apart (O out, I in, G groups, b bits; a leading axis counts experts):

| layout | qweight | qzeros | scales |
| GPTQ | I8 to I64 [I * b / word, O] | [G, O * b / word] | [G, O] |
| AWQ gemm | I32 [I, O / 8] | I32 [G, O / 8] | [G, O] |
| AWQ gemv | I32 [O, I / 8] | I32 [O, W] | [O, 8 W], padded |
| AWQ gemv_fast | I16 [O / 4, I] | F16 [W, O] | F16 [W, O], padded |
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tensorport_hub.core.detect.checkpoint import Checkpoint
from tensorport_hub.core.tensor import TensorSpec, shorten
from tensorport_hub.errors import CheckpointError

SUFFIXES = ((".qweight", ".weight"), (".qzeros", ".weight"), (".g_idx", ".weight"))
AUTO_ROUND = ("auto-round", "auto_round", "intel/auto-round")
_WORDS = ("I8", "I16", "I32", "I64")


@dataclass(frozen=True)
class Module:
    """A module's packed tensors, and what the configuration says of it."""

    qweight: TensorSpec
    qzeros: TensorSpec
    scales: TensorSpec
    g_idx: TensorSpec | None
    stem: str
    checkpoint: Checkpoint

    @property
    def name(self) -> str:
        """The logical name of its weight."""
        return self.stem.removesuffix("_") if self.stem.endswith("_") else f"{self.stem}weight"

    @property
    def layouts(self) -> tuple[str, ...]:
        """Those whose shapes these are.

        Raises:
            CheckpointError: none.
        """
        weight, zeros, scales = (t.shape for t in (self.qweight, self.qzeros, self.scales))
        if not len(weight) == len(zeros) == len(scales) >= 2 or weight[:-2] != scales[:-2]:
            raise self._unlike()
        kind = self.qweight.dtype.name
        like = {
            "gptq": kind in _WORDS and scales[-1] == weight[-1],
            "gemm": kind == "I32" and scales[-1] == 8 * weight[-1],
            "gemv": kind == "I32" and scales[-2] == weight[-2],
            "gemv_fast": kind == "I16" and scales[-1] == 4 * weight[-2],
        }
        packed = self.qzeros.dtype.name == kind
        right = {
            "gptq": packed and zeros[-2] == scales[-2],
            "gemm": packed and zeros[-2:] == (scales[-2], weight[-1]),
            "gemv": packed and 8 * zeros[-1] == scales[-1],
            "gemv_fast": zeros == scales,
        }
        near = tuple(layout for layout, is_like in like.items() if is_like)
        found = tuple(layout for layout in near if right[layout])
        if found or len(near) == 1:
            return found or near  # what is wrong with the only likely one, its decoder says best
        raise self._unlike()

    def _unlike(self) -> CheckpointError:
        return CheckpointError(
            f"{self.qweight} with {self.qzeros} and {self.scales}: expected the shapes of GPTQ, or of AWQ"
            " gemm, gemv or gemv_fast"
        )

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The quantization configuration with this module's own entry laid over it."""
        general = self.checkpoint.quantization
        if self.checkpoint.method not in ("", "gptq", "awq", *AUTO_ROUND):
            return {}  # it is about other modules
        return {**general, **self._own(general)}

    def _own(self, general: Mapping[str, Any]) -> Mapping[str, Any]:
        """Entries of `dynamic` (GPTQModel) and `extra_config` (auto-round); skips are only hints."""
        names = [*_tails(self.stem.rstrip("._"))]
        dynamic, extra = general.get("dynamic"), general.get("extra_config")
        for pattern, entry in dynamic.items() if isinstance(dynamic, Mapping) else ():
            bare = str(pattern).removeprefix("+:")
            if not bare.startswith("-:") and isinstance(entry, Mapping) and _matches(bare, names):
                return entry
        if isinstance(extra, Mapping):
            entries = [extra[name] for name in names if name in extra]
            entries += [entry for key, entry in extra.items() if str(key).endswith(f".{names[0]}")]
            entries += [entry for key, entry in extra.items() if _matches(f"(?:{key})$", names)]
            for entry in entries:
                if isinstance(entry, Mapping) and not _at_least_16(entry.get("bits")):
                    return entry
        return {}

    def number(self, *keys: str) -> int | None:
        """The first of these keys that the configuration has.

        Raises:
            CheckpointError: it is no whole number.
        """
        for key in keys:
            value = self.config.get(key)
            if value is None:
                continue
            if type(value) is not int:
                raise CheckpointError(f"{self.qweight}: expected a whole number for `{key}`, got {value!r}")
            return value
        return None

    def group_size(self, columns: int, groups: int, stated: int | None) -> int:
        """Columns of a group, as stated or as the shapes tell.

        Raises:
            CheckpointError: it isn't what the shapes say, or they allow several.
        """
        if not groups or not columns:
            raise CheckpointError(f"scales {self.scales}: expected at least one group, got none")
        if stated is not None:
            size = columns if stated <= 0 else stated
            if -(-columns // size) != groups:
                raise CheckpointError(
                    f"scales {self.scales}: expected {-(-columns // size)} groups, as the configuration says"
                    f" {stated} of {columns} columns each, got {groups}"
                )
            return size
        if groups == 1:
            return columns
        fits: set[int] = {2**n for n in range(3, 14) if -(-columns // 2**n) == groups}
        fits |= {columns // groups} if columns % groups == 0 else set()
        if len(fits) != 1:
            raise CheckpointError(
                f"scales {self.scales}: {groups} groups of {columns} columns may be of {sorted(fits)}, and no"
                " configuration says which"
            )
        (only,) = fits
        return only


def module(tensor: TensorSpec, checkpoint: Checkpoint) -> Module | None:
    """The module whose `qweight` this is, if it is one.

    Raises:
        CheckpointError: a companion is absent, or the configuration says a layout that is not supported.
    """
    stem, word, rest = tensor.name.rpartition("qweight")
    if rest or not word or (stem and stem[-1] not in "._"):
        return None
    said = {
        str(checkpoint.quantization.get(key)).lower() for key in ("checkpoint_format", "format", "version")
    }
    for refused in ("marlin", "bitblas", "qqq", "ipex"):
        if refused in said or (
            refused == "marlin" and checkpoint.quantization.get("is_marlin_format") is True
        ):
            raise CheckpointError(f"{tensor} is packed for {refused}, which is not supported")
    zeros = checkpoint.need(f"{stem}qzeros", of=tensor, scheme="GPTQ or AWQ")
    scales = checkpoint.need(f"{stem}scales", of=tensor, scheme="GPTQ or AWQ")
    return Module(tensor, zeros, scales, checkpoint.find(f"{stem}g_idx"), stem, checkpoint)


def _tails(name: str) -> Iterator[str]:
    """A module's name, and what is left without its leading parts: a wrapped model has more of them."""
    parts = name.split(".")
    for i in range(len(parts)):
        yield ".".join(parts[i:])


def _matches(pattern: str, names: list[str]) -> bool:
    try:
        return any(re.match(pattern, name) for name in names)
    except re.error:
        raise CheckpointError(
            f"expected a regular expression for modules, got `{shorten(pattern)}`"
        ) from None


def _at_least_16(bits: object) -> bool:
    return isinstance(bits, int) and bits >= 16
