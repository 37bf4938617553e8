"""How fast a local checkpoint is loaded: `python -m tests.bench.loading [--json]`.

Each way of loading is a process of its own that loads a checkpoint of about 1 GB and touches every page of
every array: without that a mapped file costs nothing. The ways take turns; shown are medians of the turns:

- process: seconds from start to exit, imports and all; CPU: processor seconds of it
- load: seconds of loading and touching alone
- peak: the process' largest resident memory, pages of mapped files included; own: what of it at the end is
  its own memory, which the system can't take back

The same tensors lie on disk as one safetensors file and as the mirror of it, and in the page cache, as far
as it is large enough. A way that does not give arrays of the right dtype says so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tests.mirrored import make_mirror

ROOT = Path(__file__).parents[2]
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16)}
DEVICES = 4
PAGE = 4096

Arrays = Mapping[str, Any]


def our_params(mirror: Path, file: Path) -> Arrays:
    from tensorport_hub.jax import load_params

    return flat(load_params(mirror))


def our_params_sharded(mirror: Path, file: Path) -> Arrays:
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from tensorport_hub.jax import load_params

    rows = NamedSharding(Mesh(np.array(jax.devices()), "x"), PartitionSpec("x"))
    return flat(load_params(mirror, sharding=rows))


def flax(mirror: Path, file: Path) -> Arrays:
    from safetensors.flax import load_file

    return dict(load_file(file))


def jnp_load(mirror: Path, file: Path) -> Arrays:
    import jax.numpy as jnp

    return {path.stem: jnp.load(path) for path in mirror.rglob("*.npy")}


def our_arrays(mirror: Path, file: Path) -> Arrays:
    from tensorport_hub import open_checkpoint

    with open_checkpoint(mirror) as checkpoint:
        return {name: np.asarray(array) for name, array in checkpoint.items()}


def safetensors_numpy(mirror: Path, file: Path) -> Arrays:
    from safetensors.numpy import load_file

    return dict(load_file(file))


def np_load(mirror: Path, file: Path) -> Arrays:
    return {path.stem: np.load(path) for path in mirror.rglob("*.npy")}


def np_load_mapped(mirror: Path, file: Path) -> Arrays:
    return {path.stem: np.load(path, mmap_mode="r") for path in mirror.rglob("*.npy")}


WAYS: dict[str, Callable[[Path, Path], Arrays]] = {
    "load_params": our_params,
    "safetensors.flax.load_file": flax,
    "jnp.load, every file": jnp_load,
    f"load_params, over {DEVICES} devices": our_params_sharded,
    "open_checkpoint": our_arrays,
    "safetensors.numpy.load_file": safetensors_numpy,
    "np.load, every file": np_load,
    "np.load, mapped": np_load_mapped,
}
"""The first four give jax.Arrays, the others numpy's; only ours shard."""


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by name."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def touched(array: Any) -> int:
    """A byte of every page, added up."""
    shards = getattr(array, "addressable_shards", None)
    pieces = [np.asarray(s.data) for s in shards] if shards is not None else [array]
    return sum(int(piece.reshape(-1).view(np.uint8)[::PAGE].sum()) for piece in pieces)


def load(way: str, folder: Path, dtype: str) -> dict[str, Any]:
    """What one process does, and finds."""
    if "jax" in way or way.startswith(("load_params", "jnp", "safetensors.flax")):
        import jax

        jax.devices()  # what JAX needs to start is no part of loading
    begun = time.perf_counter()
    arrays = WAYS[way](folder / "mirror", folder / "mirror-source" / "model.safetensors")
    total = sum(touched(array) for array in arrays.values())
    seconds = time.perf_counter() - begun
    right = all(array.dtype == DTYPES[dtype] for array in arrays.values())
    memory = {"peak": memory_of("VmHWM:"), "own": memory_of("RssAnon:")}
    return {"load": seconds, **memory, "checksum": total, "arrays": len(arrays), "right": right}


def memory_of(key: str) -> int:
    """Bytes, as the system counts them for this process."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))


def tensors(dtype: str, nbytes: int) -> dict[str, tuple[str, Any]]:
    """A transformer of about so many bytes."""
    draw, kind = np.random.default_rng(0), DTYPES[dtype]
    width = 2048 if nbytes >= 100 << 20 else 128
    found: dict[str, tuple[str, Any]] = {}
    shapes = {"q": (width, width), "up": (4 * width, width), "down": (width, 4 * width), "norm": (width,)}
    while sum(array.nbytes for _, array in found.values()) < nbytes:
        layer = len(found) // len(shapes)
        for name, shape in shapes.items():
            values = draw.standard_normal(shape, np.float32).astype(kind)
            found[f"model.layers.{layer}.{name}.weight"] = (dtype, values)
    return found


def run(way: str, folder: Path, dtype: str) -> dict[str, Any]:
    """One process."""
    words = [
        sys.executable,
        "-m",
        "tests.bench.loading",
        "--way",
        way,
        "--at",
        str(folder),
        "--dtypes",
        dtype,
    ]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    if "devices" in way:
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
    begun = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT, env=environment) as child:
        assert child.stdout is not None
        said = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begun
    if child.returncode:
        return {"failed": True}
    return {**json.loads(said), "process": seconds, "cpu": usage.ru_utime + usage.ru_stime}


def measure(dtype: str, folder: Path, nbytes: int, runs: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each way, by medians; one that fails, or gives another dtype, as such."""
    made = tensors(dtype, nbytes)
    make_mirror(folder / "mirror", made)
    size = sum(array.nbytes for _, array in made.values())
    del made
    turns = [{way: run(way, folder, dtype) for way in WAYS} for _ in range(runs)]
    for way in WAYS:
        found = [turn[way] for turn in turns]
        if any("failed" in one for one in found):
            yield way, {"failed": True, "bytes": size}
            continue
        medians = {key: statistics.median(one[key] for one in found) for key in found[0]}
        yield way, {**medians, "bytes": size}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--size", type=float, default=1e9, help="bytes of the checkpoint")
    parser.add_argument("--runs", type=int, default=5, help="turns to take the median of")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--at", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.way:
        print(json.dumps(load(chosen.way, chosen.at, chosen.dtypes[0])))
        return
    found: dict[str, dict[str, Any]] = {}
    for dtype in chosen.dtypes:
        with tempfile.TemporaryDirectory(prefix="loading-") as folder:
            found[dtype] = dict(measure(dtype, Path(folder), int(chosen.size), chosen.runs))
    if chosen.json:
        print(json.dumps({"runs": chosen.runs, "dtypes": found}, indent=1))
        return
    for dtype, rows in found.items():
        show(dtype, rows)


def show(dtype: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    size = f"{dtype}, {next(iter(rows.values()))['bytes'] / 1e9:.2f} GB"
    print(f"\n{size:30}{'process s':>9}{'CPU s':>8}{'load s':>8}{'peak MB':>9}{'own MB':>8}")
    for way, row in rows.items():
        if "failed" in row:
            print(f"{way:30}can't")
            continue
        print(
            f"{way:30}{row['process']:9.2f}{row['cpu']:8.2f}{row['load']:8.2f}{row['peak'] / 1e6:9.0f}"
            f"{row['own'] / 1e6:8.0f}{'' if row['right'] else f'   not {dtype}'}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
