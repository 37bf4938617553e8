"""Golden values: what a reference implementation makes of the same weights, and the scripts that ask it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def read_golden(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Everything of an .npz file."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}
