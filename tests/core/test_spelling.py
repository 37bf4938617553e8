"""What a wrong word was meant to be."""

from __future__ import annotations

import pytest

from tensorport_hub.core.encode.table import ENCODINGS
from tensorport_hub.core.plan import CHOICES
from tensorport_hub.core.spelling import meant


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("bf16", "bfloat16"),
        ("BF16", "bfloat16"),
        ("fp16", "float16"),
        ("half", "float16"),
        ("fp32", "float32"),
        ("float", "float32"),
        ("bfloat", "bfloat16"),
    ],
)
def test_precisions(word, expected):
    """Other names of a precision, and slips, are understood."""
    assert meant(word, CHOICES["precision"]) == f"did you mean `{expected}`?"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("npz", "numpy-direct"),
        ("numpy", "numpy-direct"),
        ("pickle", "jax-pickle"),
        ("safetensor", "safetensors"),
    ],
)
def test_formats(word, expected):
    """Other names of a format, and slips, are understood."""
    assert meant(word, ENCODINGS) == f"did you mean `{expected}`?"


def test_nothing_is_guessed_where_nothing_is_near():
    """Another list's word, and one that is like none, give no hint."""
    assert meant("half", ENCODINGS) == meant("zzz", CHOICES["precision"]) == ""
