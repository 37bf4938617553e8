"""Parameters on devices: each process reads what its own devices hold, and no more of it at a time than fits.

What one device needs of a parameter is read once, however many devices need the same. Where that asks the
Hub for less, what several devices need is read together (slices along a later axis lie in the same rows).
Shares are read in threads, about `HELD` bytes or one share at a time, and handed to their devices by the
calling thread, whose `jax.default_device` and `jax.enable_x64` count.

`jax.make_array_from_callback` would hold all of a process' slices of an array on the host before it moves
the first one; here a slice is moved when it is there.

A slice of a mapped file is handed over as it is. JAX copies it to its device; on a CPU it may use the mapped
pages themselves, which it never writes to.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import numpy.typing as npt
from jax.sharding import Sharding, SingleDeviceSharding

from tensorport_hub.core.decode.cast import is_castable
from tensorport_hub.core.tensor import DTYPES, DType
from tensorport_hub.jax.cast import converted

HELD = 256 << 20
"""Bytes that may be on the host at a time, beside one share that is larger."""

_THREADS = 8

Array = npt.NDArray[Any]
Box = tuple[tuple[int, int], ...]
"""A range of every axis."""

_Wanted = tuple[Box, tuple[Any, ...]]
"""What some devices hold, and which of them."""

_Placed = dict[Any, jax.Array]
"""Device -> what it holds of one parameter."""

_NARROW = {"F64": DTYPES["F32"], "I64": DTYPES["I32"], "U64": DTYPES["U32"]}


@dataclass(frozen=True)
class Leaves:
    """Parameters of one shape that are read together; most are read alone.

    Attributes:
        names: of the parameters.
        dtype: as stored.
        shape: of each of them.
        read: a range of every axis -> that part of each parameter.
        requested: a range of every axis -> how many bytes `read` asks the Hub for.
    """

    names: tuple[str, ...]
    dtype: DType
    shape: tuple[int, ...]
    read: Callable[[tuple[slice, ...]], tuple[Array, ...]]
    requested: Callable[[tuple[slice, ...]], int]


@dataclass(frozen=True)
class _Share:
    """A box of some parameters that is read at once, and the devices that want parts of it."""

    leaves: Leaves
    names: tuple[str, ...]
    box: Box
    parts: tuple[_Wanted, ...]

    @property
    def nbytes(self) -> int:
        items = prod(stop - start for start, stop in self.box)
        return items * self.leaves.dtype.itemsize * len(self.leaves.names)


def place(
    every: Sequence[Leaves], shardings: Mapping[str, Sharding | None], target: DType | None
) -> dict[str, jax.Array]:
    """Read parameters, and put them where their shardings say.

    Args:
        target: what floats are rounded to; None: they stay as they are.

    Raises:
        LossError: a value that the dtype can't hold.
    """
    types = {name: _type(leaves.dtype, target) for leaves in every for name in leaves.names}
    shares = [share for leaves in every for share in _shares(leaves, shardings)]
    placed: dict[str, _Placed] = {name: {} for name in types}
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="load") as pool:
        for batch in _batches(shares):
            found = pool.map(lambda share: _read(share, types), batch)
            _move(zip(batch, found, strict=True), shardings, placed)
            gc.collect(0)  # JAX lets go of host arrays that it has copied only now, or after a hundred
    return {
        name: _whole(leaves.shape, types[name], shardings[name], placed[name])
        for leaves in every
        for name in leaves.names
    }


def _read(share: _Share, types: Mapping[str, DType]) -> dict[str, list[Array]]:
    """Name -> its parts, as the devices want them."""
    leaves = share.leaves
    blocks = dict(zip(leaves.names, leaves.read(_slices(share.box)), strict=True))
    indices: list[tuple[Any, ...]] = [(*_slices(box, share.box), ...) for box, _ in share.parts]
    return {
        name: [converted(blocks[name][index], leaves.dtype, types[name], name) for index in indices]
        for name in share.names
    }


def _move(
    found: Iterable[tuple[_Share, dict[str, list[Array]]]],
    shardings: Mapping[str, Sharding | None],
    placed: Mapping[str, _Placed],
) -> None:
    """Parts to their devices; when this returns they are there, and nothing holds what was read."""
    moving: list[jax.Array] = []
    for share, parts in found:
        for name in share.names:
            for part, (_, devices) in zip(parts[name], share.parts, strict=True):
                for device in devices:
                    placed[name][device] = _put(part, device, shardings[name])
                    moving.append(placed[name][device])
    for array in moving:
        array.block_until_ready()


def _put(part: Array, device: Any, sharding: Sharding | None) -> jax.Array:
    where = None if sharding is None else SingleDeviceSharding(device, memory_kind=sharding.memory_kind)
    put: jax.Array = jax.device_put(part, where)
    return put


def _type(stored: DType, target: DType | None) -> DType:
    """What a parameter becomes: as JAX has it, 64 bits only where it was asked to keep them."""
    wanted = target if target is not None and is_castable(stored) else stored
    return wanted if jax.config.jax_enable_x64 else _NARROW.get(wanted.name, wanted)  # type: ignore[attr-defined]


def _shares(leaves: Leaves, shardings: Mapping[str, Sharding | None]) -> Iterator[_Share]:
    """Parameters with one sharding share what is read."""
    together: dict[Sharding | None, list[str]] = {}
    for name in leaves.names:
        together.setdefault(shardings[name], []).append(name)
    for sharding, names in together.items():
        for boxes in _joined(leaves, _boxes(sharding, leaves.shape)):
            yield _Share(leaves, tuple(names), _around([box for box, _ in boxes]), tuple(boxes))


def _boxes(sharding: Sharding | None, shape: tuple[int, ...]) -> list[_Wanted]:
    """What this process' devices hold, and which of them."""
    if sharding is None:
        return [(tuple((0, length) for length in shape), (None,))]
    found: dict[Box, list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        slices = index if index is not None else (slice(None),) * len(shape)
        box = tuple(one.indices(length)[:2] for one, length in zip(slices, shape, strict=True))
        found.setdefault(box, []).append(device)
    return [(box, tuple(devices)) for box, devices in found.items()]


def _joined(leaves: Leaves, boxes: Sequence[_Wanted]) -> Iterator[list[_Wanted]]:
    """Boxes of the same rows together, where that asks for less than one after another."""
    rows: dict[tuple[tuple[int, int], ...], list[_Wanted]] = {}
    for wanted in boxes:
        rows.setdefault(wanted[0][:1], []).append(wanted)
    for group in rows.values():
        together = len(group) > 1 and (
            leaves.requested(_slices(_around([box for box, _ in group])))
            < sum(leaves.requested(_slices(box)) for box, _ in group)
        )
        yield from [group] if together else ([wanted] for wanted in group)


def _around(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds them all."""
    return tuple(
        (min(start for start, _ in ranges), max(stop for _, stop in ranges))
        for ranges in zip(*boxes, strict=True)
    )


def _slices(box: Box, origin: Box | None = None) -> tuple[slice, ...]:
    """A box as an index, counted from where `origin` starts."""
    starts = [start for start, _ in origin] if origin is not None else [0] * len(box)
    return tuple(slice(start - at, stop - at) for (start, stop), at in zip(box, starts, strict=True))


def _batches(shares: Sequence[_Share]) -> Iterator[list[_Share]]:
    """Shares in order, as many at a time as may be held."""
    batch: list[_Share] = []
    held = 0
    for share in shares:
        if batch and held + share.nbytes > HELD:
            yield batch
            batch, held = [], 0
        batch.append(share)
        held += share.nbytes
    if batch:
        yield batch


def _whole(shape: tuple[int, ...], dtype: DType, sharding: Sharding | None, placed: _Placed) -> jax.Array:
    if sharding is None:
        return placed[None]
    arrays = [placed[device] for device in sharding.addressable_devices_indices_map(shape)]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays, dtype=dtype.numpy)
