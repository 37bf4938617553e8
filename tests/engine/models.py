"""Checkpoints made for the engine, what they must decode to, and how a run is set up.

The expected arrays come from the values that a tensor was made of, by numpy and ml_dtypes (MXFP4 by the
formula of the OCP specification, in float64); nothing of the package takes part in them.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors import numpy as safetensors_numpy

from tensorport_hub.core.experts import stack_experts
from tensorport_hub.core.layout import lay_out
from tensorport_hub.core.plan import Options, Plan
from tensorport_hub.core.progress import Progress
from tensorport_hub.core.recipe import recipes
from tensorport_hub.engine import Outcome, run
from tensorport_hub.engine.budget import ENDING, Allotment
from tensorport_hub.ports import Event, Sink, Source
from tensorport_hub.survey import survey
from tests.fakes import MemoryJournal

Array = npt.NDArray[Any]

NUMPY: dict[str, Any] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
PRECISIONS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class Tensor:
    """A tensor to be stored."""

    name: str
    dtype: str
    values: Array


@dataclass(frozen=True)
class Experts:
    """An MXFP4 pair: `NAME_blocks` [..., 16] and `NAME_scales` [...]."""

    name: str
    blocks: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.uint8]

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        return Tensor(f"{self.name}_blocks", "U8", self.blocks), Tensor(
            f"{self.name}_scales", "U8", self.scales
        )

    def decoded(self) -> Array:
        """E2M1 * 2^(scale - 127), low nibble first; a block of scale 255 is NaN."""
        codes = np.stack([self.blocks & 15, self.blocks >> 4], axis=-1)
        elements = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
        factor = np.ldexp(1.0, self.scales.astype(np.int64) - 127)[..., None, None]
        factor = np.where(self.scales[..., None, None] == 255, np.nan, factor)
        with np.errstate(over="ignore"):
            values = (elements * factor).astype(np.float32).astype(ml_dtypes.bfloat16)
        values.view(np.uint16)[np.isnan(values)] = 0x7FC0
        shape = (*self.scales.shape[:-1], self.scales.shape[-1] * 32)
        decoded: Array = values.reshape(shape)
        return decoded


Made = Sequence[Tensor | Experts]


def stored(made: Made) -> list[Tensor]:
    """The tensors as they are stored, in order."""
    return [t for one in made for t in (one.tensors if isinstance(one, Experts) else (one,))]


def plain(name: str, dtype: str, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Finite floats that all precisions hold, or whole numbers."""
    draw = np.random.default_rng([seed, *name.encode()])
    if dtype in ("F32", "F16", "BF16"):
        return Tensor(name, dtype, draw.uniform(-4, 4, shape).astype(NUMPY[dtype]))
    return Tensor(name, dtype, draw.integers(0, 2, shape).astype(NUMPY[dtype]))


def bits(name: str, dtype: str, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Any bits: NaNs, infinities, -0."""
    if dtype == "BOOL":
        return plain(name, dtype, shape, seed)
    draw = np.random.default_rng([seed, *name.encode()])
    raw = np.frombuffer(draw.bytes(prod(shape) * NUMPY[dtype].itemsize), np.uint8)
    return Tensor(name, dtype, raw.view(NUMPY[dtype]).reshape(shape))


def experts(name: str, shape: tuple[int, ...], seed: int = 0, *, scales: Sequence[int] = ()) -> Experts:
    """`shape` is that of the scales; they are drawn from `scales`, or such that all precisions hold them."""
    draw = np.random.default_rng([seed, *name.encode()])
    pool = np.array(scales or range(118, 132), np.uint8)
    return Experts(
        name, draw.integers(0, 256, (*shape, 16), np.uint8), draw.choice(pool, shape).astype(np.uint8)
    )


def write_in_order(tensors: Sequence[Tensor]) -> bytes:
    """A safetensors file with the tensors in this very order (the library's own writer sorts them)."""
    header: dict[str, Any] = {}
    at = 0
    for tensor in tensors:
        stop = at + tensor.values.nbytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.values.shape),
            "data_offsets": [at, stop],
        }
        at = stop
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(t.values.tobytes() for t in tensors)


def write_by_library(tensors: Sequence[Tensor]) -> bytes:
    """A safetensors file by the library's own writer."""
    return safetensors_numpy.save({tensor.name: tensor.values for tensor in tensors})


def expected(made: Made, precision: str = "keep") -> dict[str, Array]:
    """Output tensor -> the array that it must be."""
    found: dict[str, Array] = {}
    for one in made:
        values = one.decoded() if isinstance(one, Experts) else one.values
        if precision != "keep" and values.dtype in [NUMPY[d] for d in ("F32", "F16", "BF16")]:
            values = values.astype(NUMPY[PRECISIONS[precision]])
        found[one.name] = values
    return found


def arrays(files: Mapping[str, bytes]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What numpy reads from .npy files, parts of a split tensor joined: name -> descr, shape, bytes."""
    pieces: dict[str, list[Array]] = {}
    for path, data in sorted(files.items()):
        name = re.sub(r"(\.part-\d+-of-\d+)?\.npy$", "", path.rpartition("/")[2])
        pieces.setdefault(name, []).append(np.load(io.BytesIO(data)))
    joined = {name: found[0] if len(found) == 1 else np.concatenate(found) for name, found in pieces.items()}
    return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in joined.items()}


def raw(found: Mapping[str, Array]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The same of expected arrays; numpy writes bfloat16 as two raw bytes."""
    return {
        name: ("|V2" if a.dtype == NUMPY["BF16"] else a.dtype.str, a.shape, a.tobytes())
        for name, a in found.items()
    }


def plan_of(source: Source, **options: Any) -> Plan:
    """The plan that a mirror of `source` would have."""
    chosen = Options(**options)
    patterns = tuple(file.path for file in source.files if file.path.endswith(".safetensors"))
    seen = survey(
        source,
        subfolder=None,
        allow_patterns=patterns,
        include=chosen.include,
        exclude=chosen.exclude,
        report=lambda event: None,
    )
    made = tuple(recipes(seen.checkpoint, precision=chosen.precision).made)
    if chosen.experts == "stacked":
        made = stack_experts(made, seen.config)
    files = lay_out(made, shard_size=chosen.shard_size, formats=chosen.formats)
    return Plan(seen.repo, seen.revision, seen.files, made, files, chosen, dict(seen.skipped), seen.partial)


def allotment(
    *,
    lanes: int = 2,
    workers: int = 2,
    block: int = 4096,
    keep: int = 1 << 20,
    depth: int = 2,
    room: int = 1 << 20,
    ending: int = ENDING,
) -> Allotment:
    """Small blocks, so that a small checkpoint has many."""
    return Allotment(lanes, workers, block, depth, keep, depth + 2, room, ending=ending)


def run_plan(
    plan: Plan,
    source: Source,
    sink: Sink,
    given: Allotment | None = None,
    report: Callable[[Event], object] = lambda event: None,
    journal: MemoryJournal | None = None,
    inherited: Progress = Progress(),  # noqa: B008 (frozen)
) -> Outcome:
    """Run with a small allotment."""

    def call(event: Event) -> None:
        report(event)

    return run(
        plan,
        source,
        sink,
        journal or MemoryJournal(),
        inherited=inherited,
        allotment=given or allotment(),
        report=call,
    )
