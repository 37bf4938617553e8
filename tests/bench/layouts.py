"""The true layouts of large public models: every tensor's name, dtype and shape, file by file.

Sources: their configurations and headers, as FORMATS and the model cards state them. Counts that are known
of the originals are checked in `test_full_scale.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from tensorport_hub.devhub.synthetic import SyntheticFile, Tensor

Layout = Mapping[str, Sequence[Tensor]]
"""File -> its tensors."""

_NBYTES = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "U8": 1, "F8_E4M3": 1}


def nbytes(tensors: Sequence[Tensor]) -> int:
    return sum(prod(shape) * _NBYTES[dtype] for _, dtype, shape in tensors)


def gpt_oss(layers: int, experts: int) -> list[Tensor]:
    """gpt-oss: experts in MXFP4, the rest bfloat16; 20b has 24 layers of 32 experts, 120b 36 of 128."""
    vocabulary, hidden, heads, groups, head = 201_088, 2880, 64, 8, 64
    found: list[Tensor] = [("model.embed_tokens.weight", "BF16", (vocabulary, hidden))]
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for name, rows, columns in (
            ("q_proj", heads * head, hidden),
            ("k_proj", groups * head, hidden),
            ("v_proj", groups * head, hidden),
            ("o_proj", hidden, heads * head),
        ):
            found.append((f"{at}.self_attn.{name}.weight", "BF16", (rows, columns)))
            found.append((f"{at}.self_attn.{name}.bias", "BF16", (rows,)))
        found += [
            (f"{at}.self_attn.sinks", "BF16", (heads,)),
            (f"{at}.input_layernorm.weight", "BF16", (hidden,)),
            (f"{at}.post_attention_layernorm.weight", "BF16", (hidden,)),
            (f"{at}.mlp.router.weight", "BF16", (experts, hidden)),
            (f"{at}.mlp.router.bias", "BF16", (experts,)),
        ]
        for name, rows in (("gate_up_proj", 2 * hidden), ("down_proj", hidden)):
            found += [
                (f"{at}.mlp.experts.{name}_blocks", "U8", (experts, rows, hidden // 32, 16)),
                (f"{at}.mlp.experts.{name}_scales", "U8", (experts, rows, hidden // 32)),
                (f"{at}.mlp.experts.{name}_bias", "BF16", (experts, rows)),
            ]
    found += [
        ("model.norm.weight", "BF16", (hidden,)),
        ("lm_head.weight", "BF16", (vocabulary, hidden)),
    ]
    return found


def _fp8(name: str, rows: int, columns: int) -> Iterator[Tensor]:
    yield f"{name}.weight", "F8_E4M3", (rows, columns)
    yield f"{name}.weight_scale_inv", "F32", (-(-rows // 128), -(-columns // 128))


def _mlp(at: str, hidden: int, inner: int) -> Iterator[Tensor]:
    for name in ("gate_proj", "up_proj"):
        yield from _fp8(f"{at}.{name}", inner, hidden)
    yield from _fp8(f"{at}.down_proj", hidden, inner)


def deepseek_v3() -> list[Tensor]:
    """DeepSeek-V3: 61 layers and one for multi-token prediction, FP8 with scales of 128 x 128 blocks."""
    vocabulary, hidden, experts = 129_280, 7168, 256
    found: list[Tensor] = [("model.embed_tokens.weight", "BF16", (vocabulary, hidden))]
    for layer in range(62):
        at = f"model.layers.{layer}"
        if layer == 61:
            found += [
                (f"{at}.embed_tokens.weight", "BF16", (vocabulary, hidden)),
                (f"{at}.enorm.weight", "BF16", (hidden,)),
                (f"{at}.hnorm.weight", "BF16", (hidden,)),
                (f"{at}.eh_proj.weight", "BF16", (hidden, 2 * hidden)),
                (f"{at}.shared_head.norm.weight", "BF16", (hidden,)),
                (f"{at}.shared_head.head.weight", "BF16", (vocabulary, hidden)),
            ]
        found += [
            (f"{at}.input_layernorm.weight", "BF16", (hidden,)),
            (f"{at}.post_attention_layernorm.weight", "BF16", (hidden,)),
            (f"{at}.self_attn.q_a_layernorm.weight", "BF16", (1536,)),
            (f"{at}.self_attn.kv_a_layernorm.weight", "BF16", (512,)),
        ]
        for name, rows, columns in (
            ("q_a_proj", 1536, hidden),
            ("q_b_proj", 24_576, 1536),
            ("kv_a_proj_with_mqa", 576, hidden),
            ("kv_b_proj", 32_768, 512),
            ("o_proj", hidden, 16_384),
        ):
            found += _fp8(f"{at}.self_attn.{name}", rows, columns)
        if layer < 3:
            found += _mlp(f"{at}.mlp", hidden, 18_432)
            continue
        found += [
            (f"{at}.mlp.gate.weight", "BF16", (experts, hidden)),
            (f"{at}.mlp.gate.e_score_correction_bias", "F32", (experts,)),
        ]
        found += _mlp(f"{at}.mlp.shared_experts", hidden, 2048)
        for expert in range(experts):
            found += _mlp(f"{at}.mlp.experts.{expert}", hidden, 2048)
    found += [
        ("model.norm.weight", "BF16", (hidden,)),
        ("lm_head.weight", "BF16", (vocabulary, hidden)),
    ]
    return found


def many(count: int) -> list[Tensor]:
    """So many small tensors, two hundred a layer."""
    return [(f"model.layers.{i // 200}.t{i % 200}.weight", "BF16", (64, 64)) for i in range(count)]


def plain(gigabytes: float) -> list[Tensor]:
    """bfloat16 weights of 67 MB, about so much."""
    return [
        (f"model.layers.{i}.mlp.up_proj.weight", "BF16", (8192, 4096)) for i in range(round(gigabytes * 14.9))
    ]


def mxfp4(gigabytes: float) -> list[Tensor]:
    """Experts in MXFP4 of 34 MB packed, about so much."""
    found: list[Tensor] = []
    for layer in range(max(1, round(gigabytes * 29.5))):
        name = f"model.layers.{layer}.mlp.experts.down_proj"
        found += [(f"{name}_blocks", "U8", (8, 2880, 90, 16)), (f"{name}_scales", "U8", (8, 2880, 90))]
    return found


def one_tensor(gigabytes: float) -> list[Tensor]:
    """All of it in one bfloat16 tensor."""
    return [("model.embed_tokens.weight", "BF16", (round(gigabytes * 1e9 / 8192), 4096))]


def one_gptq(gigabytes: float) -> list[Tensor]:
    """All of it in one weight of 4-bit GPTQ in groups of 128."""
    rows, columns = round(gigabytes * 2e9 / 16_384) // 8 * 8, 16_384
    return [
        ("model.layers.0.mlp.up_proj.qweight", "I32", (columns // 8, rows)),
        ("model.layers.0.mlp.up_proj.qzeros", "I32", (columns // 128, rows // 8)),
        ("model.layers.0.mlp.up_proj.scales", "F16", (columns // 128, rows)),
    ]


def spread(tensors: Sequence[Tensor], files: int) -> Layout:
    """Over so many files, about equally large, in order."""
    total, done, found = nbytes(tensors), 0, {}
    for tensor in tensors:
        number = min(files - 1, done * files // total)
        found.setdefault(f"model-{number + 1:05d}-of-{files:05d}.safetensors", []).append(tensor)
        done += nbytes([tensor])
    return found


MXFP4: Mapping[str, Any] = {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}
FP8: Mapping[str, Any] = {
    "model_type": "deepseek_v3",
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
}
GPTQ: Mapping[str, Any] = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}


def model(name: str) -> tuple[Layout, Mapping[str, Any]]:
    """A layout, and the model's configuration.

    Args:
        name: a model; a number of tiny tensors; or `plain`, `mxfp4`, `tensor`, `gptq` and gigabytes.
    """
    kind, _, gigabytes = name.partition(" ")
    if kind == "plain":
        return spread(plain(float(gigabytes)), 4), {}
    if kind == "mxfp4":
        return spread(mxfp4(float(gigabytes)), 4), MXFP4
    if kind == "tensor":
        return spread(one_tensor(float(gigabytes)), 1), {}
    if kind == "gptq":
        return spread(one_gptq(float(gigabytes)), 1), GPTQ
    if name == "gpt-oss-20b":
        return spread(gpt_oss(24, 32), 3), MXFP4
    if name == "gpt-oss-120b":
        return spread(gpt_oss(36, 128), 15), MXFP4
    if name == "deepseek-v3":
        return spread(deepseek_v3(), 163), FP8
    return spread(many(int(name)), max(1, int(name) // 2000)), {}


def repository(
    layout: Layout, config: Mapping[str, Any], *, digests: bool
) -> dict[str, bytes | SyntheticFile]:
    """What a devhub is given; without `digests` the sha256 are made up: only headers are to be read."""
    made: dict[str, bytes | SyntheticFile] = {}
    listed: dict[str, str] = {}
    for number, (path, tensors) in enumerate(layout.items()):
        known = None if digests else f"{number:064x}"
        made[path] = SyntheticFile(tensors, seed=number, sha256=known)
        listed |= dict.fromkeys((name for name, _, _ in tensors), path)
    made["model.safetensors.index.json"] = json.dumps({"weight_map": listed}).encode()
    made["config.json"] = json.dumps(config).encode()
    made["README.md"] = b"---\nlicense: mit\n---\n"
    return made
