"""Sentence embeddings in pure JAX, from a mirror: `python minilm_jax.py me/all-MiniLM-L6-v2-npy "A cat" ...`.

all-MiniLM-L6-v2 is a BERT whose last hidden states are averaged over the tokens and normalized
(https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2). Weights, configuration and tokenizer come
from the mirror; `pip install tokenizers`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from tensorport_hub import open_checkpoint
from tensorport_hub.jax import load_params

Params = Mapping[str, Any]


class MiniLM:
    """A mirror of all-MiniLM-L6-v2, loaded."""

    def __init__(self, source: str) -> None:
        with open_checkpoint(source) as checkpoint:
            config = json.loads(checkpoint.read_file("config.json"))
            most = json.loads(checkpoint.read_file("sentence_bert_config.json"))["max_seq_length"]
            self._tokenizer = Tokenizer.from_str(checkpoint.read_file("tokenizer.json").decode())
            self.params = load_params(checkpoint)
        self._tokenizer.enable_truncation(most)
        self._tokenizer.enable_padding(pad_id=config["pad_token_id"])
        self._heads, self._eps = config["num_attention_heads"], config["layer_norm_eps"]

    def __call__(self, sentences: Sequence[str]) -> jax.Array:
        """Embeddings [sentences, width] of length 1: their products are cosines."""
        encoded = self._tokenizer.encode_batch(list(sentences))
        ids, mask = (np.array([getattr(one, key) for one in encoded]) for key in ("ids", "attention_mask"))
        return embed(self.params, jnp.array(ids), jnp.array(mask, bool), heads=self._heads, eps=self._eps)


@partial(jax.jit, static_argnames=("heads", "eps"))
def embed(params: Params, ids: jax.Array, mask: jax.Array, *, heads: int, eps: float) -> jax.Array:
    """Token ids [B, T] and which of them count [B, T], to embeddings [B, H]."""
    e = params["embeddings"]
    x = e["word_embeddings"]["weight"][ids] + e["position_embeddings"]["weight"][: ids.shape[1]]
    x = layer_norm(x + e["token_type_embeddings"]["weight"][0], e["LayerNorm"], eps)
    for number in range(len(params["encoder"]["layer"])):
        p = params["encoder"]["layer"][str(number)]
        y = attention(x, mask, p["attention"]["self"], heads)
        x = layer_norm(
            x + linear(y, p["attention"]["output"]["dense"]), p["attention"]["output"]["LayerNorm"], eps
        )
        y = jax.nn.gelu(linear(x, p["intermediate"]["dense"]), approximate=False)
        x = layer_norm(x + linear(y, p["output"]["dense"]), p["output"]["LayerNorm"], eps)
    mean = jnp.where(mask[..., None], x, 0).sum(1) / mask.sum(1, keepdims=True)
    return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


def attention(x: jax.Array, mask: jax.Array, p: Params, heads: int) -> jax.Array:
    q, k, v = (linear(x, p[name]).reshape(*x.shape[:2], heads, -1) for name in ("query", "key", "value"))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(mask[:, None, None, :], scores, -jnp.inf))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)


def linear(x: jax.Array, p: Params) -> jax.Array:
    """Weights are [out, in]."""
    return x @ p["weight"].T + p["bias"]


def layer_norm(x: jax.Array, p: Params, eps: float) -> jax.Array:
    centered = x - x.mean(-1, keepdims=True)
    return centered * jax.lax.rsqrt((centered**2).mean(-1, keepdims=True) + eps) * p["weight"] + p["bias"]


def main() -> None:
    parser = argparse.ArgumentParser(description="How much alike sentences are: their cosines.")
    parser.add_argument("source", help="a mirror of all-MiniLM-L6-v2: me/all-MiniLM-L6-v2-npy, or a folder")
    parser.add_argument("sentences", nargs="+", metavar="sentence")
    given = parser.parse_args()
    embeddings = MiniLM(given.source)(given.sentences)
    for sentence, cosines in zip(given.sentences, np.asarray(embeddings @ embeddings.T), strict=True):
        print(" ".join(f"{cosine:6.3f}" for cosine in cosines), sentence)


if __name__ == "__main__":
    main()
