"""Mirror a Hugging Face checkpoint as plain arrays.

The verbs are loaded when first used, so that importing this package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_VERBS = ("convert", "inspect", "mirror", "plan", "verify")
_BATCH = ("Order", "mirror_all", "read_orders")

__all__ = [
    "Order",
    "TensorportError",
    "__version__",
    "convert",
    "inspect",
    "mirror",
    "mirror_all",
    "open_checkpoint",
    "plan",
    "read_orders",
    "verify",
]

if TYPE_CHECKING:
    from tensorport_hub.api import convert, inspect, mirror, plan, verify
    from tensorport_hub.batch import mirror_all, read_orders
    from tensorport_hub.checkpoint import open_checkpoint
    from tensorport_hub.core.orders import Order
    from tensorport_hub.errors import TensorportError


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        from tensorport_hub import api

        return getattr(api, name)
    if name in _BATCH:
        from tensorport_hub import batch

        return getattr(batch, name)
    if name == "open_checkpoint":
        from tensorport_hub.checkpoint import open_checkpoint

        return open_checkpoint
    if name == "TensorportError":
        from tensorport_hub.errors import TensorportError

        return TensorportError
    raise AttributeError(f"module `tensorport_hub` has no attribute `{name}`")


def __dir__() -> list[str]:
    return sorted(__all__)
