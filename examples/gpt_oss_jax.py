"""gpt-oss in pure JAX, from a mirror: `python gpt_oss_jax.py me/gpt-oss-20b-npy "The capital of France is"`.

The whole model is here: attention with sinks, a sliding window on every other layer, grouped queries, YaRN
rope, and a mixture of experts with a clamped SwiGLU. It is written to be read: every step runs all tokens
through all layers again, and every expert sees all tokens. With several devices the experts are spread over
them, and each process reads only its own from the Hub.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from tensorport_hub import open_checkpoint
from tensorport_hub.jax import load_gpt_oss

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Config:
    """What config.json says, as far as it counts here."""

    layers: int
    heads: int
    keys: int
    head: int
    chosen: int
    windows: tuple[int | None, ...]
    eps: float
    alpha: float
    limit: float
    frequencies: tuple[float, ...]
    rope_scale: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Config:
        heads = config["num_attention_heads"]
        head = config.get("head_dim") or config["hidden_size"] // heads
        rope = config.get("rope_parameters") or {**config["rope_scaling"], "rope_theta": config["rope_theta"]}
        layers = config["num_hidden_layers"]
        kinds = config.get("layer_types") or ["sliding_attention", "full_attention"] * layers
        frequencies, scale = yarn(rope, head)
        return cls(
            layers,
            heads,
            config["num_key_value_heads"],
            head,
            config["num_experts_per_tok"],
            tuple(config["sliding_window"] if k == "sliding_attention" else None for k in kinds[:layers]),
            config["rms_norm_eps"],
            config.get("swiglu_alpha", 1.702),
            config.get("swiglu_limit", 7.0),
            frequencies,
            scale,
        )


def yarn(rope: Mapping[str, Any], head: int) -> tuple[tuple[float, ...], float]:
    """Rope for a longer context (https://arxiv.org/abs/2309.00071): slow dimensions are interpolated, fast
    ones are not, between them lies a ramp. Its ends are whole dimensions unless `truncate` is false.
    """
    base, factor, longest = rope["rope_theta"], rope["factor"], rope["original_max_position_embeddings"]

    def dimension(rotations: float) -> float:
        """The one that turns so many times over the original context."""
        return head * math.log(longest / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(rope.get("beta_fast") or 32), dimension(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head - 1)
    ramp = np.clip((np.arange(head // 2) - low) / max(high - low, 1e-3), 0, 1)
    fast = base ** -(np.arange(0, head, 2) / head)
    frequencies = fast * (1 - ramp) + fast / factor * ramp
    return tuple(frequencies.tolist()), rope.get("attention_factor") or 0.1 * math.log(factor) + 1


def rms_norm(x: jax.Array, p: Params, eps: float) -> jax.Array:
    wide = x.astype(jnp.float32)
    wide *= jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + eps)
    return (p["weight"] * wide).astype(x.dtype)


def linear(x: jax.Array, p: Params) -> jax.Array:
    """Weights are [out, in]."""
    return x @ p["weight"].T + p["bias"] if "bias" in p else x @ p["weight"].T


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rope: each dimension of the first half is turned with its partner in the second. x [T, ..., D]."""
    first, second = jnp.split(x, 2, -1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def attention(x: jax.Array, p: Params, c: Config, window: int | None) -> jax.Array:
    """x [T, H]. A head's sink is one more score that takes part in the softmax and carries no value."""
    tokens = x.shape[0]
    at = jnp.arange(tokens)
    angles = at[:, None].astype(jnp.float32) * jnp.array(c.frequencies)
    cos, sin = (
        (f(angles) * c.rope_scale).astype(x.dtype)[:, None, :] for f in (jnp.cos, jnp.sin)
    )  # [T, 1, D/2]
    q = rotate(linear(x, p["q_proj"]).reshape(tokens, c.heads, c.head), cos, sin)
    k = rotate(linear(x, p["k_proj"]).reshape(tokens, c.keys, c.head), cos, sin)
    v = linear(x, p["v_proj"]).reshape(tokens, c.keys, c.head)

    groups = c.heads // c.keys
    scores = jnp.einsum("tkgd,skd->kgts", q.reshape(tokens, c.keys, groups, c.head), k) * c.head**-0.5
    back = at[:, None] - at[None, :]
    seen = (back >= 0) if window is None else (back >= 0) & (back < window)
    scores = jnp.where(seen, scores.astype(jnp.float32), -jnp.inf)
    sinks = jnp.broadcast_to(
        p["sinks"].astype(jnp.float32).reshape(c.keys, groups, 1, 1), (*scores.shape[:3], 1)
    )
    weights = jax.nn.softmax(jnp.concatenate([scores, sinks], -1))[..., :-1].astype(x.dtype)
    return linear(jnp.einsum("kgts,skd->tkgd", weights, v).reshape(tokens, -1), p["o_proj"])


def mixture(x: jax.Array, p: Params, c: Config) -> jax.Array:
    """x [T, H]: each token's best experts, weighted by a softmax over those alone."""
    best, experts = jax.lax.top_k(linear(x, p["router"]), c.chosen)
    chosen = jax.nn.one_hot(experts, p["router"]["bias"].shape[0], dtype=x.dtype)  # [T, chosen, E]
    weights = jnp.einsum("tc,tce->et", jax.nn.softmax(best), chosen)

    def one(total: jax.Array, expert: tuple[Params, jax.Array]) -> tuple[jax.Array, None]:
        e, weight = expert
        gate = jnp.minimum(x @ e["gate_proj"].T + e["gate_proj_bias"], c.limit)
        up = jnp.clip(x @ e["up_proj"].T + e["up_proj_bias"], -c.limit, c.limit)
        inner = (up + 1) * (gate * jax.nn.sigmoid(gate * c.alpha))
        return total + weight[:, None] * (inner @ e["down_proj"].T + e["down_proj_bias"]), None

    return jax.lax.scan(one, jnp.zeros_like(x), (p["experts"], weights))[0]


def forward(params: Params, c: Config, tokens: jax.Array) -> jax.Array:
    """Tokens [T] to logits [T, words], in float32."""
    model = params["model"]
    x = model["embed_tokens"]["weight"][tokens]
    for number in range(c.layers):
        p = model["layers"][str(number)]
        x += attention(rms_norm(x, p["input_layernorm"], c.eps), p["self_attn"], c, c.windows[number])
        x += mixture(rms_norm(x, p["post_attention_layernorm"], c.eps), p["mlp"], c)
    words = params.get("lm_head", model["embed_tokens"])["weight"]
    return (rms_norm(x, model["norm"], c.eps) @ words.T).astype(jnp.float32)


@partial(jax.jit, static_argnames="c")
def next_token(params: Params, c: Config, tokens: jax.Array, count: jax.Array) -> jax.Array:
    """The most likely one after the first `count` tokens; no token sees what comes after it."""
    return jnp.argmax(forward(params, c, tokens)[count - 1])


def greedy(params: Params, c: Config, prompt: list[int], count: int) -> list[int]:
    """The `count` tokens that follow a prompt."""
    tokens = jnp.zeros(len(prompt) + count, jnp.int32).at[: len(prompt)].set(jnp.array(prompt))
    for at in range(len(prompt), len(tokens)):
        tokens = tokens.at[at].set(next_token(params, c, tokens, jnp.array(at)))
    found: list[int] = tokens[len(prompt) :].tolist()
    return found


def spread(name: str, shape: tuple[int, ...]) -> Sharding:
    """Experts over all devices, if they divide; everything else on each of them."""
    mesh = Mesh(np.array(jax.devices()), "devices")
    divided = ".experts." in name and shape[0] % mesh.size == 0
    return NamedSharding(mesh, P("devices") if divided else P())


def main() -> None:
    parser = argparse.ArgumentParser(description="What a gpt-oss says after a prompt.")
    parser.add_argument("source", help="a mirror of gpt-oss: me/gpt-oss-20b-npy, or a folder")
    parser.add_argument("prompt")
    parser.add_argument("count", nargs="?", type=int, default=20, help="tokens to decode (20)")
    given = parser.parse_args()
    from tokenizers import Tokenizer  # pip install tokenizers

    with open_checkpoint(given.source) as checkpoint:
        config = Config.of(json.loads(checkpoint.read_file("config.json")))
        tokenizer = Tokenizer.from_str(checkpoint.read_file("tokenizer.json").decode())
        params = load_gpt_oss(checkpoint, dtype="bfloat16", sharding=spread)
    ids = tokenizer.encode(given.prompt).ids
    print(given.prompt + tokenizer.decode(greedy(params, config, ids, given.count)))


if __name__ == "__main__":
    main()
