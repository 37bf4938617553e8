"""Checkpoints that other packages packed, and what their own decoders made of them.

`tests/checkpoints/NAME` holds `model.safetensors`, `config.json`, `README` (the packer and its call),
`expected/<tensor>.npy` (the reference decoder's output, widened to float32) and `expected/dtypes.json` (the
dtype that it returned). gpt-oss experts are expected as transformers holds them, with the last axes swapped.
"""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors import deserialize, safe_open

from tensorport_hub import convert

CHECKPOINTS = Path(__file__).parent / "checkpoints"
NUMPY = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}
REFERENCE = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
ZERO_SIGN = frozenset({"bnb_fp4", "modelopt_nvfp4"})
"""Reference decoders that lose the sign of some zeros (FORMATS: A0)."""
EFFECTIVE = "__times_pre_quant_scale"
"""Ends the name of what a weight is with its input scales, next to what it is without."""
CLOSE = {"awq_gemv_fast_g64": 1e-3}
"""Expected values that are the unquantized ones: how far they may lie from ours."""


def expected(name: str) -> dict[str, tuple[npt.NDArray[np.float32], str]]:
    """Output tensor -> (values, dtype that the reference returned)."""
    folder = CHECKPOINTS / name / "expected"
    dtypes = json.loads((folder / "dtypes.json").read_text())["reference_output_dtype"]
    found = {}
    for path in sorted(folder.glob("*.npy")):
        tensor = path.name.removesuffix(".npy")
        if tensor.endswith("__codes"):  # what bitnet's packer was given, no output
            continue
        array = np.load(path)
        if name == "gptoss_mxfp4" and tensor.endswith(("experts.down_proj", "experts.gate_up_proj")):
            array = array.swapaxes(1, 2)
        found[tensor] = (array, REFERENCE[str(dtypes[tensor]).rpartition(".")[2]])
    for tensor in [tensor for tensor in found if tensor.endswith(EFFECTIVE)]:
        weight = tensor.removesuffix(EFFECTIVE)
        found[weight] = (found.pop(tensor)[0], found[weight][1])
    return found


def read_mirror(folder: Path) -> dict[str, tuple[npt.NDArray[Any], str]]:
    """Output tensor -> (array, dtype), by the manifest and numpy's own reader."""
    found = {}
    for name, tensor in json.loads((folder / "manifest.json").read_bytes())["tensors"].items():
        parts = [np.load(folder / stored["file"]) for stored in tensor["stored"]]
        array = np.concatenate(parts) if len(parts) > 1 else parts[0]
        wanted = NUMPY.get(tensor["dtype"])
        array = array.view(wanted) if wanted is not None and array.dtype != wanted else array
        assert array.shape == tuple(tensor["shape"])
        found[name] = (array, tensor["dtype"])
    return found


def check(name: str, made: dict[str, tuple[npt.NDArray[Any], str]], prefix: str = "") -> None:
    """Every expected tensor came out, bit for bit in the reference's dtype; the rest is as it was stored."""
    wanted = expected(name)
    stored = dict(deserialize((CHECKPOINTS / name / "model.safetensors").read_bytes()))
    for extra in made.keys() - {prefix + tensor for tensor in wanted}:
        assert made[extra][0].tobytes() == bytes(stored[extra.removeprefix(prefix)]["data"]), extra
    assert {prefix + tensor for tensor in wanted} <= made.keys()
    for tensor, (values, dtype) in wanted.items():
        array, got = made[prefix + tensor]
        assert got == dtype, tensor
        assert array.shape == values.shape, tensor
        if name in CLOSE:
            assert np.abs(array.astype(np.float32) - values).max() <= CLOSE[name], tensor
            continue
        with np.errstate(over="ignore"):
            reference = values.astype(NUMPY[dtype])
        if name in ZERO_SIGN:
            reference, array = reference + NUMPY[dtype](0), array + NUMPY[dtype](0)
        assert array.tobytes() == np.ascontiguousarray(reference).tobytes(), tensor


def check_checkpoint(name: str, out: Path, **options: Any) -> None:
    """Convert a foreign checkpoint and check it; `options` are those of `convert`."""
    source = stage(name, out / "source")
    convert(str(source), str(out / "mirror"), **options)
    check(name, read_mirror(out / "mirror"))


def stage(name: str, folder: Path) -> Path:
    """The checkpoint as a repository would hold it: without what was expected."""
    shutil.copytree(CHECKPOINTS / name, folder, ignore=shutil.ignore_patterns("expected", "README"))
    return folder


def check_wrapped(name: str, out: Path) -> None:
    """The same tensors under a prefix, each one's companions in another file of two, still come out right."""
    source = stage(name, out / "source")
    path = source / "model.safetensors"
    tensors = sorted(deserialize(path.read_bytes()))
    shards: list[dict[str, Any]] = [{}, {}]
    for i, (tensor, value) in enumerate(tensors):
        shards[i % 2][f"wrapped.{tensor}"] = value
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    path.unlink()
    weight_map = {}
    for i, shard in enumerate(shards):
        file_name = f"model-{i + 1:05d}-of-00002.safetensors"
        weight_map |= dict.fromkeys(shard, file_name)
        (source / file_name).write_bytes(write(shard, metadata))
    index = {"metadata": {}, "weight_map": weight_map}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    convert(str(source), str(out / "mirror"))
    check(name, read_mirror(out / "mirror"), prefix="wrapped.")


def write(tensors: dict[str, Any], metadata: dict[str, str] | None) -> bytes:
    """A safetensors file of any dtypes, from what `safetensors.deserialize` gives."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, tensor in tensors.items():
        stop = at + len(tensor["data"])
        header[name] = {"dtype": tensor["dtype"], "shape": tensor["shape"], "data_offsets": [at, stop]}
        at = stop
    text = json.dumps(header).encode()
    data = b"".join(bytes(tensor["data"]) for tensor in tensors.values())
    return struct.pack("<Q", len(text)) + text + data
