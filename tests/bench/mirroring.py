"""How long a mirror takes, beside what one would do without it: `python -m tests.bench.mirroring [--json]`.

Each way (`ways.py`) is a process of its own, against a devhub of its own that has stored nothing of it yet,
so that no deduplication helps. The ways take turns; shown are medians:

- wall: seconds from start to exit, imports and all; of the ingest: from the moment when its bytes are ready
- CPU: processor seconds of the process; the devhub's are not in it, but it shares the processors
- peak: `VmHWM`, the process' largest resident memory
- disk: the largest sum of files that it held, deleted ones included
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.ways import MODELS, SOURCE, WAYS, make_model, usual
from tests.e2e.held import held_on_disk

ROOT = Path(__file__).parents[2]
TRANSFERS = ("lfs", "xet")
SERVE = "import sys; from tensorport_hub.devhub import DevHub; h = DevHub(sys.argv[1], sys.argv[2]).start();\
print(h.endpoint, h.token, flush=True); sys.stdin.read(); h.stop()"


@contextmanager
def devhub(seed: Path, root: Path, xet: str) -> Iterator[dict[str, str]]:
    """A running copy of a devhub, in a process of its own; the variables that name it."""
    shutil.copytree(seed, root, copy_function=_linked)
    words = [sys.executable, "-c", SERVE, str(root), xet]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as hub:
        assert hub.stdout is not None
        endpoint, token = hub.stdout.readline().split()
        try:
            yield {"HF_ENDPOINT": endpoint, "HF_TOKEN": token}
        finally:
            assert hub.stdin is not None
            hub.stdin.close()
            hub.wait(60)
    shutil.rmtree(root)


def _linked(source: str, target: str) -> None:
    """Large files are never changed in place."""
    if os.path.getsize(source) > 1 << 20:
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def run(way: str, transfer: str, folder: Path, memory: str) -> dict[str, float]:
    """One process of one way."""
    scratch = folder / "scratch"
    scratch.mkdir()
    with devhub(folder / "seed", folder / "hub", "http" if transfer == "xet" else "off") as names:
        environment = {
            **os.environ,
            **names,
            "TMPDIR": str(scratch),
            "HF_HOME": str(scratch / "home"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "0" if transfer == "xet" else "1",
            "FINISHED": ":".join(str(path) for path in sorted((folder / "finished").iterdir())),
        }
        words = [sys.executable, "-m", "tests.bench.mirroring", "--way", way, "--transfer", transfer]
        begun = time.perf_counter()
        child = subprocess.Popen(
            [*words, "--memory", memory], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        )
        assert child.stdout is not None
        if way.startswith("ingest"):
            child.stdout.readline()
            begun = time.perf_counter()
        disk = 0
        while (ended := os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is None:
            disk = max(disk, held_on_disk(child.pid, scratch))
            time.sleep(0.02)
        seconds = time.perf_counter() - begun
        said = child.stdout.read()
        _, _, usage = os.wait4(child.pid, 0)
        child.returncode = ended.si_status
    shutil.rmtree(scratch)
    if child.returncode:
        raise SystemExit(f"{way} by {transfer} failed")
    return {"wall": seconds, "cpu": usage.ru_utime + usage.ru_stime, "disk": disk, **json.loads(said)}


def measure(kind: str, nbytes: int, runs: int, memory: str) -> dict[str, dict[str, float]]:
    """Medians of each way by each transfer."""
    from tensorport_hub.devhub import DevHub

    with tempfile.TemporaryDirectory(prefix="mirroring-") as name:
        folder = Path(name)
        make_model(folder / "model", kind, nbytes)
        with DevHub(folder / "seed", "off") as hub:
            hub.add_repo(SOURCE, folder / "model")
        _finished(folder)
        pairs = [
            (way, transfer)
            for transfer in TRANSFERS
            for way in WAYS
            if transfer == "xet" or not way.startswith("ingest")
            if kind == "bf16" or way != "limit"  # what is read is not what is sent
        ]
        turns = [{pair: run(*pair, folder, memory) for pair in pairs} for _ in range(runs)]
    return {
        f"{way}, {transfer}": {
            key: statistics.median(turn[way, transfer][key] for turn in turns)
            for key in turns[0][way, transfer]
        }
        for way, transfer in pairs
    }


def _finished(folder: Path) -> None:
    """The bytes that a mirror sends, for the ingest."""
    from tensorport_hub import convert

    convert(str(folder / "model"), str(folder / "out"))
    (folder / "finished").mkdir()
    for path in (folder / "out").rglob("*.npy"):
        path.rename(folder / "finished" / path.name)
    shutil.rmtree(folder / "out")
    shutil.rmtree(folder / "model")


def show(kind: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    print(f"\n{kind:14}{'wall s':>8}{'x usual':>9}{'CPU s':>8}{'x usual':>9}{'peak MB':>9}{'disk MB':>9}")
    for name, row in rows.items():
        beside = rows[f"{usual.__name__}, {name.rpartition(' ')[2]}"]
        print(
            f"{name:14}{row['wall']:8.2f}{row['wall'] / beside['wall']:9.2f}{row['cpu']:8.2f}"
            f"{row['cpu'] / beside['cpu']:9.2f}{row['peak'] / 1e6:9.0f}{row['disk'] / 1e6:9.0f}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--size", type=float, default=float(1 << 30), help="bytes of the checkpoint")
    parser.add_argument("--runs", type=int, default=3, help="turns to take the median of")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--memory", default="1GB", help="cap for the mirror")
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--transfer", choices=TRANSFERS, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.way:
        WAYS[chosen.way]("me/model", chosen.transfer, chosen.memory)
        print(json.dumps({"peak": _peak()}))
        return
    found: dict[str, Any] = {}
    for kind in chosen.models:
        found[kind] = measure(kind, int(chosen.size), chosen.runs, chosen.memory)
        if not chosen.json:
            show(kind, found[kind])
    if chosen.json:
        print(json.dumps({"runs": chosen.runs, "bytes": int(chosen.size), "models": found}, indent=1))


def _peak() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main(sys.argv[1:])
