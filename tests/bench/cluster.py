"""A mirror by more and more workers: `python -m tests.bench.cluster [--json] [--workers 1 2 4 8]`.

The source is what a network makes of it: a devhub whose storage sends each answer at `--rate` bytes a second
and no faster, however many there are. Each line is a run of its own against a fresh copy of the devhub, by a
real scheduler and as many worker processes on loopback, which have mirrored a small model before (so imports
don't count). "alone" is the same without a cluster. Devhub, scheduler and workers share this machine's
processors; where those are busy, more workers can't help.

Shown: seconds from the call to its return, how many times as fast as one worker, that per worker, bytes a
second that were read, and the peak memory of the largest worker.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster import models
from tests.cluster.machines import Machines

ROOT = Path(__file__).parents[2]
SOURCE, WARM = "st/model", "st/warm"
SERVE = """
import sys
from tensorport_hub.devhub import DevHub, Fault
hub = DevHub(sys.argv[1], sys.argv[2]).start()
print(hub.endpoint, hub.token, flush=True)
sys.stdin.readline()
hub.faults.add(Fault("slow", origin="cdn", times=None, rate=int(sys.argv[3])))
print(flush=True)
sys.stdin.read()
hub.stop()
"""


@contextmanager
def devhub(seed: Path, root: Path, xet: str, rate: int) -> Iterator[subprocess.Popen[str]]:
    """A running copy of a devhub in a process of its own, named by this process's variables; a line makes it
    slow."""
    shutil.copytree(seed, root)
    words = [sys.executable, "-c", SERVE, str(root), xet, str(rate)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as hub:
        assert hub.stdin is not None
        assert hub.stdout is not None
        os.environ["HF_ENDPOINT"], os.environ["HF_TOKEN"] = hub.stdout.readline().split()
        try:
            yield hub
        finally:
            hub.stdin.close()
            hub.wait(60)
    shutil.rmtree(root)


def run(workers: int, folder: Path, transfer: str, rate: int) -> dict[str, Any]:
    """One mirror, by so many workers; by this process alone where there are none."""
    from tensorport_hub import mirror

    options: dict[str, Any] = {"transfer": transfer, "workers": 1}
    with (
        devhub(folder / "seed", folder / "hub", "http" if transfer == "xet" else "off", rate) as hub,
        Machines(folder / f"machines-{workers}") as machines,
    ):
        if workers:
            machines.add(workers)
            options["cluster"] = machines.address
        mirror(WARM, "me/warm", **options)
        assert hub.stdin is not None
        assert hub.stdout is not None
        print(file=hub.stdin, flush=True)
        hub.stdout.readline()
        begun = time.perf_counter()
        stats = mirror(SOURCE, "me/model", **options).stats
        seconds = time.perf_counter() - begun
    memory = stats.worker_memory or stats.peak_memory or 0
    return {"wall": seconds, "bytes": stats.bytes_read, "peak": memory}


def measure(counts: Sequence[int], files: int, nbytes: int, transfer: str, rate: int) -> dict[str, Any]:
    """Each number of workers once."""
    from tensorport_hub.devhub import DevHub

    rows = max(nbytes // files // (4 * 2 * 128), 1)
    with tempfile.TemporaryDirectory(prefix="cluster-") as name:
        folder = Path(name)
        os.environ["HF_HOME"] = os.environ["HF_XET_CACHE"] = str(folder / "home")
        with DevHub(folder / "seed", "off") as hub:
            hub.add_repo(SOURCE, models.bf16(files, tensors=4, rows=rows))
            hub.add_repo(WARM, models.bf16(max(counts, default=1), tensors=1, rows=8))
        found = {"alone": run(0, folder, transfer, rate)}
        found |= {str(count): run(count, folder, transfer, rate) for count in counts}
    return found


def show(rows: Mapping[str, Mapping[str, Any]]) -> None:
    print(f"{'workers':9}{'wall s':>8}{'times':>8}{'each':>7}{'MB/s':>8}{'peak MB':>9}")
    counted = {int(name): row["wall"] for name, row in rows.items() if name.isdigit()}
    base = counted[min(counted)] * min(counted)
    for name, row in rows.items():
        times = base / row["wall"]
        each = f"{times / int(name):7.2f}" if name.isdigit() else f"{'':7}"
        print(
            f"{name:9}{row['wall']:8.2f}{times:8.2f}{each}{row['bytes'] / row['wall'] / 1e6:8.2f}"
            f"{row['peak'] / 1e6:9.0f}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--files", type=int, default=32, help="source files")
    parser.add_argument("--size", type=float, default=64e6, help="bytes of all of them")
    parser.add_argument("--rate", type=float, default=1e6, help="bytes a second of each answer")
    parser.add_argument("--transfer", choices=("lfs", "xet"), default="lfs")
    chosen = parser.parse_args(arguments)
    found = measure(chosen.workers, chosen.files, int(chosen.size), chosen.transfer, int(chosen.rate))
    if chosen.json:
        print(json.dumps({"rate": int(chosen.rate), "files": chosen.files, "runs": found}, indent=1))
    else:
        show(found)


if __name__ == "__main__":
    main(sys.argv[1:])
