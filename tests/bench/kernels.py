"""How fast packed weights become dense ones: `python -m tests.bench.kernels [--json]`.

For each layout: GB/s of output in the dtype that is kept, decoded and rounded tile by tile as a conversion
does it, on one core, beside a memcpy of as many bytes in the same run. Medians of several runs; other work on
the machine shows in both. Modules are described by their stored tensors and a configuration, and detection
finds the layout; one that it does not know is listed as absent.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from tensorport_hub.core.decode.cast import Losses
from tensorport_hub.core.detect import Checkpoint
from tensorport_hub.core.recipe import Recipe, recipes
from tensorport_hub.core.render import render
from tensorport_hub.core.strips import contiguous
from tensorport_hub.core.tensor import DTYPES, TensorSpec
from tensorport_hub.errors import TensorportError

SCALE_CODES = {"U8": (110, 130), "F8_E8M0": (110, 130), "F8_E4M3": (0x20, 0x60)}
"""Bytes of scales that keep products ordinary."""


@dataclass(frozen=True)
class Module:
    """One module of a layout, as a checkpoint would hold it.

    Attributes:
        stored: dtype and shape of each tensor by the end of its name, the packed one first.
        aim: the share of memcpy that is aimed at.
        content: bytes of tensors that are not random.
    """

    stored: Mapping[str, tuple[str, tuple[int, ...]]]
    config: Mapping[str, Any] = field(default_factory=dict)
    aim: float = 0.1
    content: Mapping[str, bytes] = field(default_factory=dict)


def modules(rows: int, columns: int) -> dict[str, Module]:
    """One module a layout, all of `rows` x `columns` weights."""
    o, i, groups = rows, columns, columns // 128
    pack = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
    awq = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
    return {
        "mxfp4": Module(
            {"weight_blocks": ("U8", (1, o, i // 32, 16)), "weight_scales": ("U8", (1, o, i // 32))}, aim=0.25
        ),
        "nvfp4": Module(
            {
                "weight": ("U8", (o, i // 2)),
                "weight_scale": ("F8_E4M3", (o, i // 16)),
                "weight_scale_2": ("F32", ()),
            },
            {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        ),
        "float8 block": Module(
            {"weight": ("F8_E4M3", (o, i)), "weight_scale_inv": ("F32", (-(-o // 128), -(-i // 128)))},
            {"quant_method": "fp8", "weight_block_size": [128, 128]},
        ),
        "int4 pack": Module(
            {
                "weight_packed": ("I32", (o, i // 8)),
                "weight_scale": ("BF16", (o, groups)),
                "weight_shape": ("I64", (2,)),
            },
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": pack}},
            },
            content={"weight_shape": np.array([o, i], "<i8").tobytes()},
        ),
        "gptq": Module(
            {
                "qweight": ("I32", (i // 8, o)),
                "qzeros": ("I32", (groups, o // 8)),
                "scales": ("F16", (groups, o)),
                "g_idx": ("I32", (i,)),
            },
            {**gptq, "checkpoint_format": "gptq"},
            content={"g_idx": (np.arange(i, dtype="<i4") // 128).tobytes()},
        ),
        "awq": Module(
            {
                "qweight": ("I32", (i, o // 8)),
                "qzeros": ("I32", (groups, o // 8)),
                "scales": ("F16", (groups, o)),
            },
            awq,
        ),
        "nf4": _nf4(o, i),
        "mlx 4-bit": Module(
            {
                "weight": ("U32", (o, i // 8)),
                "scales": ("BF16", (o, i // 64)),
                "biases": ("BF16", (o, i // 64)),
            },
            {"bits": 4, "group_size": 64},
        ),
    }


def _nf4(rows: int, columns: int) -> Module:
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [rows, columns]}
    blob = json.dumps(state).encode()
    count = rows * columns
    return Module(
        {
            "weight": ("U8", (count // 2, 1)),
            "weight.absmax": ("F32", (count // 64,)),
            "weight.quant_map": ("F32", (16,)),
            "weight.quant_state.bitsandbytes__nf4": ("U8", (len(blob),)),
        },
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        content={"weight.quant_state.bitsandbytes__nf4": blob},
    )


def filled(module: Module) -> tuple[Checkpoint, dict[str, np.ndarray]]:
    """A checkpoint of random codes and ordinary scales, and its bytes by name."""
    rng = np.random.default_rng(0)
    data, tensors = {}, {}
    at = 0
    for end, (dtype, shape) in module.stored.items():
        name = f"model.layers.0.mlp.up_proj.{end}"
        data[name] = stored = _bytes(rng, end, dtype, shape, module.content.get(end))
        tensors[name] = TensorSpec(name, DTYPES[dtype], shape, "model.safetensors", at, at + stored.size)
        at += stored.size
    facts = {name: value.tobytes() for name, value in data.items() if value.size <= 1 << 16}
    config = {"config.json": {"quantization_config": dict(module.config)} if module.config else {}}
    return Checkpoint(tensors, facts, config), data


def _bytes(
    rng: np.random.Generator, end: str, dtype: str, shape: tuple[int, ...], content: bytes | None
) -> np.ndarray:
    if content is not None:
        return np.frombuffer(content, np.uint8)
    count = prod(shape)
    if dtype in ("F32", "F16", "BF16"):
        return rng.uniform(0.01, 1, count).astype(DTYPES[dtype].numpy).view(np.uint8)
    low, high = SCALE_CODES[dtype] if "scale" in end else (0, 256)
    codes = rng.integers(low, high, count * DTYPES[dtype].itemsize, np.uint8)
    if dtype == "F8_E4M3":
        codes[codes & 0x7F == 0x7F] = 0  # no NaN
    return codes


def bound(checkpoint: Checkpoint) -> Recipe | str:
    """The one output, or why there is none."""
    try:
        (recipe,) = (r for r in recipes(checkpoint).made if r.decoder.scheme != "plain")
    except (TensorportError, ValueError) as error:
        return str(error).splitlines()[0]
    return recipe


def decode(recipe: Recipe, data: Mapping[str, np.ndarray]) -> int:
    """All of a tensor, tile by tile; the bytes that came out.

    Before, memory is as in a conversion: malloc has seen a block as large as those that are read, so that it
    keeps what a tile frees for the next one, and the system need not clear its pages again.
    """
    np.empty(8 << 20, np.uint8)
    inputs = [(data[t.name], contiguous(0, data[t.name].size)) for t in recipe.decoder.inputs]
    count = recipe.decoder.items
    outputs = [(None, Losses())]
    made = render(recipe.decoder, recipe.dtype, 0, count, inputs, outputs, saturate=False)
    return sum(items.nbytes for (items,) in made)


def seconds(work: Callable[[], object], runs: int) -> float:
    """Median of several runs, after one that is not counted."""
    work()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(rows: int, columns: int, runs: int) -> dict[str, dict[str, Any]]:
    """For each layout what was measured, or why not."""
    found: dict[str, dict[str, Any]] = {}
    for name, module in modules(rows, columns).items():
        checkpoint, data = filled(module)
        recipe = bound(checkpoint)
        if isinstance(recipe, str):
            found[name] = {"absent": recipe}
            continue
        nbytes = decode(recipe, data)
        source, target = np.ones(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
        copied = nbytes / seconds(lambda to=target, of=source: np.copyto(to, of), runs) / 1e9
        made = nbytes / seconds(lambda of=recipe, stored=data: decode(of, stored), runs) / 1e9
        found[name] = {
            "scheme": recipe.decoder.scheme,
            "dtype": recipe.dtype.name,
            "gb_per_s": round(made, 3),
            "memcpy_gb_per_s": round(copied, 3),
            "share": round(made / copied, 3),
            "aim": module.aim,
        }
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rows", type=int, default=4096, help="output rows, a multiple of 8")
    parser.add_argument("--columns", type=int, default=4096, help="output columns, a multiple of 128")
    parser.add_argument("--runs", type=int, default=5, help="runs to take the median of")
    chosen = parser.parse_args(arguments)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found = measure(chosen.rows, chosen.columns, chosen.runs)
    if chosen.json:
        shape = {"rows": chosen.rows, "columns": chosen.columns, "runs": chosen.runs}
        print(json.dumps({**shape, "layouts": found}, indent=1))
        return
    print(f"{'layout':14}{'scheme':16}{'out':6}{'GB/s out':>10}{'memcpy':>9}{'share':>8}{'aim':>7}")
    for name, row in found.items():
        if "absent" in row:
            print(f"{name:14}absent: {row['absent']}")
            continue
        print(
            f"{name:14}{row['scheme']:16}{row['dtype']:6}{row['gb_per_s']:10.2f}{row['memcpy_gb_per_s']:9.2f}"
            f"{row['share']:8.0%}{row['aim']:7.0%}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
