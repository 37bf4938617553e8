"""One of two processes of a JAX program: `python -m tests.jax.process NUMBER PORT REPO SPEC`.

It says a line when it is ready, waits for one, loads its slices, says what it has, waits for another, and
computes a sum over all devices of both processes.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tensorport_hub import lazy
from tensorport_hub.jax import load_params, place
from tensorport_hub.meter import memory_now, peak_memory

place.HELD = 4 << 20
lazy._LONGEST = 1 << 20


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def box(index: tuple[slice, ...], shape: tuple[int, ...]) -> list[list[int]]:
    """Start and stop on every axis."""
    return [list(one.indices(length)[:2]) for one, length in zip(index, shape, strict=True)]


def main(number: str, port: str, repo: str, spec: str) -> None:
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(number))
    mesh = Mesh(np.array(jax.devices()), "x")
    sharding = NamedSharding(mesh, P(*json.loads(spec)))
    load_params(repo, include="norm")  # what threads and connections cost is not counted
    say(devices=len(jax.devices()), here=len(jax.local_devices()))
    sys.stdin.readline()
    before = memory_now() or 0
    params = load_params(repo, sharding=lambda name, shape: sharding if len(shape) > 1 else None)
    grown = (peak_memory() or 0) - before
    indices = {
        name: [
            [list(one.indices(n)[:2]) for one, n in zip(s.index, array.shape, strict=True)] for s in shards
        ]
        for name, array in params.items()
        for shards in [array.addressable_shards]
    }
    sums = {
        name: [float(jnp.sum(s.data)) for s in array.addressable_shards] for name, array in params.items()
    }
    say(indices=indices, sums=sums, grown=grown)
    sys.stdin.readline()
    total = jax.jit(lambda tree: sum(jnp.sum(a) for a in tree.values()))(
        {name: array for name, array in params.items() if array.ndim > 1}
    )
    theirs = NamedSharding(Mesh(np.array(jax.devices()[:2]), "x"), P())
    norm = load_params(repo, include="norm", sharding=theirs)["norm"]
    say(total=float(total), shards=len(norm.addressable_shards), shape=norm.shape)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # without waiting for the other process
