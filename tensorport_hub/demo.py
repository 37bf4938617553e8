"""`tensorport-hub demo`: the whole path on this machine, with nothing hidden.

A devhub (a real small Hub on loopback) gets a tiny gpt-oss of the real layout: MXFP4 experts, bfloat16 for
the rest, two files and an index. It is mirrored as any model would be, read back by the unmodified Hub
client, and checked: every file against the manifest's sha256, the experts against a slow decode of the
formula.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import string
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice, product
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import deserialize
from safetensors.numpy import save

from tensorport_hub import api
from tensorport_hub.devhub import DevHub
from tensorport_hub.errors import DestinationError, VerificationError
from tensorport_hub.ports import Event

SOURCE = "openai-demo/gpt-oss-tiny"
DESTINATION = "me/gpt-oss-tiny-npy"

_LAYERS, _HIDDEN, _INNER, _EXPERTS, _HEADS, _KV_HEADS, _HEAD, _WORDS = 4, 320, 320, 8, 8, 2, 32, 2048
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

Tell = Callable[[str], None]


def tiny_gpt_oss(seed: int = 0) -> dict[str, bytes]:
    """The files of a tiny random gpt-oss: names, dtypes and shapes as in openai/gpt-oss-20b."""
    rng = np.random.default_rng(seed)

    def dense(*shape: int) -> Any:
        return (rng.standard_normal(shape) * 0.05).astype(ml_dtypes.bfloat16)

    def codes(rows: int, width: int) -> Any:
        return rng.integers(0, 256, (_EXPERTS, rows, width // 32, 16), np.uint8)

    def scales(rows: int, width: int) -> Any:
        return rng.integers(112, 124, (_EXPERTS, rows, width // 32), np.uint8)

    tensors: dict[str, Any] = {
        "model.embed_tokens.weight": dense(_WORDS, _HIDDEN),
        "model.norm.weight": dense(_HIDDEN),
        "lm_head.weight": dense(_WORDS, _HIDDEN),
    }
    for layer in range(_LAYERS):
        at = f"model.layers.{layer}"
        for name, rows in (("q", _HEADS), ("k", _KV_HEADS), ("v", _KV_HEADS)):
            tensors[f"{at}.self_attn.{name}_proj.weight"] = dense(rows * _HEAD, _HIDDEN)
            tensors[f"{at}.self_attn.{name}_proj.bias"] = dense(rows * _HEAD)
        tensors |= {
            f"{at}.self_attn.o_proj.weight": dense(_HIDDEN, _HEADS * _HEAD),
            f"{at}.self_attn.o_proj.bias": dense(_HIDDEN),
            f"{at}.self_attn.sinks": dense(_HEADS),
            f"{at}.input_layernorm.weight": dense(_HIDDEN),
            f"{at}.post_attention_layernorm.weight": dense(_HIDDEN),
            f"{at}.mlp.router.weight": dense(_EXPERTS, _HIDDEN),
            f"{at}.mlp.router.bias": dense(_EXPERTS),
            f"{at}.mlp.experts.gate_up_proj_blocks": codes(2 * _INNER, _HIDDEN),
            f"{at}.mlp.experts.gate_up_proj_scales": scales(2 * _INNER, _HIDDEN),
            f"{at}.mlp.experts.gate_up_proj_bias": dense(_EXPERTS, 2 * _INNER),
            f"{at}.mlp.experts.down_proj_blocks": codes(_HIDDEN, _INNER),
            f"{at}.mlp.experts.down_proj_scales": scales(_HIDDEN, _INNER),
            f"{at}.mlp.experts.down_proj_bias": dense(_EXPERTS, _HIDDEN),
        }
    return _files(tensors)


def _files(tensors: dict[str, Any]) -> dict[str, bytes]:
    """Two safetensors files with an index, configuration and a card."""
    half = f"model.layers.{_LAYERS // 2}"
    shards: list[dict[str, Any]] = [{}, {}]
    for name, array in tensors.items():
        shards[int(name >= half)][name] = array
    names = [f"model-{i + 1:05d}-of-00002.safetensors" for i in range(2)]
    weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
    total = sum(array.nbytes for array in tensors.values())
    card = (
        "---\nlicense: apache-2.0\npipeline_tag: text-generation\n---\n\n# gpt-oss-tiny\n\nRandom weights.\n"
    )
    return {
        **{file: save(shard, {"format": "pt"}) for file, shard in zip(names, shards, strict=True)},
        "model.safetensors.index.json": json.dumps(
            {"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2
        ).encode(),
        "config.json": json.dumps(_config(), indent=2).encode(),
        "tokenizer.json": json.dumps(_tokenizer()).encode(),
        "generation_config.json": b'{"do_sample": true}\n',
        "README.md": card.encode(),
    }


def seed(hub: DevHub) -> str:
    """Put the tiny gpt-oss into a running devhub, unless it is there; its name."""
    try:
        hub.commits(SOURCE)
    except KeyError:
        hub.add_repo(SOURCE, tiny_gpt_oss())
    return SOURCE


def run(*, tell: Tell, on_event: Callable[[Event], object], keep: Path | None) -> None:
    """Seed, mirror, read back, check, show; `keep` receives a copy of what came out.

    Raises:
        DestinationError: `keep` holds something already, or can't be made; nothing was done.
        VerificationError: something that came out is not what it must be.
    """
    if keep is not None:
        _make_empty(keep)
    with (
        tempfile.TemporaryDirectory(prefix="tensorport-demo-") as folder,
        _home(Path(folder)),
        DevHub(Path(folder, "hub")) as hub,
        _environment(HF_ENDPOINT=hub.endpoint, HF_TOKEN=hub.token),
    ):
        files = tiny_gpt_oss()
        hub.add_repo(SOURCE, files)
        tell(f"a Hub of your own runs at {hub.endpoint}; it holds {SOURCE}, a tiny gpt-oss in MXFP4")
        tell(f"$ tensorport-hub mirror {SOURCE} {DESTINATION}")
        result = api.mirror(SOURCE, DESTINATION, on_event=on_event)
        tell(f"published: {result.commit_url}")
        back = _read_back(hub.endpoint, hub.token, keep or Path(folder, "back"))
        count = check_files(back)
        tell(f"read back with huggingface_hub: {count} files, every sha256 as in manifest.json")
        tensors = check_experts(back, files)
        tell(f"decoded again, slowly, from the MXFP4 formula: {tensors} expert tensors equal, bit for bit")
        _show(back, tell)
        if keep is not None:
            tell(f"kept in {keep}")


def _config() -> dict[str, Any]:
    """openai/gpt-oss-20b's own `config.json`, with this model's sizes."""
    return {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": 0,
        "experts_per_token": 2,
        "head_dim": _HEAD,
        "hidden_act": "silu",
        "hidden_size": _HIDDEN,
        "initial_context_length": 4096,
        "initializer_range": 0.02,
        "intermediate_size": _INNER,
        "layer_types": ["sliding_attention", "full_attention"] * (_LAYERS // 2),
        "max_position_embeddings": 131072,
        "model_type": "gpt_oss",
        "num_attention_heads": _HEADS,
        "num_experts_per_tok": 2,
        "num_hidden_layers": _LAYERS,
        "num_key_value_heads": _KV_HEADS,
        "num_local_experts": _EXPERTS,
        "output_router_logits": False,
        "pad_token_id": 0,
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "router_aux_loss_coef": 0.9,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": _WORDS,
    }


def _tokenizer() -> dict[str, Any]:
    """A `tokenizer.json` of gpt-oss' kind, byte-level BPE: all bytes, then as many pairs of letters."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in shown]
    # In the order of the bytes; what can't be seen stands in at U+0100 and above, as in GPT-2's vocabulary.
    signs = [chr(byte if byte in shown else 256 + hidden.index(byte)) for byte in range(256)]
    pairs = list(islice(product(signs[32] + string.ascii_letters, string.ascii_letters), _WORDS - len(signs)))
    words = [*signs, *map("".join, pairs)]
    return {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {word: number for number, word in enumerate(words)},
            "merges": [" ".join(pair) for pair in pairs],
        },
    }


def _make_empty(folder: Path) -> None:
    """Make the folder that receives a copy; what somebody has in it already is not ours to write over."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = next(folder.iterdir(), None)
    except OSError as error:
        raise DestinationError(
            f"`{folder}` can't be made a folder: {error.strerror}", hint="choose an empty folder for `--keep`"
        ) from error
    if found is not None:
        raise DestinationError(
            f"`{folder}` is not empty: it holds `{found.name}`", hint="choose an empty folder for `--keep`"
        )


def _read_back(endpoint: str, token: str, folder: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    return Path(snapshot_download(DESTINATION, endpoint=endpoint, token=token, local_dir=folder))


def check_files(folder: Path) -> int:
    """Compare every listed file's size and sha256 with the manifest.

    Raises:
        VerificationError: one differs.
    """
    listed = json.loads((folder / "manifest.json").read_bytes())["files"]
    for entry in listed:
        content = (folder / entry["path"]).read_bytes()
        got = hashlib.sha256(content).hexdigest()
        if (len(content), got) != (entry["size"], entry["sha256"]):
            raise VerificationError(f"`{entry['path']}`: expected sha256 {entry['sha256']}, got {got}")
    return len(listed)


def check_experts(folder: Path, files: dict[str, bytes]) -> int:
    """Decode the first expert's first rows by the formula, one value at a time, and compare.

    Raises:
        VerificationError: a value differs.
    """
    stored: dict[str, Any] = {}
    for path, data in files.items():
        if path.endswith(".safetensors"):
            for name, tensor in deserialize(data):  # type: ignore[no-untyped-call] # a Rust function
                if tensor["dtype"] == "U8":
                    stored[name] = np.frombuffer(tensor["data"], np.uint8).reshape(tensor["shape"])
    tensors = json.loads((folder / "manifest.json").read_bytes())["tensors"]
    decoded = [name for name, tensor in tensors.items() if tensor["decoder"]["scheme"] == "mxfp4"]
    for name in decoded:
        array = np.load(folder / tensors[name]["stored"][0]["file"]).view(ml_dtypes.bfloat16)
        for row in range(4):
            expected = [
                math.ldexp(_E2M1[code & 7], int(scale) - 127) * (-1 if code & 8 else 1)
                for block, scale in zip(
                    stored[f"{name}_blocks"][0, row], stored[f"{name}_scales"][0, row], strict=True
                )
                for byte in block.tolist()
                for code in (byte & 15, byte >> 4)
            ]
            if array[0, row].astype(np.float64).tolist() != expected:
                raise VerificationError(f"`{name}`, expert 0, row {row} is not what the formula gives")
    return len(decoded)


def _show(folder: Path, tell: Tell) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    name = "model.layers.0.mlp.experts.gate_up_proj"
    file = manifest["tensors"][name]["stored"][0]["file"]
    array = np.load(folder / file, mmap_mode="r").view(ml_dtypes.bfloat16)
    tell(f"\n>>> jnp.load({file!r})   # MXFP4 before, bfloat16 now")
    tell(f"{array.shape} {array.dtype}, first values {array[0, 0, :4].tolist()}\n")
    for path in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
        count = (
            f"  ({sum(1 for _ in path.iterdir())} files)"
            if path.is_dir()
            else f"  {path.stat().st_size:,} bytes"
        )
        tell(f"  {path.name}{'/' if path.is_dir() else ''}{count}")


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set variables, and put back what was there."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextmanager
def _home(folder: Path) -> Iterator[None]:
    """Caches of the Hub's libraries below `folder`, so that nothing stays behind."""
    with _environment(HF_HOME=str(folder / "home"), HF_XET_CACHE=str(folder / "xet")):
        yield
