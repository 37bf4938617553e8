"""gpt-oss for JAX: whatever layout its experts have in the mirror, the same parameters come out.

The parameters are named as in the checkpoint, except that gate and up are apart:

    model.layers.N.mlp.experts.gate_proj, up_proj     [E, F, H]     their _bias  [E, F]
    model.layers.N.mlp.experts.down_proj              [E, H, F]     its _bias    [E, H]

In the `source` layout they are one `gate_up_proj` [E, 2F, H] with rows interleaved (gate 0::2, up 1::2),
which is read once for both. In the `stacked` layout they lie so already.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from tensorport_hub.checkpoint import Checkpoint
from tensorport_hub.core.tensor import DTYPES, shorten
from tensorport_hub.errors import CheckpointError, gather
from tensorport_hub.jax.cast import parse_dtype
from tensorport_hub.jax.params import Source, alone, opened
from tensorport_hub.jax.place import Leaves, place
from tensorport_hub.jax.tree import Shardings, Tree, compare_names, nest, spread
from tensorport_hub.lazy import LazyArray

Shapes = dict[str, tuple[int, ...]]

_INTERLEAVED = re.compile(r"\.mlp\.experts\.gate_up_proj(_bias)?$")
_HINT = "a mirror made with `--quantized keep`, `--include` or `--exclude` does not hold the parameters"


def load_gpt_oss(
    source: Source,
    *,
    revision: str | None = None,
    token: str | None = None,
    dtype: npt.DTypeLike | None = None,
    sharding: Shardings = None,
) -> Tree:
    """Load the mirror of a gpt-oss, from either layout of its experts, as a nested dict of `jax.Array`.

    Args:
        source, revision, token, dtype, sharding: as of `load_params`; names and shapes are those of the
            result, where gate and up are apart.

    Returns:
        The parameters that `config.json` calls for, neither fewer nor more.

    Raises:
        CheckpointError: parameters are missing, too many, or of another shape; all are listed. Or
            `config.json` is none of a gpt-oss.
        UseError, SourceError, VerificationError, LossError: as of `load_params`.
    """
    target = parse_dtype(dtype)
    with opened(source, revision, token) as checkpoint:
        shapes = _shapes(_config(checkpoint), most=len(checkpoint))
        every = _leaves(checkpoint, shapes)
        return nest(place(every, spread(sharding, shapes), target))


def _config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    try:
        config = json.loads(checkpoint.read_file("config.json"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"`config.json` of `{checkpoint.name}` is no JSON: {error}") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "gpt_oss":
        raise CheckpointError(
            f"`{checkpoint.name}` is no gpt-oss: expected `model_type` `gpt_oss`, got `{shorten(kind)}`",
            hint="`load_params` loads any model",
        )
    return dict(config)


def _shapes(config: Mapping[str, Any], *, most: int) -> Shapes:
    """Every parameter that a configuration calls for; with more than `most` layers it can't be meant."""
    try:
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        experts, words = config["num_local_experts"], config["vocab_size"]
        head = config.get("head_dim") or hidden // config["num_attention_heads"]
        queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
        layers = range(min(config["num_hidden_layers"], most))
    except (KeyError, TypeError, ArithmeticError) as error:
        raise CheckpointError(f"`config.json` is no gpt-oss': {type(error).__name__}: {error}") from None
    layer: Shapes = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.sinks": (config["num_attention_heads"],),
        "mlp.router.weight": (experts, hidden),
        "mlp.router.bias": (experts,),
        "mlp.experts.gate_proj": (experts, inner, hidden),
        "mlp.experts.gate_proj_bias": (experts, inner),
        "mlp.experts.up_proj": (experts, inner, hidden),
        "mlp.experts.up_proj_bias": (experts, inner),
        "mlp.experts.down_proj": (experts, hidden, inner),
        "mlp.experts.down_proj_bias": (experts, hidden),
    }
    sizes = {"q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, queries)}
    for name, (rows, columns) in sizes.items():
        layer[f"self_attn.{name}_proj.weight"] = (rows, columns)
        if config.get("attention_bias", True):
            layer[f"self_attn.{name}_proj.bias"] = (rows,)
    shapes: Shapes = {"model.embed_tokens.weight": (words, hidden), "model.norm.weight": (hidden,)}
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (words, hidden)
    return shapes | {f"model.layers.{n}.{name}": shape for n in layers for name, shape in layer.items()}


def _leaves(checkpoint: Checkpoint, shapes: Shapes) -> list[Leaves]:
    """How each parameter is read; nothing is read before all of them are known to fit."""
    found = [
        _gate_and_up(array) if _INTERLEAVED.search(name) and array.ndim > 1 else alone(array)
        for name, array in checkpoint.items()
    ]
    there = {name: one.shape for one in found for name in one.names}
    compare_names(shapes, there, CheckpointError, f"`{checkpoint.name}`", _HINT)
    wrong = [
        f"`{shorten(name)}` has the wrong shape: expected {list(shape)}, got {list(there[name])}"
        for name, shape in shapes.items()
        if there[name] != shape
    ]
    if wrong:
        raise gather(CheckpointError, wrong, hint="`config.json` says what is expected")
    return found


def _gate_and_up(array: LazyArray) -> Leaves:
    """Rows of gate and up, interleaved on axis 1: read as one block, taken apart on the host."""
    experts, rows, *rest = array.shape

    def doubled(index: tuple[slice, ...]) -> tuple[slice, ...]:
        return (index[0], slice(2 * index[1].start, 2 * index[1].stop), *index[2:])

    def read(index: tuple[slice, ...]) -> tuple[Any, Any]:
        block = array[doubled(index)]
        return block[:, 0::2], block[:, 1::2]

    return Leaves(
        (array.name.replace("gate_up_proj", "gate_proj"), array.name.replace("gate_up_proj", "up_proj")),
        DTYPES[array.logical_dtype],
        (experts, rows // 2, *rest),
        read,
        lambda index: array.requested(doubled(index)),
    )
