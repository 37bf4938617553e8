"""What `inspect` asks a Hub for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from tensorport_hub import inspect
from tensorport_hub.devhub import DevHub
from tests.foreign import CHECKPOINTS


def asked(hub: DevHub, repo: str) -> tuple[Counter[str], Counter[str]]:
    """The weight files' resolves and ranges, by path."""
    hub.forget()
    inspect(repo)
    resolved, ranges = Counter[str](), Counter[str]()
    for request in hub.seen:
        if "/resolve/" in request.path and request.path.endswith(".safetensors"):
            resolved[request.path.rpartition("/")[2]] += 1
        elif request.origin == "cdn":
            assert request.range is not None, request
            ranges[request.path.rpartition("/")[2]] += 1
    return resolved, ranges


@pytest.mark.parametrize(("tensors", "reads"), [(3, 1), (3000, 2)])
def test_a_file_takes_one_resolve_and_at_most_two_ranges(hub: DevHub, tensors: int, reads: int) -> None:
    """One range finds a header of usual length, a second one the rest of a long one; no weight is read."""
    files = [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    weight = np.zeros((32, 32), np.float32)
    content = {
        name: save({f"model.layers.{i}.weight.{name}": weight for i in range(tensors)}) for name in files
    }
    hub.add_repo("a/b", {**content, "config.json": b"{}"})
    resolved, ranges = asked(hub, "a/b")
    assert resolved == dict.fromkeys(files, 1)
    assert sorted(ranges.values()) == [reads] * 3
    headers = sum(int.from_bytes(data[:8], "little") for data in content.values())
    assert sum(request.bytes_out for request in hub.seen) < headers + 3 * 131_072 + 50_000


def test_facts_come_together(hub: DevHub) -> None:
    """Small tensors that say how weights are stored lie near each other and cost one range more."""
    folder = Path(CHECKPOINTS, "ct_mixed_precision")
    names = ("model.safetensors", "config.json")
    hub.add_repo("a/b", {name: (folder / name).read_bytes() for name in names})
    assert len([t for t in inspect("a/b").tensors if t.scheme != "plain"]) > 5
    resolved, ranges = asked(hub, "a/b")
    assert resolved == {"model.safetensors": 1}
    assert [*ranges.values()] == [2]
