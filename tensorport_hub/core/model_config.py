"""What a model's `config.json` says of quantization, and that text without it.

A mirror holds decoded weights, so a `config.json` that still announced a quantization would make loaders
decode them again. Keys: transformers `quantization_config` (also below `text_config` of multimodal models),
compressed-tensors 2024 `compression_config`, MLX `quantization`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

PATH = "config.json"
_KEYS = ("quantization_config", "compression_config", "quantization")


def without_quantization(config: Mapping[str, Any]) -> bytes:
    """The same configuration, announcing none; key order and all else kept."""
    kept = {key: value for key, value in config.items() if key not in _KEYS}
    inner = kept.get("text_config")
    if isinstance(inner, Mapping):
        kept["text_config"] = {key: value for key, value in inner.items() if key != _KEYS[0]}
    text = json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # a lone surrogate stays the escape that it was
