"""Mirrors as JAX parameters: `load_params`, and `load_gpt_oss` for gpt-oss.

JAX is imported here and nowhere else in the package: importing this module needs it, nothing else does.
"""

from __future__ import annotations

try:
    import jax as _jax  # noqa: F401
except ImportError:
    raise ImportError(
        "`tensorport_hub.jax` needs JAX: `pip install '.[jax]'` in a clone of tensorport-hub"
    ) from None

from tensorport_hub.jax.gpt_oss import load_gpt_oss
from tensorport_hub.jax.params import load_params

__all__ = ["load_gpt_oss", "load_params"]
