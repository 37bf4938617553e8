"""Memory that does not grow with the weights: `python -m tests.bench.memory [--json] [--rows ...]`.

Each row mirrors a synthetic checkpoint (`layouts.py`) by a process of its own, under the cap that it names.
Shown is `VmHWM`, the largest resident memory of that process, the transfer library's buffers included, beside
the cap; the rows of plain weights from 1 GB on also say how much more they took than the first one of their
transfer with the same cap.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tensorport_hub.core.size import parse_size
from tests.bench.full_scale import run, served

ROWS = (
    ("plain 0.1", "300MB"),
    ("mxfp4 0.1", "300MB"),
    ("plain 1", "300MB"),
    ("plain 4", "300MB"),
    ("plain 14", "300MB"),
    ("tensor 5", "300MB"),
    ("plain 1", "512MB"),
    ("plain 14", "512MB"),
    ("gptq 5", "300MB"),
    ("gptq 5", "512MB"),
    ("100000", "488MB"),
    ("100000", "644MB"),
)
"""Models, and the cap for each."""

LFS_ALONE = (("gptq 5", "300MB"), ("100000", "488MB"))
"""By Xet the first takes very long, since what is left for the weight has it read in strips of 7 kB; the
second is refused."""


def rows(chosen: Sequence[tuple[str, str]], transfers: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What each mirror took."""
    first: dict[tuple[str, str], float] = {}
    for name, cap in chosen:
        for transfer in [one for one in transfers if one == "lfs" or (name, cap) not in LFS_ALONE]:
            with served(name, digests=True, xet="http" if transfer == "xet" else "off") as hub:
                row = run(hub, "mirror", {"transfer": transfer, "max_memory": cap})
            row["cap"] = parse_size(cap)
            if name.startswith("plain") and row["bytes_in"] > 0.9e9:
                row["growth"] = row["peak"] / first.setdefault((transfer, cap), row["peak"])
            yield f"{name}, {cap}, {transfer}", row


def show(name: str, row: Mapping[str, Any]) -> None:
    growth = f"{row['growth']:9.2f}" if "growth" in row else f"{'':9}"
    print(
        f"{name:24}{row['tensors']:9,}{row['bytes_in'] / 1e9:9.2f}{row['bytes_out'] / 1e9:9.2f}"
        f"{row['cap'] / 1e6:9.0f}{row['peak'] / 1e6:9.0f}{growth}{row['wall']:9.1f}",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    names = [f"{name}, {cap}" for name, cap in ROWS]
    parser.add_argument("--rows", nargs="+", default=names, choices=names, help="models, and their caps")
    parser.add_argument("--transfers", nargs="+", default=["lfs", "xet"], choices=["lfs", "xet"])
    chosen = parser.parse_args(arguments)
    found = {}
    if not chosen.json:
        print(f"{'':24}  tensors    GB in   GB out   cap MB  peak MB   growth   wall s")
    for name, row in rows([row for row in ROWS if ", ".join(row) in chosen.rows], chosen.transfers):
        found[name] = row
        if not chosen.json:
            show(name, row)
    if chosen.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
