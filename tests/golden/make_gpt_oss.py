"""A tiny random gpt-oss and what transformers makes of it: `python -m tests.golden.make_gpt_oss`.

Run by hand, from the repository's root, where this package and these are installed:

    pip install torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 safetensors ml_dtypes
    pip install -e .

It writes `tests/golden/gpt_oss/`: `model.safetensors` and `config.json` as openai/gpt-oss-20b has them (the
experts in MXFP4, `rope_scaling` with `truncate: false`), and `golden.npz`: token ids of some prompts, the
logits of transformers with the dequantized weights in float32 and eager attention, how far its own bfloat16
lies from them, and the tokens that it decodes greedily. The same seeds give the same files.

Last, the checkpoint is mirrored as `safetensors`, alone and beside another format, and transformers must load
both without a word and give the very same logits. `safetensors.json` keeps the digests of what it loaded, so
that a test can tell, without torch, that these are the files.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

from tensorport_hub import convert

OUT = Path(__file__).parent / "gpt_oss"
LAYERS, HIDDEN, INNER, EXPERTS, CHOSEN = 4, 64, 96, 4, 2
HEADS, KEYS, HEAD, WORDS, WINDOW = 4, 2, 32, 320, 4
SHARD = 200_000
"""Bytes: the mirror has several files."""

PROMPT, NEW = 12, 16
"""Longer than the window, so that what slides out of it counts."""

CANDIDATES, PROMPTS = 8192, 3
"""Of many prompts those whose experts are chosen most clearly: bfloat16 chooses the same."""

CONFIG = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": None,
    "experts_per_token": CHOSEN,
    "head_dim": HEAD,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": INNER,
    "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
    "max_position_embeddings": 131072,
    "num_attention_heads": HEADS,
    "num_experts_per_tok": CHOSEN,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KEYS,
    "num_local_experts": EXPERTS,
    "pad_token_id": None,
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
    "sliding_window": WINDOW,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": WORDS,
}


def tensors() -> dict[str, np.ndarray]:
    """Names, dtypes and shapes of openai/gpt-oss; values so large that every part of the model counts."""
    rng = np.random.default_rng(20250805)

    def dense(*shape: int, scale: float, mean: float = 0.0) -> np.ndarray:
        return (rng.standard_normal(shape) * scale + mean).astype(ml_dtypes.bfloat16)

    def codes(rows: int, width: int) -> np.ndarray:
        return rng.integers(0, 256, (EXPERTS, rows, width // 32, 16), np.uint8)

    def scales(rows: int, width: int) -> np.ndarray:
        return rng.integers(121, 125, (EXPERTS, rows, width // 32), np.uint8)

    made = {
        "model.embed_tokens.weight": dense(WORDS, HIDDEN, scale=1.0),
        "model.norm.weight": dense(HIDDEN, scale=0.2, mean=1.0),
        "lm_head.weight": dense(WORDS, HIDDEN, scale=0.3),
    }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        for name, rows, columns in (
            ("q", HEADS * HEAD, HIDDEN),
            ("k", KEYS * HEAD, HIDDEN),
            ("v", KEYS * HEAD, HIDDEN),
            ("o", HIDDEN, HEADS * HEAD),
        ):
            made[f"{at}.self_attn.{name}_proj.weight"] = dense(rows, columns, scale=columns**-0.5)
            made[f"{at}.self_attn.{name}_proj.bias"] = dense(rows, scale=0.2)
        made |= {
            f"{at}.self_attn.sinks": dense(HEADS, scale=1.0),
            f"{at}.input_layernorm.weight": dense(HIDDEN, scale=0.2, mean=1.0),
            f"{at}.post_attention_layernorm.weight": dense(HIDDEN, scale=0.2, mean=1.0),
            f"{at}.mlp.router.weight": dense(EXPERTS, HIDDEN, scale=3 * HIDDEN**-0.5),  # clear choices
            f"{at}.mlp.router.bias": dense(EXPERTS, scale=0.5),
            f"{at}.mlp.experts.gate_up_proj_blocks": codes(2 * INNER, HIDDEN),
            f"{at}.mlp.experts.gate_up_proj_scales": scales(2 * INNER, HIDDEN),
            f"{at}.mlp.experts.gate_up_proj_bias": dense(EXPERTS, 2 * INNER, scale=2.0),
            f"{at}.mlp.experts.down_proj_blocks": codes(HIDDEN, INNER),
            f"{at}.mlp.experts.down_proj_scales": scales(HIDDEN, INNER),
            f"{at}.mlp.experts.down_proj_bias": dense(EXPERTS, HIDDEN, scale=0.2),
        }
    return made


def load(dtype: torch.dtype) -> torch.nn.Module:
    """The model, its experts dequantized."""
    model = AutoModelForCausalLM.from_pretrained(OUT, dtype=dtype, attn_implementation="eager").eval()
    assert model.config._attn_implementation == "eager"
    assert model.model.layers[0].mlp.experts.gate_up_proj.dtype == dtype
    return model


def clear_prompts(model: torch.nn.Module) -> torch.Tensor:
    """Those of many random prompts in which the last expert that is chosen leads the next one most."""
    prompts = torch.from_numpy(np.random.default_rng(1).integers(0, WORDS, (CANDIDATES, PROMPT)))
    leads: list[torch.Tensor] = []

    def watch(router: torch.nn.Module, given: object, found: tuple[torch.Tensor, ...]) -> None:
        best = found[0].topk(CHOSEN + 1).values
        leads.append((best[:, -2] - best[:, -1]).view(CANDIDATES, PROMPT).amin(-1))

    hooks = [layer.mlp.router.register_forward_hook(watch) for layer in model.model.layers]
    model(prompts)
    for hook in hooks:
        hook.remove()
    smallest = torch.stack(leads).amin(0).topk(PROMPTS)
    print(f"experts are chosen by {smallest.values.min():.3f} or more")
    return prompts[smallest.indices]


def decode(model: torch.nn.Module, prompts: torch.Tensor) -> torch.Tensor:
    """The tokens that follow greedily."""
    ids = prompts
    for _ in range(NEW):
        best = model(ids).logits[:, -1].topk(2)
        print(f"token {ids.shape[1]} leads by {(best.values[:, 0] - best.values[:, 1]).min():.3f} or more")
        ids = torch.cat([ids, best.indices[:, :1]], -1)
    return ids[:, PROMPT:]


def check_mirrors(prompts: torch.Tensor, exact: torch.Tensor) -> dict[str, str]:
    """Load what `--format safetensors` makes; the digests of its files."""
    with tempfile.TemporaryDirectory() as folder:
        alone, several = Path(folder, "alone"), Path(folder, "several")
        convert(str(OUT), str(alone), format="safetensors", shard_size=SHARD)
        convert(str(OUT), str(several), format=["safetensors", "msgpack"], shard_size=SHARD)
        for where, subfolder in ((alone, ""), (several, "safetensors")):
            model, info = AutoModelForCausalLM.from_pretrained(
                where,
                subfolder=subfolder,
                dtype=torch.float32,
                attn_implementation="eager",
                output_loading_info=True,
            )
            assert not any(info.values()), info
            assert torch.equal(model.eval()(prompts).logits, exact)
            print(f"transformers loads {where.name}: the same logits")
        files = sorted(alone.glob("model*"))
        assert len(files) > 2
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    OUT.mkdir(exist_ok=True)
    save_file(tensors(), OUT / "model.safetensors", {"format": "pt"})
    (OUT / "model.safetensors").chmod(0o644)
    (OUT / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    model = load(torch.float32)
    prompts = clear_prompts(model)
    exact = model(prompts).logits
    off = (load(torch.bfloat16)(prompts).logits.float() - exact).abs()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"logits {exact.min():.2f} .. {exact.max():.2f}")
    print(f"bfloat16 is {off.max():.3f} off, {off.mean():.4f} in the mean")
    np.savez_compressed(
        OUT / "golden.npz",
        prompts=prompts.numpy().astype(np.int32),
        logits=exact.numpy(),
        greedy=decode(model, prompts).numpy().astype(np.int32),
        bfloat16_max_error=off.max().numpy(),
        bfloat16_mean_error=off.mean().numpy(),
    )
    digests = check_mirrors(prompts, exact)
    (OUT / "safetensors.json").write_text(json.dumps(digests, indent=2) + "\n")


if __name__ == "__main__":
    main()
