"""The model that goes to git remotes, and how much of it is tried.

It is small: each of its tensors costs a git-lfs process. Where `FULL_GIT_TESTS` is set, it has as many as
that of the other tests of interrupted runs, and every combination of what is tried is tried.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.e2e.interrupted import SOURCE, model

FULL = bool(os.environ.get("FULL_GIT_TESTS"))
FILES, TENSORS = (4, 6) if FULL else (3, 2)
PARTS = FILES * TENSORS
MODEL = model(FILES, TENSORS)
EVERY = 300_000 if FULL else 200_000
"""Bytes between checkpoints: three tensors, or two."""

__all__ = ["EVERY", "FILES", "FULL", "MODEL", "PARTS", "SOURCE", "TENSORS", "few"]


def few(names: str, some: list[Any], others: list[Any], **more: Any) -> pytest.MarkDecorator:
    """Parameters of a test: some, and in the full set the others too."""
    return pytest.mark.parametrize(names, [*some, *(others if FULL else [])], **more)
