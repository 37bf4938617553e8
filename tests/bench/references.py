"""How fast other packages decode the same tensors: `python -m tests.bench.references`.

Each row pairs this project's kernel with the format's own decoder on the same bytes, on one core, in one run;
figures are medians in GB/s of output. It needs packages that the tests don't: torch, compressed-tensors,
bitsandbytes, mlx, gguf, gptqmodel (7.7.0 runs with torch 2.13 if installed with `--no-deps`); one that is
absent is said so. Values are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import deserialize

from tensorport_hub.core.decode.cast import Losses
from tensorport_hub.core.decode.plain import Plain
from tensorport_hub.core.recipe import Recipe
from tensorport_hub.core.render import render
from tensorport_hub.core.strips import contiguous
from tensorport_hub.core.tensor import DTYPES, TensorSpec
from tests.bench.kernels import bound, decode, filled, modules, seconds

NAME = "model.layers.0.mlp.up_proj."
BNB = Path(__file__).parent.parent / "checkpoints" / "bnb_nf4" / "model.safetensors"
NF4 = next(
    np.frombuffer(tensor["data"], np.float32)
    for name, tensor in deserialize(BNB.read_bytes())
    if name.endswith(".quant_map")
)
"""Its table, as bitsandbytes stores it."""
Stored = dict[str, np.ndarray]
Reference = Callable[[Stored, int, int], Callable[[], Any]]


def _torch(array: np.ndarray, dtype: str) -> Any:
    torch = import_module("torch")
    return torch.from_numpy(array.copy()).view(getattr(torch, dtype))


def _quantization(bits: int, group: int, kind: str) -> Any:
    quantization = import_module("compressed_tensors.quantization")
    strategy = "tensor_group" if kind == "nvfp4" else "group"
    type_ = "float" if kind == "nvfp4" else "int"
    return quantization.QuantizationArgs(
        num_bits=bits, type=type_, strategy=strategy, group_size=group, symmetric=True
    )


def compressed_int4(stored: Stored, rows: int, columns: int) -> Callable[[], Any]:
    """compressed-tensors: unpack to int8, then scale."""
    helpers = import_module("compressed_tensors.compressors.pack_quantized.helpers")
    forward = import_module("compressed_tensors.quantization.lifecycle.forward")
    packed = _torch(stored["weight_packed"], "int32").reshape(rows, -1)
    scale = _torch(stored["weight_scale"], "bfloat16").reshape(rows, -1)
    arguments, shape = _quantization(4, 128, "int"), import_module("torch").Size([rows, columns])
    return lambda: forward.dequantize(
        helpers.unpack_from_int32(packed, 4, shape), scale, None, arguments, scale.dtype
    )


def torch_float8(stored: Stored, rows: int, columns: int) -> Callable[[], Any]:
    """torch, as transformers does it: widen, scale block by block, round."""
    torch = import_module("torch")
    weight = _torch(stored["weight"], "float8_e4m3fn").reshape(rows // 128, 128, columns // 128, 128)
    scale = _torch(stored["weight_scale_inv"], "float32").reshape(rows // 128, 1, columns // 128, 1)
    return lambda: (weight.to(torch.float32) * scale).to(torch.bfloat16).reshape(rows, columns)


def bitsandbytes_nf4(stored: Stored, rows: int, columns: int) -> Callable[[], Any]:
    """bitsandbytes: its CPU kernel."""
    torch, functional = import_module("torch"), import_module("bitsandbytes.functional")
    state = functional.QuantState(
        absmax=_torch(stored["weight.absmax"], "float32"),
        shape=torch.Size([rows, columns]),
        code=_torch(stored["weight.quant_map"], "float32"),
        blocksize=64,
        quant_type="nf4",
        dtype=torch.bfloat16,
    )
    packed = _torch(stored["weight"], "uint8").reshape(-1, 1)
    return lambda: functional.dequantize_4bit(packed, state)


def mlx_affine(stored: Stored, rows: int, columns: int) -> Callable[[], Any]:
    """mlx on the CPU."""
    mx = import_module("mlx.core")
    mx.set_default_device(mx.cpu)
    weight = mx.array(stored["weight"].view(np.uint32).reshape(rows, -1))
    scales, biases = (
        mx.array(stored[name].view(np.uint16).reshape(rows, -1)).view(mx.bfloat16)
        for name in ("scales", "biases")
    )

    def run() -> Any:
        out = mx.dequantize(weight, scales, biases, group_size=64, bits=4)
        mx.eval(out)
        return out

    return run


def gptqmodel_torch(stored: Stored, rows: int, columns: int) -> Callable[[], Any]:
    """GPTQModel's `TorchLinear`, which wants zero points as they are: v1 stores them less 1."""
    kind = import_module("gptqmodel.nn_modules.qlinear.torch").TorchLinear
    layer = kind(4, 128, True, False, columns, rows)
    nibbles = stored["qzeros"][:, None] >> np.array([0, 4], np.uint8) & np.uint8(15)
    zeros = (nibbles + np.uint8(1) & np.uint8(15)) @ np.array([1, 16], np.uint8)
    layer.qweight = _torch(stored["qweight"], "int32").reshape(-1, rows)
    layer.qzeros = _torch(zeros, "int32").reshape(columns // 128, -1)
    layer.scales = _torch(stored["scales"], "float16").reshape(-1, rows)
    layer.g_idx = _torch(stored["g_idx"], "int32")
    return lambda: layer.dequantize_weight().T


def gptqmodel_awq(stored: Stored, rows: int, columns: int) -> Callable[[], Any]:
    """GPTQModel's copy of AutoAWQ's `dequantize_gemm`."""
    packing = import_module("gptqmodel.quantization.awq.utils.packing_utils")
    weight = _torch(stored["qweight"], "int32").reshape(columns, -1)
    zeros = _torch(stored["qzeros"], "int32").reshape(columns // 128, -1)
    scales = _torch(stored["scales"], "float16").reshape(-1, rows)
    return lambda: packing.dequantize_gemm(weight, zeros, scales, 4, 128).T


def gguf_mxfp4(stored: Stored, rows: int, columns: int) -> Callable[[], Any]:
    """gguf's numpy decoder, on its own arrangement of the same number of blocks."""
    gguf = import_module("gguf")
    blocks = stored["weight_blocks"].reshape(-1, 16)
    data = np.concatenate([stored["weight_scales"].reshape(-1, 1), blocks], axis=1).reshape(rows, -1)
    kind = gguf.GGMLQuantizationType.MXFP4
    return lambda: gguf.quants.dequantize(data, kind)


REFERENCES: dict[str, tuple[str, Reference, bool]] = {
    "mxfp4": ("gguf", gguf_mxfp4, False),
    "float8 block": ("torch", torch_float8, True),
    "int4 pack": ("compressed-tensors", compressed_int4, True),
    "gptq": ("gptqmodel", gptqmodel_torch, True),
    "awq": ("gptqmodel", gptqmodel_awq, True),
    "nf4": ("bitsandbytes", bitsandbytes_nf4, True),
    "mlx 4-bit": ("mlx", mlx_affine, True),
}
"""Layout -> package, its decoder, and whether it returns the same elements in the same order."""


def measure(name: str, rows: int, columns: int, runs: int) -> str:
    """One line: both speeds and their ratio, or why there is none."""
    package, reference, same = REFERENCES[name]
    module = modules(rows, columns)[name]
    if name == "nf4":  # bitsandbytes has the table in its kernel
        module = replace(module, content={**module.content, "weight.quant_map": NF4.tobytes()})
    checkpoint, data = filled(module)
    recipe = bound(checkpoint)
    if isinstance(recipe, str):
        return f"{name:14}absent: {recipe}"
    try:
        run = reference({key.removeprefix(NAME): value for key, value in data.items()}, rows, columns)
        theirs = run()
    except ImportError as error:
        return f"{name:14}skipped: `{error.name}` is not installed"
    if same:
        _compare(recipe, data, theirs, name)
    elements = rows * columns
    nbytes = decode(recipe, data)
    own = nbytes / seconds(lambda: decode(recipe, data), runs) / 1e9
    other = elements * recipe.dtype.itemsize / seconds(run, runs) / 1e9
    return f"{name:14}{package:20}{own:8.2f}{other:8.2f}{own / other:8.1f}x"


CASTS = (("BF16", "F32"), ("F16", "F32"), ("F32", "BF16"), ("F32", "F16"), ("BF16", "F16"))
"""From what is stored to what comes out."""
_WORDS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def measure_cast(stored: str, target: str, elements: int, runs: int) -> str:
    """One line: how fast weights are rounded, counted losses and all, and how fast by torch."""
    name = f"{stored} to {target}"
    kind = DTYPES[stored]
    spec = TensorSpec("w", kind, (elements,), "f", 0, elements * kind.itemsize)
    recipe = Recipe("w", Plain(spec), DTYPES[target])
    values = (np.random.default_rng(0).standard_normal(elements, np.float32) / 50).astype(kind.numpy)
    data = {"w": values.view(np.uint8)}
    try:
        tensor = _torch(data["w"], _WORDS[stored])
        wanted = getattr(import_module("torch"), _WORDS[target])
        theirs = tensor.to(wanted)
    except ImportError as error:
        return f"{name:14}skipped: `{error.name}` is not installed"
    _compare(recipe, data, theirs, name)
    nbytes = decode(recipe, data)
    own = nbytes / seconds(lambda: decode(recipe, data), runs) / 1e9
    other = nbytes / seconds(lambda: tensor.to(wanted), runs) / 1e9
    return f"{name:14}{'torch':20}{own:8.2f}{other:8.2f}{own / other:8.1f}x"


def _compare(recipe: Any, data: Stored, theirs: Any, name: str) -> None:
    inputs = [(data[t.name], contiguous(0, data[t.name].size)) for t in recipe.decoder.inputs]
    decoder, outputs = recipe.decoder, [(None, Losses())]
    made = render(decoder, recipe.dtype, 0, decoder.items, inputs, outputs, saturate=False)
    mine = np.concatenate([items.view(recipe.dtype.numpy).astype(np.float32) for (items,) in made])
    if type(theirs).__module__.startswith("mlx"):
        other = np.array(theirs.astype(import_module("mlx.core").float32))
    else:
        other = theirs.float().numpy()
    if not np.array_equal(mine, other.reshape(-1)):
        raise SystemExit(f"{name}: {np.count_nonzero(mine != other.reshape(-1))} values differ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=5)
    chosen = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    print(f"{'layout':14}{'reference':20}{'ours':>8}{'theirs':>8}{'ratio':>9}   GB/s out, one core")
    for name in REFERENCES:
        print(measure(name, chosen.rows, chosen.columns, chosen.runs), flush=True)
    for stored, target in CASTS:
        print(measure_cast(stored, target, chosen.rows * chosen.columns, chosen.runs), flush=True)


if __name__ == "__main__":
    main()
