"""Mirror a model and load it as JAX arrays: `python mirror_and_load.py org/model me/model-npy`."""

from __future__ import annotations

import argparse

import jax

from tensorport_hub import mirror
from tensorport_hub.jax import load_params


def main() -> None:
    parser = argparse.ArgumentParser(description="Mirror a model and load it as JAX arrays.")
    parser.add_argument("source", help="org/model, or a folder")
    parser.add_argument("destination", help="me/model-npy, or a folder such as ./out")
    given = parser.parse_args()
    result = mirror(given.source, given.destination)
    print(result.commit_url or result.destination)
    params = load_params(result.destination)
    for path, array in jax.tree_util.tree_leaves_with_path(params):
        print(".".join(key.key for key in path), array.dtype, array.shape)


if __name__ == "__main__":
    main()
