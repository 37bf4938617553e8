"""Model cards: the YAML at the head of a README.md, as the Hub reads and checks it.

`validate` is the check that a client asks for before it sends a README.md: bad YAML and fields of
the wrong form are errors (400), no metadata at all is a warning. `card_data` and `tags` are what the
Hub tells of a repository from its card; a `base_model` without a relation is taken for a finetune.

Source: the Hub's documentation of model cards; `_validate_yaml` in huggingface_hub's `hf_api.py`.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

import yaml
from aiohttp import web

from tensorport_hub.devhub.hub import Call, Hub
from tensorport_hub.devhub.refusals import Refusal
from tensorport_hub.devhub.trees import Snapshot

HEAD = re.compile(r"\A\ufeff?(?:\s*\n)?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
RELATIONS = ("adapter", "merge", "quantized", "finetune")
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


class BadCard(ValueError):
    """Metadata that the Hub would refuse; the message says why."""


def metadata(text: str) -> dict[str, Any] | None:
    """The mapping at the head of a card; None where there is no head or an empty one."""
    head = HEAD.match(text)
    if head is None:
        return None
    try:
        said = yaml.safe_load(head.group(1))
    except yaml.YAMLError as error:
        raise BadCard(f"YAML Metadata Error: {error}") from error
    if said is None:
        return None
    if not isinstance(said, dict):
        raise BadCard('YAML Metadata Error: "metadata" must be of type object')
    return dict(json.loads(json.dumps(said, default=str)))


def faults_of(said: dict[str, Any]) -> list[str]:
    """What is wrong with well-formed metadata."""
    words = ("library_name", "pipeline_tag", "license_name", "license_link")
    found = [f'"{key}" must be a string' for key in words if key in said and not isinstance(said[key], str)]
    for key in ("tags", "language", "license", "base_model", "datasets", "metrics"):
        values = said[key] if isinstance(said.get(key), list) else [said.get(key)]
        if key in said and not all(isinstance(value, str) for value in values):
            found.append(f'"{key}" must be a string or a list of strings')
    if isinstance(said.get("tags"), str):
        found.append('"tags" must be an array')
    bad = [base for base in _bases(said) if not REPO_ID.fullmatch(base)]
    found += [f'"base_model" with value "{base}" is not valid. Use a model id from the Hub.' for base in bad]
    relation = said.get("base_model_relation")
    if relation is not None and relation not in RELATIONS:
        found.append(f'"base_model_relation" must be one of [{", ".join(RELATIONS)}]')
    return found


def _bases(said: dict[str, Any]) -> list[str]:
    base = said.get("base_model") or []
    return [name for name in ([base] if isinstance(base, str) else base) if isinstance(name, str)]


def validate(call: Call) -> web.Response:
    warnings: list[dict[str, str]] = []
    try:
        said = metadata(str(call.json().get("content", "")))
        errors = faults_of(said) if said is not None else []
    except BadCard as bad:
        said, errors = {}, [str(bad)]
    if said is None:
        warnings.append({"message": "empty or missing yaml metadata in repo card"})
    if errors:
        told = {"errors": [{"message": words} for words in errors], "warnings": warnings}
        raise Refusal(400, "Invalid metadata in README.md", fields=told)
    return web.json_response({"errors": [], "warnings": warnings})


@lru_cache(maxsize=256)
def _read_card(text: str) -> dict[str, Any]:
    try:
        return metadata(text) or {}
    except BadCard:
        return {}


def card_data(hub: Hub, snapshot: Snapshot) -> dict[str, Any]:
    """The metadata of the README.md of a snapshot; empty where there is none or it is bad."""
    entry = snapshot.files.get("README.md")
    blob = hub.blobs.find(entry.sha256) if entry is not None and not entry.lfs else None
    if blob is None:
        return {}
    return _read_card(b"".join(blob.read(0, blob.size)).decode(errors="replace"))


def tags(card: dict[str, Any]) -> list[str]:
    """The tags that the Hub makes of a card."""
    found = [tag for tag in card.get("tags") or [] if isinstance(tag, str)]
    if isinstance(card.get("library_name"), str):
        found.insert(0, card["library_name"])
    bases = _bases(card)
    for base in bases:
        found += [f"base_model:{base}", f"base_model:{card.get('base_model_relation', 'finetune')}:{base}"]
    if isinstance(card.get("license"), str):
        found.append(f"license:{card['license']}")
    return list(dict.fromkeys(found))
