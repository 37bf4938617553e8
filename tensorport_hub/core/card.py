"""The model card (README.md) of a mirror: front matter that the Hub understands, and what a reader needs.

Front matter is written by PyYAML, never by hand. `base_model_relation: quantized` is there whenever a base
model is named: where it is absent, the Hub's page says "Finetuned". What the card says follows from plan and
source alone: no clock, no user, no destination, so that equal runs give equal cards.

Source: the Hub's documentation of model cards ("Specifying a base model", "Specifying a library").
"""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from tensorport_hub.core import card_snippets
from tensorport_hub.core.decode.cast import Losses
from tensorport_hub.core.encode.jax_pickle import JAX_PICKLE
from tensorport_hub.core.filenames import encode
from tensorport_hub.core.plan import Options, Plan
from tensorport_hub.core.size import format_size
from tensorport_hub.core.tensor import shorten

PATH = "README.md"
_CARRIED = ("license", "license_name", "license_link", "pipeline_tag", "language")
_TAGS = ["numpy", "jax", "tensorport-hub"]
_HOME = "tensorport-hub"
_FILES = {
    "numpy-direct": "`.npy` files",
    "msgpack": "msgpack (flax)",
    "jax-pickle": "pickles",
    "safetensors": "safetensors (transformers)",
}


FRONT_NBYTES = 1 << 16
"""Bytes from a card's start that may hold its metadata: more are nobody's, and YAML takes minutes for
megabytes."""


def read_front_matter(readme: str) -> dict[str, Any]:
    """The metadata of a source card; empty where there is none, or none that is valid.

    Args:
        readme: the card, of which no more than the beginning counts.
    """
    lines = readme[:FRONT_NBYTES].lstrip("\ufeff").splitlines()
    bare = [line.strip() for line in lines]
    if bare[:1] != ["---"] or "---" not in bare[1:]:
        return {}
    text = "\n".join(lines[1 : bare.index("---", 1)])
    try:
        value = yaml.safe_load(text)
    except Exception:  # PyYAML lets IndexError, KeyError, AttributeError and others out of odd scalars
        return {}
    return value if isinstance(value, dict) else {}


def build(plan: Plan, *, source_card: Mapping[str, Any], losses: Mapping[int, Losses]) -> bytes:
    """The card's bytes."""
    front = yaml.safe_dump(_front_matter(plan, source_card), sort_keys=False, allow_unicode=True)
    body = "\n".join(
        section
        for section in (_title(plan), _content(plan), _losses(plan, losses), _use(plan), _proof(plan))
        if section
    )
    return f"---\n{front}---\n\n{body}".encode()


def _front_matter(plan: Plan, source_card: Mapping[str, Any]) -> dict[str, Any]:
    stated = {**source_card, "language": _languages(source_card.get("language"))}
    front: dict[str, Any] = {key: stated[key] for key in _CARRIED if _is_plain(stated.get(key))}
    if plan.repo is not None:
        front["base_model"] = plan.repo
        # Of the Hub's four relations (adapter, merge, quantized, finetune) the only one that says the same
        # model in another form: a plain copy is that, too, and without a relation would be called a finetune.
        front["base_model_relation"] = "quantized"
    front["library_name"] = "tensorport-hub"
    tags = source_card.get("tags")
    kept = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    front["tags"] = list(dict.fromkeys([*_TAGS, *kept]))
    return front


def _languages(value: object) -> object:
    """Norwegian is `no`, which YAML reads as false."""
    if isinstance(value, list):
        return ["no" if item is False else item for item in value]
    return "no" if value is False else value


def _is_plain(value: object) -> bool:
    """A text, or a list of texts: nothing that a hostile card could smuggle in."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, str) for item in value)
    return isinstance(value, str) and bool(value)


def _title(plan: Plan) -> str:
    name = plan.repo or "A local checkpoint"
    link = f"[{plan.repo}](https://huggingface.co/{plan.repo})" if plan.repo else "a local checkpoint"
    return (
        f"# {name.rpartition('/')[2]} as plain arrays\n\n"
        f"The weights of {link} as {_listed(_FILES[form] for form in plan.options.formats)}: no torch, no GPU"
        " and no decoder needed to read them.\n"
        f"Made from commit `{plan.commit}` by {_HOME} {plan.version}.\n"
    )


def _listed(words: Iterable[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def _content(plan: Plan) -> str:
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for i, recipe in enumerate(plan.recipes):
        stored = recipe.decoder.inputs[0].dtype.name
        schemes = " and ".join(sorted(recipe.schemes))
        scheme = "as stored" if schemes == "plain" else f"{schemes} decoded"
        scheme += ", stacked" if recipe.decoder.scheme == "stacked" else ""
        if recipe.casts:
            scheme += ", rounded once"
        row = counts[f"{stored} → {recipe.dtype.name}" if recipe.dtype.name != stored else stored, scheme]
        row.update(tensors=1, parameters=recipe.parameters, nbytes=plan.nbytes_of[i])
    rows = [
        f"| {dtype} | {scheme} | {row['tensors']:,} | {row['parameters']:,} | {format_size(row['nbytes'])} |"
        for (dtype, scheme), row in sorted(counts.items())
    ]
    return (
        "## What is in it\n\n"
        "| dtype | decoding | tensors | parameters | size |\n|---|---|--:|--:|--:|\n"
        + "\n".join(rows)
        + f"\n| **all** | | {len(plan.recipes):,} | {plan.parameters:,} | {format_size(plan.bytes_out)} |\n\n"
        f"{len(plan.outputs):,} files in {plan.shards:,} shard{'s' * (plan.shards != 1)};"
        " `manifest.json` names every tensor's file.\n"
    )


def _losses(plan: Plan, losses: Mapping[int, Losses]) -> str:
    if not losses:
        return ""
    rows = [
        f"| `{shorten(encode(plan.recipes[i].name))}` | {lost.overflow:,} | {lost.underflow:,} |"
        for i, lost in sorted(losses.items())
    ]
    more = (
        f"\n\n... and {len(rows) - 50:,} more tensors: see `losses` in `manifest.json`."
        if len(rows) > 50
        else ""
    )
    return (
        f"## What rounding cost\n\nFinite values too large for the dtype (`{plan.options.on_overflow}`), and"
        " non-zero values that became 0:\n\n| tensor | overflow | underflow |\n|---|--:|--:|\n"
        + "\n".join(rows[:50])
        + more
        + "\n"
    )


def _use(plan: Plan) -> str:
    formats = plan.options.formats
    if not plan.outputs:
        return ""
    said = [_use_of_ours(plan)] if formats != (JAX_PICKLE.name,) else []
    said += [card_snippets.SNIPPETS[form](plan, _folder(plan, form)) for form in formats]
    return "## Load it\n\n" + "\n".join(said)


def _folder(plan: Plan, form: str) -> str:
    """Where the files of a format lie, with the slash; "" at the top."""
    return f"{form}/" if len(plan.options.formats) > 1 else ""


def _use_of_ours(plan: Plan) -> str:
    names = (recipe.name for recipe in plan.recipes if recipe.shape and encode(recipe.name) == recipe.name)
    name = next(names, None)
    rows = (
        f'rows = open_checkpoint("OWNER/NAME")["{name}"][:8]  # reads these rows alone\n'
        if name is not None
        else 'arrays = open_checkpoint("OWNER/NAME")  # name -> lazy array\n'
    )
    return (
        f"With {_HOME}, by range from here, or from a downloaded folder:\n\n"
        "```python\n"
        "from tensorport_hub import open_checkpoint\n"
        "from tensorport_hub.jax import load_params\n\n"
        'params = load_params("OWNER/NAME")  # this repository\'s id, or a folder; `sharding=` spreads them\n'
        + rows
        + "```\n"
    )


def _proof(plan: Plan) -> str:
    command = reproduce(plan)
    made = f"```sh\n{command}\n```\n\nmakes the same bytes again. " if command else ""
    return (
        f"## Prove it\n\n{made}`manifest.json` lists the size and sha256 of every file, and for every tensor"
        " the byte range of the source it came from.\n"
    )


def reproduce(plan: Plan) -> str | None:
    """The command that makes this mirror again; None for a local source."""
    if plan.repo is None:
        return None
    defaults, options = Options(), plan.options
    words = ["tensorport-hub", "mirror", f"{plan.repo}@{plan.commit}"]
    for key in (
        "subfolder",
        "precision",
        "quantized",
        "on_overflow",
        "on_underflow",
        "shard_size",
        "verify_source",
        "experts",
    ):
        value = getattr(options, key)
        if value != getattr(defaults, key):
            words += [f"--{key.replace('_', '-')}", str(value)]
    for key in ("allow_patterns", "include", "exclude"):
        for pattern in getattr(options, key):
            words += [f"--{key.replace('_', '-')}", pattern]
    if options.formats != defaults.formats:
        words += [word for form in options.formats for word in ("--format", form)]
    return shlex.join(words)
