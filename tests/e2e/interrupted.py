"""A checkpoint of many small tensors, runs of it by checkpoints, and how they are interrupted."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from huggingface_hub import HfApi
from safetensors.numpy import save

from tensorport_hub import mirror, plan
from tensorport_hub.devhub import DevHub, Fault
from tensorport_hub.errors import DestinationError
from tensorport_hub.ports import Event, Warned
from tensorport_hub.results import MirrorResult

SOURCE, TARGET = "st/model", "me/model-npy"
EVERY = 300_000
"""Bytes between checkpoints: about three tensors."""
FILES, TENSORS = 4, 6


def model(count: int = FILES, tensors_of_each: int = TENSORS) -> dict[str, bytes]:
    """Four files of six tensors of 100 kB, or as many as told, an index, a configuration and a card."""
    rng = np.random.default_rng(0)
    files, weight_map = {}, {}
    for number in range(count):
        name = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        tensors = {
            f"layers.{number}.w{i}": rng.standard_normal((250, 100), np.float32)
            for i in range(tensors_of_each)
        }
        files[name] = save(tensors)
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {}, "weight_map": weight_map}
    card = "---\nlicense: mit\n---\n\n# Model\n"
    return {
        **files,
        "model.safetensors.index.json": json.dumps(index).encode(),
        "config.json": b"{}\n",
        "README.md": card.encode(),
    }


MODEL = model()
WEIGHTS = sum(len(data) for path, data in MODEL.items() if path.endswith(".safetensors"))


def run(target: str = TARGET, events: list[Event] | None = None, **options: Any) -> MirrorResult:
    """A mirror by checkpoints."""
    given = {"checkpoint_every": EVERY, "transfer": "lfs", "workers": 2, **options}
    return mirror(SOURCE, target, on_event=events.append if events is not None else None, **given)


def interrupted(hub: DevHub, *, uploads: int = 8, **options: Any) -> None:
    """A run whose uploads are refused after so many."""
    fault = Fault("status", "PUT", "cdn", status=403, after=uploads, times=None)
    hub.faults.add(fault)
    with pytest.raises(DestinationError):
        run(**options)
    hub.faults.clear()


def pulls(client: HfApi, target: str = TARGET) -> dict[int, str]:
    """Number -> status of all pull requests."""
    return {d.num: d.status for d in client.get_repo_discussions(target, discussion_type="pull_request")}


def warnings(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Warned)]


def key() -> str:
    """The fingerprint of the plan."""
    return plan(SOURCE, TARGET, checkpoint_every=EVERY).plan.fingerprint


def read_bytes(hub: DevHub) -> int:
    """Bytes of weights that the storage handed out."""
    return sum(s.bytes_out for s in hub.seen if s.origin == "cdn" and s.method == "GET")
