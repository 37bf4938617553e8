"""What a mirror holds, read back by means that are not the product's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from tensorport_hub.devhub import DevHub

NUMPY = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}
ROUNDED = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}


def contents(hub: DevHub, repo_id: str) -> dict[str, bytes]:
    """Every file of a repository but the Hub's own `.gitattributes`."""
    return {path: hub.read(repo_id, path) for path in hub.files(repo_id) if path != ".gitattributes"}


def folder_contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def arrays(files: Mapping[str, bytes]) -> dict[str, npt.NDArray[Any]]:
    """Tensor name -> array, by the manifest and numpy's own reader."""
    import io

    found: dict[str, npt.NDArray[Any]] = {}
    for name, tensor in json.loads(files["manifest.json"])["tensors"].items():
        parts = [np.load(io.BytesIO(files[stored["file"]])) for stored in tensor["stored"]]
        array = np.concatenate(parts) if len(parts) > 1 else parts[0]
        wanted = NUMPY.get(tensor["dtype"])
        found[name] = array.view(wanted) if wanted is not None and array.dtype != wanted else array
        assert found[name].shape == tuple(tensor["shape"])
    return found


def stored(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a plain checkpoint, by safetensors' own reader."""
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def expected_gptoss(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """What transformers decoded the tiny gpt-oss to, in the stored order [E, out, in], as float32."""
    found = {}
    for path in (folder / "expected").glob("*.npy"):
        array = np.load(path)
        name = path.name.removesuffix(".npy")
        found[name] = (
            array.swapaxes(1, 2) if name.endswith(("experts.down_proj", "experts.gate_up_proj")) else array
        )
    return found


def same(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    """Equal dtype, shape and bytes."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == np.ascontiguousarray(b).tobytes()
