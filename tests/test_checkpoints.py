"""Every foreign checkpoint, bit for bit: to a folder, cut at rows, wrapped, and mirrored by ranges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tensorport_hub import inspect, mirror
from tensorport_hub.devhub import DevHub
from tests.foreign import CHECKPOINTS, check, check_checkpoint, check_wrapped, expected, read_mirror, stage

NAMES = sorted(path.name for path in CHECKPOINTS.iterdir())
BOUND_TO_NAMES = {
    "torchao_float8_weight_only": "its metadata names the tensors",
    "torchao_int8_weight_only": "its metadata names the tensors",
    "torchao_int8da_int4w": "its metadata names the tensors",
}


def test_all_are_there() -> None:
    """The sixty-odd checkpoints are in the repository, each with what its own decoder made of it."""
    assert len(NAMES) >= 60
    assert all((CHECKPOINTS / name / "expected" / "dtypes.json").is_file() for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_converted(name: str, tmp_path: Path) -> None:
    """`convert` gives what the format's own decoder gives, in its dtype."""
    check_checkpoint(name, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_cut_at_rows(name: str, tmp_path: Path) -> None:
    """The same with every tensor cut into files of few rows."""
    row = max(array[0:1].nbytes if array.ndim else 4 for array, _ in expected(name).values())
    check_checkpoint(name, tmp_path, shard_size=128 + 2 * row)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BOUND_TO_NAMES])
def test_wrapped(name: str, tmp_path: Path) -> None:
    """The same with every name prefixed and companions in another file."""
    check_wrapped(name, tmp_path)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevHub]:
    """One devhub for all."""
    with DevHub(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.mark.parametrize("name", NAMES)
def test_mirrored_by_ranges(name: str, hub: DevHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ranged mirror of a remote one gives the same arrays; `inspect` counts its weights, not its bytes."""
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.add_repo(f"foreign/{name}", stage(name, tmp_path / "source"))
    result = mirror(f"foreign/{name}", str(tmp_path / "mirror"), verify_source="whole")
    made = read_mirror(tmp_path / "mirror")
    check(name, made)
    assert result.manifest["source"]["files"][0]["verified"] == "whole"
    seen = inspect(f"foreign/{name}")
    weights = sum(array.size for array, dtype in made.values() if dtype in ("F32", "F16", "BF16"))
    assert seen.parameters == result.stats.parameters == weights
