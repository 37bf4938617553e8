"""Mirror a Hugging Face checkpoint as plain arrays.

The verbs are loaded when first used, so that importing this package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_VERBS = ("convert", "inspect", "mirror", "plan", "verify")

__all__ = [
    "TensorportError",
    "__version__",
    "convert",
    "inspect",
    "mirror",
    "open_checkpoint",
    "plan",
    "verify",
]

if TYPE_CHECKING:
    from tensorport_hub.api import convert, inspect, mirror, plan, verify
    from tensorport_hub.checkpoint import open_checkpoint
    from tensorport_hub.errors import TensorportError


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        from tensorport_hub import api

        return getattr(api, name)
    if name == "open_checkpoint":
        from tensorport_hub.checkpoint import open_checkpoint

        return open_checkpoint
    if name == "TensorportError":
        from tensorport_hub.errors import TensorportError

        return TensorportError
    raise AttributeError(f"module `tensorport_hub` has no attribute `{name}`")
