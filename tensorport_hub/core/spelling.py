"""What a word that is none of the expected ones was meant to be: another name of the same, or a slip."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_OTHER_NAMES = {
    "bfloat16": ("bf16", "brain"),
    "float16": ("fp16", "f16", "half"),
    "float32": ("fp32", "f32", "float", "single", "full"),
    "numpy-direct": ("numpy", "npy", "npz", "np"),
    "jax-pickle": ("pickle", "pkl", "jax"),
    "msgpack": ("flax",),
    "private": ("public",),
}


def meant(word: str, words: Iterable[str]) -> str:
    """A hint that asks whether another word was meant; "" where none is near."""
    known = tuple(words)
    near = [name for name, others in _OTHER_NAMES.items() if name in known and word.lower() in others]
    near = near or get_close_matches(word.lower(), known, 1)
    return f"did you mean `{near[0]}`?" if near else ""
