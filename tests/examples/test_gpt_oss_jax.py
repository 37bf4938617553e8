"""gpt-oss in JAX: logits and tokens are transformers', from MXFP4 through the Hub, by either layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tensorport_hub import demo, mirror, open_checkpoint
from tensorport_hub.devhub import DevHub
from tensorport_hub.jax import load_gpt_oss
from tests.examples.conftest import Run, load_example
from tests.golden import read_golden

CHECKPOINT = Path(__file__).parents[1] / "golden" / "gpt_oss"
GOLDEN = read_golden(CHECKPOINT / "golden.npz")
SOURCE, MIRROR, STACKED = "openai/gpt-oss-tiny", "me/gpt-oss-tiny-npy", "me/gpt-oss-tiny-stacked"
OTHERS = {"msgpack": "me/gpt-oss-tiny-msgpack", "safetensors": "me/gpt-oss-tiny-safetensors"}
EVERY = [MIRROR, STACKED, *OTHERS.values()]
EXACT = 1e-4
"""float32 logits, of about 10, may differ from transformers' by so much: another order of sums."""
ROUNDED = 1.5
"""bfloat16 logits may lie so many times as far from the float32 ones as transformers' own bfloat16."""

example = load_example("gpt_oss_jax")


@pytest.fixture(scope="module", autouse=True)
def mirrors(hub: DevHub) -> None:
    """The tiny gpt-oss on the Hub, its mirror, one whose experts are stacked, and the other formats."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(320)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    hub.add_repo(SOURCE, CHECKPOINT)
    hub.add_repo(SOURCE, {"tokenizer.json": words.to_str().encode()})
    mirror(SOURCE, MIRROR)
    mirror(SOURCE, STACKED, experts="stacked")
    for form, target in OTHERS.items():
        mirror(SOURCE, target, format=form)


@pytest.fixture(scope="module")
def config(mirrors: None) -> dict[str, Any]:
    """The mirror's own configuration."""
    with open_checkpoint(MIRROR) as checkpoint:
        found: dict[str, Any] = json.loads(checkpoint.read_file("config.json"))
    return found


def logits(source: str, config: Mapping[str, Any], dtype: str = "float32") -> np.ndarray[Any, Any]:
    """Of all golden prompts: [prompts, tokens, words]."""
    params, chosen = load_gpt_oss(source, dtype=dtype), example.Config.of(config)
    forward = jax.jit(example.forward, static_argnums=1)
    return np.stack([forward(params, chosen, prompt) for prompt in GOLDEN["prompts"]])


@pytest.mark.parametrize("source", EVERY)
def test_float32_logits_are_transformers(source: str, config: dict[str, Any]) -> None:
    """Every logit of every position."""
    assert np.abs(logits(source, config) - GOLDEN["logits"]).max() < EXACT


def test_bfloat16_logits_are_as_close_as_transformers(config: dict[str, Any]) -> None:
    """In bfloat16 they lie as far from the float32 ones as transformers' own, at most half as far again."""
    off = np.abs(logits(MIRROR, config, "bfloat16") - GOLDEN["logits"])
    assert off.max() < ROUNDED * GOLDEN["bfloat16_max_error"]
    assert off.mean() < ROUNDED * GOLDEN["bfloat16_mean_error"]


@pytest.mark.parametrize("source", [MIRROR, STACKED])
def test_greedy_tokens_are_transformers(source: str, config: dict[str, Any]) -> None:
    """Sixteen tokens after each prompt, the same ids."""
    params, chosen = load_gpt_oss(source, dtype="float32"), example.Config.of(config)
    for prompt, expected in zip(GOLDEN["prompts"], GOLDEN["greedy"], strict=True):
        assert example.greedy(params, chosen, prompt.tolist(), len(expected)) == expected.tolist()


PARTS = [
    {"sliding_window": 5},
    {"layer_types": ["full_attention"] * 4},
    {"layer_types": ["full_attention", "sliding_attention"] * 2},
    {"num_experts_per_tok": 1},
    {"swiglu_limit": 100.0},
    {"swiglu_alpha": 1.6},
    {"rms_norm_eps": 1e-2},
    {"rope_theta": 140000},
    *({"rope_scaling": part} for part in ({"truncate": True}, {"factor": 30.0}, {"beta_fast": 30.0})),
]


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_every_part_of_the_configuration_counts(config: dict[str, Any], part: dict[str, Any]) -> None:
    """With any of it changed the logits are others: the golden ones hold it fast."""
    rope = {**config["rope_scaling"], **part.get("rope_scaling", {})}
    changed = {**config, **part, "rope_scaling": rope}
    assert np.abs(logits(MIRROR, changed) - GOLDEN["logits"]).max() > 10 * EXACT


def test_both_ways_to_write_rope(config: dict[str, Any]) -> None:
    """`rope_scaling` and `rope_theta`, or `rope_parameters` of newer configurations, mean the same."""
    rope = {**config["rope_scaling"], "rope_theta": config["rope_theta"]}
    newer = {key: value for key, value in config.items() if not key.startswith("rope")}
    assert example.Config.of({**newer, "rope_parameters": rope}) == example.Config.of(config)


def test_its_command(run: Run) -> None:
    """Run as its first line says it decodes what follows a prompt."""
    prompt = " ".join(f"w{token}" for token in GOLDEN["prompts"][0])
    said = run("gpt_oss_jax.py", MIRROR, prompt, "4").strip()
    assert said.startswith(prompt)
    assert said.removeprefix(prompt).count("w") == 4


def test_its_command_on_the_model_of_the_demo(hub: DevHub, run: Run) -> None:
    """The tiny gpt-oss of `demo` has all that the example reads, tokenizer and configuration included."""
    mirror(demo.seed(hub), "me/demo")
    prompt = "The capital of France is"
    said = run("gpt_oss_jax.py", "me/demo", prompt, "4").strip()
    assert said.startswith(prompt)
    assert said != prompt
