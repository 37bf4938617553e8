"""Models in several files: plain bfloat16, MXFP4 with scales in another file, experts one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from tests.mirrored import Array, bits, floats, write

CARD = b"---\nlicense: mit\n---\n\n# Model\n"
Tensors = dict[str, tuple[str, Array]]


def repository(files: Mapping[str, Tensors], config: Mapping[str, object]) -> dict[str, bytes]:
    """All that a repository holds."""
    placed = {name: path for path, tensors in files.items() for name in tensors}
    return {
        **{path: write(tensors) for path, tensors in files.items()},
        "model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": placed}).encode(),
        "config.json": json.dumps(config).encode(),
        "README.md": CARD,
    }


def _path(number: int, count: int) -> str:
    return f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def bf16(count: int = 6, tensors: int = 4, rows: int = 300) -> dict[str, bytes]:
    """Files of several sizes; tensors of `rows` x 128."""
    files = {
        _path(n, count): {
            f"layers.{n}.w{i}": floats("BF16", (rows + 10 * n, 128), n * tensors + i) for i in range(tensors)
        }
        for n in range(count)
    }
    return repository(files, {"model_type": "none"})


def mxfp4(count: int = 4) -> dict[str, bytes]:
    """gpt-oss' experts; the scales of each lie in the file after its blocks'."""
    files: dict[str, Tensors] = {_path(n, count): {} for n in range(count)}
    draw = np.random.default_rng(1)
    for n in range(count):
        name = f"model.layers.{n}.mlp.experts.gate_up_proj"
        scales = draw.integers(115, 125, (4, 96, 8), np.uint8)
        files[_path(n, count)][f"{name}_blocks"] = bits("U8", (4, 96, 8, 16), n)
        files[_path((n + 1) % count, count)][f"{name}_scales"] = ("U8", scales)
        files[_path(n, count)][f"model.layers.{n}.norm.weight"] = floats("BF16", (256,), n)
    config = {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}
    return repository(files, config)


def mixtral(count: int = 3, experts: int = 6) -> dict[str, bytes]:
    """Experts one by one, dealt out over the files."""
    files: dict[str, Tensors] = {_path(n, count): {} for n in range(count)}
    at = 0
    for layer in range(2):
        for expert in range(experts):
            for which, shape in (("w1", (48, 32)), ("w2", (32, 48)), ("w3", (48, 32))):
                name = f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{which}.weight"
                files[_path(at % count, count)][name] = floats("BF16", shape, at)
                at += 1
    return repository(files, {"model_type": "mixtral", "num_local_experts": experts})
