"""How fast weights are read from a Hub into memory: `python -m tests.bench.reading [--json]`.

Each way is a process of its own that reads every tensor of a checkpoint once, by ranges, and adds it up: the
sums must agree. The checkpoint lies in Xet storage. Its devhub sends what it stores as it is, by HTTP too;
in the rows "unpacked" it unpacks for HTTP what it stores packed, as the Hub's bridge does, on these same
processors. Ours stays under a memory cap and reads as a run of that cap does: blocks as large, and as many at
once, as `engine.budget` allots. The ways take turns; shown are medians:

- wall: seconds from start to exit, imports and all; CPU: processor seconds of the process, not the devhub's
- peak: `VmHWM`, the process' largest resident memory; sent, requests: bytes and answers of the devhub

`--faults` shows instead what becomes of each way where the storage answers otherwise than it was asked: it
ignores ranges, or sends less than there is, consistently. (A wrong byte in a right answer no reader finds; a
mirror does, by the file's sha256.)
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

from tests.bench.mirroring import ROOT, _peak
from tests.bench.readers import PEERS, SOURCE, absent, ours
from tests.bench.ways import make_model

CAPS = ("300MB", "1GB")
FAULTS = ("ignore_range", "truncate")
SERVE = """
import json, sys
from tensorport_hub.devhub import DevHub, Fault
hub = DevHub(sys.argv[1]).start()
print(json.dumps({"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token}), flush=True)
for line in sys.stdin:
    seen = hub.seen
    print(json.dumps({"requests": len(seen), "sent": sum(one.bytes_out for one in seen)}), flush=True)
    hub.forget()
    hub.faults.clear()
    if line.strip():
        hub.faults.add(Fault(line.strip(), origin="cdn", at=500_000, times=None))
hub.stop()
"""
Row = dict[str, Any]


class Served:
    """A devhub in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.names: dict[str, str] = self._line()

    def _line(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def count(self, fault: str = "") -> dict[str, int]:
        """What it was asked for since the last time; and a fault that befalls its storage until the next."""
        assert self._process.stdin is not None
        print(fault, file=self._process.stdin, flush=True)
        found: dict[str, int] = self._line()
        return found


@contextmanager
def served(root: Path) -> Iterator[Served]:
    """The devhub of a root, as long as it is needed."""
    words = [sys.executable, "-c", SERVE, str(root)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        yield Served(process)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


def seed(folder: Path, nbytes: int) -> None:
    """Two roots with the same checkpoint in Xet storage; the first has its bytes as they are, too."""
    make_model(folder / "model", "bf16", nbytes)
    code = (
        "import sys; from pathlib import Path; from tensorport_hub.devhub import DevHub\n"
        "from tests.pushed import push\n"
        "with DevHub(sys.argv[1]) as hub:\n"
        f"    push(hub, '{SOURCE}', Path(sys.argv[2]))\n"
        "    if len(sys.argv) > 3: hub.add_repo('me/plain', sys.argv[2])\n"
    )
    home = {"HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "RUST_LOG": "error"}
    environment = {**os.environ, **home}
    model = str(folder / "model")
    for words in (["unpacked", model], ["plain", model, "too"]):
        shutil.rmtree(folder / "home", ignore_errors=True)  # what it knows of the other one
        subprocess.run(
            [sys.executable, "-c", code, str(folder / words[0]), *words[1:]],
            check=True,
            cwd=ROOT,
            env=environment,
        )
    shutil.rmtree(folder / "model")


def run(way: str, memory: str, hub: Served, folder: Path, fault: str = "") -> Row:
    """One process of one way."""
    scratch = folder / "scratch"
    scratch.mkdir()
    home = {"TMPDIR": str(scratch), "HF_HOME": str(scratch / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    hub.count(fault)
    words = [sys.executable, "-m", "tests.bench.reading", "--way", way, "--memory", memory]
    begun = time.perf_counter()
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **hub.names, **home}
    ) as child:
        assert child.stdout is not None
        said = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begun
    shutil.rmtree(scratch)
    if child.returncode:
        raise SystemExit(f"{way} failed")
    return {"wall": seconds, "cpu": usage.ru_utime + usage.ru_stime, **hub.count(), **json.loads(said)}


def ways() -> dict[str, tuple[str, str, str]]:
    """What is run by the name of its row: way, cap, root."""
    found = {f"{way}, {cap}": (way, cap, "plain") for cap in CAPS for way in ("http", "xet")}
    found["http, 1GB, unpacked"] = ("http", "1GB", "unpacked")
    return found | {peer: (peer, "-", "plain") for peer in PEERS if absent(peer) is None}


def measure(nbytes: int, runs: int) -> dict[str, Row]:
    """Medians of each way."""
    with tempfile.TemporaryDirectory(prefix="reading-") as name:
        folder = Path(name)
        seed(folder, nbytes)
        with served(folder / "plain") as plain, served(folder / "unpacked") as unpacked:
            hubs = {"plain": plain, "unpacked": unpacked}
            turns = [
                {row: run(way, cap, hubs[root], folder) for row, (way, cap, root) in ways().items()}
                for _ in range(runs)
            ]
    sums = {(found["sum"], found["bytes"]) for turn in turns for found in turn.values()}
    if len(sums) != 1:
        raise SystemExit(f"the ways read different bytes: {sums}")
    return {
        row: {key: statistics.median(turn[row][key] for turn in turns) for key in turns[0][row]}
        for row in turns[0]
    }


def outcomes(nbytes: int) -> dict[str, dict[str, str]]:
    """What each way makes of each fault."""
    names = ["http", "xet", *(peer for peer in PEERS if absent(peer) is None)]
    with tempfile.TemporaryDirectory(prefix="reading-") as name:
        folder = Path(name)
        seed(folder, nbytes)
        with served(folder / "plain") as hub:
            right = run("http", "1GB", hub, folder)["sum"]
            return {
                way: {fault: _outcome(run(way, "1GB", hub, folder, fault), right) for fault in FAULTS}
                for way in names
            }


def _outcome(found: Row, right: int) -> str:
    if "error" in found:
        return "error"
    return "right" if found["sum"] == right else "wrong bytes"


def show(rows: Mapping[str, Row]) -> None:
    first = next(iter(rows.values()))
    beside = rows["http, 1GB"]
    print(f"{first['bytes'] / 1e9:.2f} GB{'':22}wall s  x http   CPU s  x http  peak MB   sent MB requests")
    for name, row in rows.items():
        print(
            f"{name:29}{row['wall']:7.2f}{row['wall'] / beside['wall']:8.2f}{row['cpu']:8.2f}"
            f"{row['cpu'] / beside['cpu']:8.2f}{row['peak'] / 1e6:9.0f}{row['sent'] / 1e6:10.0f}"
            f"{row['requests']:9.0f}"
        )
    for peer in PEERS:
        if reason := absent(peer):
            print(f"{peer:29}{reason}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--size", type=float, default=float(1 << 30), help="bytes of the checkpoint")
    parser.add_argument("--runs", type=int, default=3, help="turns to take the median of")
    parser.add_argument("--faults", action="store_true", help="what becomes of false answers")
    parser.add_argument("--way", choices=["http", "xet", *PEERS], help=argparse.SUPPRESS)
    parser.add_argument("--memory", default="1GB", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.way:
        print(json.dumps({**_read(chosen.way, chosen.memory), "peak": _peak()}))
        return
    if chosen.faults:
        found = outcomes(int(min(chosen.size, 64e6)))
        lines = [f"{way:29}{'   '.join(f'{k}: {v}' for k, v in row.items())}" for way, row in found.items()]
        print(json.dumps(found, indent=1) if chosen.json else "\n".join(lines))
        return
    rows = measure(int(chosen.size), chosen.runs)
    if chosen.json:
        print(json.dumps({"runs": chosen.runs, "rows": rows}, indent=1))
    else:
        show(rows)


def _read(way: str, memory: str) -> Row:
    try:
        read = PEERS[way]() if way in PEERS else ours(memory, by_xet=way == "xet")
    except Exception as error:  # what a peer raises is its own
        return {"error": f"{type(error).__name__}: {error}"}
    return {"bytes": read.nbytes, "sum": read.total}


if __name__ == "__main__":
    main(sys.argv[1:])
