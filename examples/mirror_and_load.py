"""Mirror a model, load it as JAX arrays by its manifest: `python mirror_and_load.py org/model me/npy`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from huggingface_hub import snapshot_download

from tensorport_hub import mirror


def load(folder: Path) -> dict[str, jax.Array]:
    """Every tensor of a mirror; the parts of a cut one are joined."""
    tensors = json.loads((folder / "manifest.json").read_bytes())["tensors"]
    params = {}
    for name, tensor in tensors.items():
        parts = [jnp.load(folder / stored["file"]) for stored in tensor["stored"]]
        params[name] = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
    return params


def main(source: str, destination: str) -> None:
    result = mirror(source, destination)
    print(result.commit_url)
    params = load(Path(snapshot_download(result.destination)))
    for name, array in params.items():
        print(name, array.dtype, array.shape)


if __name__ == "__main__":
    main(*sys.argv[1:3])
