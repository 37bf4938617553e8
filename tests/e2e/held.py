"""What a process holds on the disk, seen from outside."""

from __future__ import annotations

import os
from pathlib import Path


def held_on_disk(pid: int, folder: Path) -> int:
    """Bytes of files below `folder`, and of deleted files that the process still has open.

    One that is renamed or deleted meanwhile counts once.
    """
    held: dict[int, int] = {}
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                stat = os.lstat(os.path.join(where, name))
            except FileNotFoundError:
                continue
            held[stat.st_ino] = stat.st_size
    descriptors = Path(f"/proc/{pid}/fd")
    try:
        handles = list(descriptors.iterdir())
    except (FileNotFoundError, PermissionError):
        return sum(held.values())
    for handle in handles:
        try:
            if os.readlink(handle).endswith(" (deleted)"):
                held[handle.stat().st_ino] = handle.stat().st_size
        except FileNotFoundError:
            continue
    return sum(held.values())
