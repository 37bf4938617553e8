"""The closed table of formats, by the word of the option `--format`."""

from __future__ import annotations

from collections.abc import Mapping

from tensorport_hub.core.encode.frame import Encoding
from tensorport_hub.core.encode.jax_pickle import JAX_PICKLE
from tensorport_hub.core.encode.msgpack import MSGPACK
from tensorport_hub.core.encode.numpy_direct import NUMPY_DIRECT
from tensorport_hub.core.encode.safetensors import SAFETENSORS

ENCODINGS: Mapping[str, Encoding] = {
    encoding.name: encoding for encoding in (NUMPY_DIRECT, MSGPACK, JAX_PICKLE, SAFETENSORS)
}

DEFAULT = NUMPY_DIRECT.name
