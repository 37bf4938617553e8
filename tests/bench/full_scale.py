"""Models of full size, planned and mirrored: `python -m tests.bench.full_scale [--json] [--mirror]`.

A devhub serves the true layouts (`layouts.py`) with synthetic bytes, and checks and drops what it is sent:
nothing of it lies on a disk. Each line is a process of its own.

- plan: headers alone; how it grows with the number of tensors
- mirror: gpt-oss-20b from its first layer to all of it, by LFS, under the cap; and one layer of the larger
  models, DeepSeek-V3's with its experts stacked

Shown: seconds from start to exit, CPU seconds, `VmHWM`, requests that the devhub saw, bytes in and out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from tensorport_hub.devhub import DevHub
from tests.bench import layouts

ROOT = Path(__file__).parents[2]
STACKED = ", stacked"
"""Ends the name of a model whose experts are to be stacked."""
PLANS = (
    *("1000", "10000", "100000", "240000"),
    *("gpt-oss-20b", "gpt-oss-120b", "deepseek-v3", "deepseek-v3" + STACKED),
)
SHARES = (1, 6, 24)
"""Layers of gpt-oss-20b that are mirrored."""
LAYERS = (("gpt-oss-120b", "0"), ("deepseek-v3" + STACKED, "3"))
"""Models of which one layer is mirrored; of their files too little to make all their bytes for a digest."""
KEPT = 20_000_000
"""Bytes up to which the devhub keeps an upload, so that the manifest can be read back."""


@contextmanager
def served(name: str, *, digests: bool, xet: str = "off") -> Iterator[DevHub]:
    """A devhub that has the model as `st/model`."""
    layout, config = layouts.model(name.removesuffix(STACKED))
    with (
        tempfile.TemporaryDirectory(prefix="full-scale-") as folder,
        DevHub(folder, xet, drop_above=KEPT) as hub,
    ):
        hub.add_repo("st/model", layouts.repository(layout, config, digests=digests))
        yield hub


def run(hub: DevHub, verb: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """One process."""
    hub.forget()
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token}
    words = [sys.executable, "-m", "tests.bench.full_scale", "--verb", verb, "--options", json.dumps(options)]
    begun = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT, env=environment) as child:
        assert child.stdout is not None
        said = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begun
    if child.returncode:
        raise SystemExit(f"{verb} with {options} failed")
    cpu = usage.ru_utime + usage.ru_stime
    return {"wall": seconds, "cpu": cpu, "requests": len(hub.seen), **json.loads(said)}


def do(verb: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What the process does, and what it learned."""
    import tensorport_hub

    result = getattr(tensorport_hub, verb)("st/model", "me/model", **options)
    with open("/proc/self/status", encoding="ascii") as status:
        peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    if verb == "plan":
        counts = {"bytes_in": result.bytes_in, "bytes_out": result.bytes_out}
        return {**counts, "tensors": result.tensors, "parameters": result.parameters, "peak": peak}
    stats = result.stats
    counts = {"bytes_in": stats.bytes_read, "bytes_out": stats.bytes_published}
    return {**counts, "tensors": stats.tensors, "parameters": stats.parameters, "peak": peak}


def plans(names: Sequence[str], options: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in names:
        with served(name, digests=False) as hub:
            yield f"plan {name}", run(hub, "plan", {**options, **_experts(name)})


def _experts(name: str) -> dict[str, Any]:
    return {"experts": "stacked"} if name.endswith(STACKED) else {}


def mirrors(
    name: str, shares: Sequence[int], options: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    with served(name, digests=True) as hub:
        for layers in shares:
            include = [] if layers == shares[-1] else [f"model.layers.{i}.*" for i in range(layers)]
            given = {"restart": True, "include": include, **options}
            yield f"mirror {name}, {layers} layers", run(hub, "mirror", given)


def one_layer(name: str, layer: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    with served(name, digests=False) as hub:
        given = {"include": [f"model.layers.{layer}.*"], "verify_source": "no"}
        row = run(hub, "mirror", {**given, **_experts(name), **options})
    return f"mirror {name}, layer {layer}", row


def show(name: str, row: Mapping[str, Any]) -> None:
    print(
        f"{name:40}{row['tensors']:9,}{row['parameters'] / 1e9:9.2f}{row['bytes_in'] / 1e9:9.2f}"
        f"{row['bytes_out'] / 1e9:9.2f}{row['wall']:9.2f}{row['cpu']:9.2f}{row['peak'] / 1e6:9.0f}"
        f"{row['requests']:9,}",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plans", nargs="*", default=list(PLANS), help="models, or numbers of tensors")
    parser.add_argument("--mirror", action="store_true", help="mirror, too: ten minutes")
    parser.add_argument("--layers", nargs="+", type=int, default=list(SHARES), help="the last means all")
    parser.add_argument("--memory", default="1GB", help="cap")
    parser.add_argument("--verb", help=argparse.SUPPRESS)
    parser.add_argument("--options", type=json.loads, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.verb:
        print(json.dumps(do(chosen.verb, chosen.options)))
        return
    found: dict[str, dict[str, Any]] = {}
    if not chosen.json:
        print(f"{'':40}  tensors parameters G GB in  GB out   wall s    CPU s  peak MB requests")
    options = {"max_memory": chosen.memory, "transfer": "lfs"}
    rows: Iterable[tuple[str, dict[str, Any]]] = plans(chosen.plans, options)
    if chosen.mirror:
        layers = (one_layer(*which, options) for which in LAYERS)
        rows = chain(rows, mirrors("gpt-oss-20b", chosen.layers, options), layers)
    for name, row in rows:
        found[name] = row
        if not chosen.json:
            show(name, row)
    if chosen.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
