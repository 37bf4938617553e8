"""Mirror a model and load it as JAX arrays: `python mirror_and_load.py org/model me/model-npy`."""

from __future__ import annotations

import sys

import jax

from tensorport_hub import mirror
from tensorport_hub.jax import load_params


def main(source: str, destination: str) -> None:
    result = mirror(source, destination)
    print(result.commit_url or result.destination)
    params = load_params(result.destination)
    for path, array in jax.tree_util.tree_leaves_with_path(params):
        print(".".join(key.key for key in path), array.dtype, array.shape)


if __name__ == "__main__":
    main(*sys.argv[1:3])
