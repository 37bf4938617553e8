"""`python -m tests.soak`: kill and disturb the program, as often as asked; print what was survived.

Bounded in count and time. Every trial compares the whole mirror with the one that an undisturbed run makes,
card and manifest included, while a reader polls `main`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from tests.soak.runs import Range, shooting_range, tell
from tests.soak.trials import disturbed, killed_at_moments, killed_at_request


def boundaries(at: Range, step: int, deadline: float) -> None:
    """SIGKILL at every `step`-th request of a run, before and after it is carried out."""
    for answered in (False, True):
        number, went_on = 0, True
        while went_on and time.monotonic() < deadline:
            went_on = killed_at_request(at, number, answered=answered)
            number += step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--step", type=int, default=1, help="kill at every N-th request (1); 0: at none")
    parser.add_argument("--moments", type=int, default=40, help="trials with kills at random moments")
    parser.add_argument("--faults", type=int, default=80, help="trials with random faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600, help="stop after so long")
    chosen = parser.parse_args()
    begun = time.monotonic()
    deadline = begun + chosen.seconds
    total: dict[str, int] = {}
    for transfer in ("lfs", "xet"):
        with (
            tempfile.TemporaryDirectory(prefix="tensorport-soak-") as folder,
            shooting_range(Path(folder), transfer) as at,
        ):
            draw = random.Random(f"{chosen.seed} {transfer}")
            if chosen.step:
                boundaries(at, chosen.step, deadline)
                tell(at.counts, time.monotonic() - begun)
            for _ in range(chosen.moments // 2):
                if time.monotonic() < deadline:
                    killed_at_moments(at, draw, 1.5)
            tell(at.counts, time.monotonic() - begun)
            for _ in range(chosen.faults // 2):
                if time.monotonic() < deadline:
                    disturbed(at, draw)
            tell(at.counts, time.monotonic() - begun)
            for key, value in asdict(at.counts).items():
                total[key] = total.get(key, 0) + value
    total["seconds"] = round(time.monotonic() - begun)
    print(json.dumps(total))
    sys.exit(0 if time.monotonic() < deadline else 3)


if __name__ == "__main__":
    main()
