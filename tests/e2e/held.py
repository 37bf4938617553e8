"""What a process holds on the disk, seen from outside."""

from __future__ import annotations

import os
from pathlib import Path


def held_on_disk(pid: int, folder: Path) -> int:
    """Bytes of files below `folder`, and of deleted files that the process still has open."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_size
            except FileNotFoundError:
                continue
    descriptors = Path(f"/proc/{pid}/fd")
    try:
        handles = list(descriptors.iterdir())
    except (FileNotFoundError, PermissionError):
        return total
    for handle in handles:
        try:
            if os.readlink(handle).endswith(" (deleted)"):
                total += handle.stat().st_size
        except FileNotFoundError:
            continue
    return total
