"""How long the command takes to say anything: `python -m tests.bench.starting [--json] [--runs N]`.

Whole processes, taking turns; shown are medians of seconds from start to exit, and the ratio to Python
importing numpy. Python starting with nothing to do is shown beside them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

COMMAND = str(Path(sys.executable).with_name("tensorport-hub"))
NUMPY = "import numpy"
STARTS: Mapping[str, Sequence[str]] = {
    "nothing": (sys.executable, "-c", ""),
    NUMPY: (sys.executable, "-c", NUMPY),
    "import tensorport_hub": (sys.executable, "-c", "import tensorport_hub"),
    "import huggingface_hub": (sys.executable, "-c", "from huggingface_hub import HfApi"),
    "tensorport-hub --help": (COMMAND, "--help"),
    "tensorport-hub mirror --help": (COMMAND, "mirror", "--help"),
}


def measure(runs: int) -> dict[str, float]:
    """Median seconds of each."""
    found: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in range(runs):
        for name, words in STARTS.items():
            begun = time.perf_counter()
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            found[name].append(time.perf_counter() - begun)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--runs", type=int, default=15, help="turns to take the median of")
    chosen = parser.parse_args(arguments)
    found = measure(chosen.runs)
    if chosen.json:
        print(json.dumps({"runs": chosen.runs, "seconds": found}, indent=1))
        return
    print(f"{'':30}{'ms':>8}{'x numpy':>9}")
    for name, seconds in found.items():
        print(f"{name:30}{seconds * 1e3:8.0f}{seconds / found[NUMPY]:9.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
