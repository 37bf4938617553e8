"""How a model card says that the files of each format are loaded, without this tool."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tensorport_hub.core.encode.jax_pickle import JAX_PICKLE
from tensorport_hub.core.encode.msgpack import MSGPACK
from tensorport_hub.core.encode.numpy_direct import NUMPY_DIRECT
from tensorport_hub.core.encode.safetensors import SAFETENSORS
from tensorport_hub.core.plan import Plan

PICKLE_WARNING = (
    "`jax-pickle`: whoever can change a pickle can run any code where it is loaded; publish and load pickles"
    " only where both ends trust each other"
)


def _numpy_direct(plan: Plan, folder: str) -> str:
    first = next(file.path for file in plan.outputs if file.format == NUMPY_DIRECT.name)
    chosen = f' if s["format"] == "{NUMPY_DIRECT.name}"' if folder else ""
    stored = f'[s["file"] for s in t["stored"]{chosen}]' if folder else ""
    tensors = (
        "params = {\n"
        '    name: jnp.concatenate([jnp.load(folder / s["file"]) for s in t["stored"]])\n'
        '    if len(t["stored"]) > 1 else jnp.load(folder / t["stored"][0]["file"])\n'
        "    for name, t in tensors.items()\n"
        "}\n"
    )
    if folder:
        tensors = (
            f"files = {{name: {stored} for name, t in tensors.items()}}\n"
            "params = {\n"
            "    name: jnp.concatenate([jnp.load(folder / file) for file in found])\n"
            "    if len(found) > 1 else jnp.load(folder / found[0])\n"
            "    for name, found in files.items()\n"
            "}\n"
        )
    return (
        "With JAX alone:\n\n"
        "```python\n"
        "import json, pathlib\n"
        "import jax.numpy as jnp\n"
        "from huggingface_hub import snapshot_download\n\n"
        'folder = pathlib.Path(snapshot_download("OWNER/NAME"))\n'
        f'array = jnp.load(folder / "{first}")\n\n'
        'tensors = json.loads((folder / "manifest.json").read_text())["tensors"]\n' + tensors + "```\n\n"
        '`numpy.load(file, mmap_mode="r")` opens every file too. bfloat16 is stored as numpy stores it, as'
        " two raw bytes (`V2`): `array.view(ml_dtypes.bfloat16)` restores it, `jnp.load` does so by itself.\n"
    )


def _msgpack(plan: Plan, folder: str) -> str:
    return (
        "With flax, from msgpack; each file is a map of flat names to arrays, and a tensor that is larger"
        " than a shard is cut into `NAME.part-...` along its first axis:\n\n"
        "```python\n"
        "import pathlib\n"
        "from flax.serialization import msgpack_restore\n"
        "from huggingface_hub import snapshot_download\n\n"
        'folder = pathlib.Path(snapshot_download("OWNER/NAME"))\n'
        "params = {}\n"
        f'for file in sorted(folder.glob("{folder}*.msgpack")):\n'
        "    params |= msgpack_restore(file.read_bytes())\n"
        "```\n"
    )


def _jax_pickle(plan: Plan, folder: str) -> str:
    return (
        f"> [!WARNING]\n> {PICKLE_WARNING}.\n\n"
        "From pickles, each a dict of flat names to numpy arrays, where you trust this repository; a tensor"
        " that is larger than a shard is cut into `NAME.part-...` along its first axis:\n\n"
        "```python\n"
        "import pathlib, pickle\n"
        "from huggingface_hub import snapshot_download\n\n"
        'folder = pathlib.Path(snapshot_download("OWNER/NAME"))\n'
        "params = {}\n"
        f'for file in sorted(folder.glob("{folder}*.pkl")):\n'
        "    params |= pickle.loads(file.read_bytes())\n"
        "```\n"
    )


def _safetensors(plan: Plan, folder: str) -> str:
    where = f', subfolder="{folder.rstrip("/")}"' if folder else ""
    return (
        "With transformers, whose own names and shapes these are:\n\n"
        "```python\n"
        "from transformers import AutoModel\n\n"
        f'model = AutoModel.from_pretrained("OWNER/NAME"{where}, dtype="auto")\n'
        "```\n"
    )


SNIPPETS: Mapping[str, Callable[[Plan, str], str]] = {
    NUMPY_DIRECT.name: _numpy_direct,
    MSGPACK.name: _msgpack,
    JAX_PICKLE.name: _jax_pickle,
    SAFETENSORS.name: _safetensors,
}
"""Format -> the section that says it; of a plan, and the folder where the files lie (with a slash)."""
