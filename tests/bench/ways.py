"""Ways from a checkpoint on a Hub to its arrays on a Hub, each for a process of its own.

What a user does without this tool: download the snapshot, decode with numpy and ml_dtypes, save, upload the
folder. The limit: the same bytes read and sent by the same clients, at once, with nothing in between. The
ingest: finished bytes from memory into the Hub's storage, over so many streams.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

SOURCE = "st/model"
FILES = 4
BLOCK = 8 << 20
BF16 = np.dtype(ml_dtypes.bfloat16)

Arrays = Mapping[str, npt.NDArray[Any]]

_FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def bf16_file(draw: np.random.Generator, number: int, nbytes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A file of a plain checkpoint, and the model's configuration."""
    side = 1024 if nbytes < 100 << 20 else 2048
    count = max(1, round(nbytes / (8 * side * side)))
    shape = (4 * side, side)
    values = {
        f"model.layers.{number}.{i}.weight": (draw.standard_normal(shape, np.float32) / 50).astype(BF16)
        for i in range(count)
    }
    return values, {}


def mxfp4_file(draw: np.random.Generator, number: int, nbytes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A file of gpt-oss' experts."""
    experts, side = 8, 1024 if nbytes < 100 << 20 else 2880
    rows = max(32, round(nbytes / (experts * (side // 32) * 17)))
    name = f"model.layers.{number}.mlp.experts.gate_up_proj"
    values = {
        f"{name}_blocks": draw.integers(0, 256, (experts, rows, side // 32, 16), np.uint8),
        f"{name}_scales": draw.integers(115, 125, (experts, rows, side // 32), np.uint8),
    }
    return values, {"quantization_config": {"quant_method": "mxfp4"}, "model_type": "gpt_oss"}


def fp8_file(draw: np.random.Generator, number: int, nbytes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A file of a model in FP8 with a scale for each 128 x 128 block."""
    side = 1024 if nbytes < 100 << 20 else 4096
    values: dict[str, Any] = {}
    for i in range(max(1, round(nbytes / side**2))):
        name = f"model.layers.{number}.{i}.weight"
        weight = draw.standard_normal((side, side), np.float32).astype(ml_dtypes.float8_e4m3fn)
        values[name] = weight
        values[f"{name}_scale_inv"] = draw.random((side // 128, side // 128), np.float32)
    return values, {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}


MODELS = {"bf16": bf16_file, "mxfp4": mxfp4_file, "fp8": fp8_file}


def make_model(folder: Path, kind: str, nbytes: int) -> None:
    """A checkpoint of about so many bytes in four files."""
    from safetensors.numpy import save_file

    draw, listed, config = np.random.default_rng(0), {}, {}
    folder.mkdir()
    for number in range(FILES):
        name = f"model-{number + 1:05d}-of-{FILES:05d}.safetensors"
        values, config = MODELS[kind](draw, number, nbytes // FILES)
        save_file(values, folder / name)
        listed |= dict.fromkeys(values, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Model\n")


def loaded(path: Path) -> Arrays:
    """A file's stored tensors; safetensors' numpy loader knows no 8-bit floats, so those by its raw parts."""
    from safetensors import deserialize, safe_open
    from safetensors.numpy import load_file

    with safe_open(path, "numpy") as file:
        if not any(file.get_slice(name).get_dtype().startswith("F8") for name in file.keys()):  # noqa: SIM118
            return load_file(path)
    kinds = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F32": np.float32}
    parts = dict(deserialize(path.read_bytes()))  # type: ignore[no-untyped-call]
    return {n: np.frombuffer(p["data"], kinds[p["dtype"]]).reshape(p["shape"]) for n, p in parts.items()}


def decoded(stored: Arrays) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """A file's tensors as bfloat16, by the formula of each scheme."""
    for name, value in stored.items():
        if name.endswith("_blocks"):
            pairs = np.stack([_FP4[value & 15], _FP4[value >> 4]], axis=-1)
            exponents = stored[name.replace("_blocks", "_scales")].astype(np.int32) - 127
            dense = np.ldexp(pairs.reshape(*value.shape[:-1], 32), exponents[..., None])
            yield name.removesuffix("_blocks"), dense.astype(BF16).reshape(*value.shape[:2], -1)
        elif f"{name}_scale_inv" in stored:
            scales = stored[f"{name}_scale_inv"].repeat(128, axis=0).repeat(128, axis=1)
            yield name, (value.astype(np.float32) * scales).astype(BF16)
        elif not name.endswith(("_scales", "_scale_inv")):
            yield name, value


def usual(target: str, transfer: str, memory: str) -> None:
    """Snapshot, decode, save, upload."""
    from huggingface_hub import HfApi, snapshot_download

    folder = Path(os.environ["TMPDIR"])
    source, out = folder / "source", folder / "out"
    snapshot_download(SOURCE, local_dir=source)
    out.mkdir()
    for path in sorted(source.glob("*.safetensors")):
        for name, value in decoded(loaded(path)):
            np.save(out / f"{name}.npy", value)
    api = HfApi()
    api.create_repo(target)
    api.upload_folder(repo_id=target, folder_path=out)


def mirrored(target: str, transfer: str, memory: str) -> None:
    from tensorport_hub import mirror

    mirror(SOURCE, target, transfer=transfer, max_memory=memory)


def limit(target: str, transfer: str, memory: str) -> None:
    """Each file read by ranges and sent as it is, four at once, reading ahead of sending."""
    from tensorport_hub.edge.http import Http
    from tensorport_hub.edge.hub_client import HubClient
    from tensorport_hub.edge.hub_lfs import LfsSession
    from tensorport_hub.edge.hub_ref import HubRef
    from tensorport_hub.edge.hub_source import HubSource
    from tensorport_hub.edge.hub_xet import XetSession
    from tensorport_hub.errors import SourceError

    def report(event: object) -> None:
        pass

    client = HubClient(endpoint=os.environ["HF_ENDPOINT"], token=os.environ["HF_TOKEN"])
    client.create_repo(target, private=False)
    http = Http(read_seconds=60)
    source = HubSource(client, client.repo_state(SOURCE, "main", SourceError), read_seconds=60, report=report)
    session = (
        XetSession.offered(client, http, target, uploads=4)
        if transfer == "xet"
        else LfsSession(client, http, target, max_disk=1 << 40, report=report)
    )
    assert session is not None

    def copy(path: str, size: int) -> Any:
        blocks: queue.Queue[memoryview] = queue.Queue(4)

        def read() -> None:
            for start in range(0, size, BLOCK):
                block = memoryview(bytearray(min(BLOCK, size - start)))
                source.read_into(path, start, block)
                blocks.put(block)

        reader = threading.Thread(target=read)
        reader.start()
        writer = session.open(path, size)
        for _ in range(0, size, BLOCK):
            writer.write(blocks.get())
        reader.join()
        return writer.finish()

    weights = [file for file in source.files if file.path.endswith(".safetensors")]
    with ThreadPoolExecutor(FILES) as pool:
        receipts = list(pool.map(lambda file: copy(file.path, file.size), weights))
    HubRef.of(client, target, "main", report).apply(uploaded=receipts, small={}, deleted=[], message="Copy")
    session.close()


def ingest(streams: int) -> Callable[[str, str, str], None]:
    """Finished bytes, made before the clock starts, into Xet storage."""

    def run(target: str, transfer: str, memory: str) -> None:
        from tensorport_hub.edge.http import Http
        from tensorport_hub.edge.hub_client import HubClient
        from tensorport_hub.edge.hub_xet import XetSession

        client = HubClient(endpoint=os.environ["HF_ENDPOINT"], token=os.environ["HF_TOKEN"])
        client.create_repo(target, private=False)
        session = XetSession.offered(client, Http(read_seconds=60), target, uploads=4)
        assert session is not None
        files = [Path(path).read_bytes() for path in os.environ["FINISHED"].split(":")]
        print("begin", flush=True)

        def send(number: int) -> None:
            data = memoryview(files[number])
            writer = session.open(f"{number}.npy", len(data))
            for start in range(0, len(data), BLOCK):
                writer.write(data[start : start + BLOCK])
            writer.finish()

        with ThreadPoolExecutor(streams) as pool:
            list(pool.map(send, range(len(files))))
        session.close()

    return run


WAYS: dict[str, Callable[[str, str, str], None]] = {
    "usual": usual,
    "mirror": mirrored,
    "limit": limit,
    **{f"ingest {streams}": ingest(streams) for streams in (1, 2, 4)},
}
