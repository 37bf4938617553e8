"""Synthetic repositories: the bytes that they serve, and uploads that are checked and dropped."""

from __future__ import annotations

import hashlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize

from tensorport_hub import mirror, verify
from tensorport_hub.devhub import DevHub
from tensorport_hub.devhub.synthetic import BLOCK, SyntheticFile

TENSORS = [
    ("a", "BF16", (700, 1000)),
    ("empty", "BF16", (0, 4)),
    ("b", "F32", (3,)),
    ("x_blocks", "U8", (5, 900, 16)),
    ("x_scales", "U8", (5, 900)),
]


def whole(file: SyntheticFile) -> bytes:
    return b"".join(file.read(0, file.size))


FILE = SyntheticFile(TENSORS, seed=1)
DATA = whole(FILE)


def test_files_are_safetensors() -> None:
    """The size and the sha256 are those of the bytes, which safetensors itself reads; values are finite."""
    assert (len(DATA), hashlib.sha256(DATA).hexdigest()) == (FILE.size, FILE.sha256)
    held = dict(deserialize(DATA))  # type: ignore[no-untyped-call]
    assert {name: tuple(part["shape"]) for name, part in held.items()} == {name: s for name, _, s in TENSORS}
    for name, kind in (("a", ml_dtypes.bfloat16), ("b", np.float32)):
        values = np.abs(np.frombuffer(held[name]["data"], kind).astype(np.float32))
        assert 1e-3 < values.min() <= values.max() < 0.1
    assert len(set(held["x_scales"]["data"])) == 8


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_range_is_of_the_same_bytes(data: st.DataObject) -> None:
    """However it is cut."""
    start = data.draw(st.integers(0, FILE.size))
    stop = data.draw(st.integers(start, min(FILE.size, start + BLOCK + 10)))
    assert b"".join(FILE.read(start, stop)) == DATA[start:stop]


def test_8_bit_floats_are_numbers() -> None:
    """No bits of NaN."""
    file = SyntheticFile([("w", "F8_E4M3", (1 << 16,))], seed=2)
    values = np.frombuffer(whole(file)[-(1 << 16) :], ml_dtypes.float8_e4m3fn)
    assert not np.isnan(values.astype(np.float32)).any()


def test_nothing_repeats() -> None:
    """Not within a tensor, from tensor to tensor, or from seed to seed; the same seed gives the same."""
    many = [(f"w{i}", "BF16", (4 * BLOCK // 2,)) for i in range(4)]
    data = whole(SyntheticFile(many, seed=1)) + whole(SyntheticFile(many, seed=2))
    pieces = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    assert len(set(pieces)) == len(pieces)
    assert whole(SyntheticFile(TENSORS, seed=1)) == DATA


def test_a_mirror_of_it_that_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read and sent like any other; nothing lies on the devhub's disk, and `verify` sees the digests."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with DevHub(tmp_path / "hub", "off", drop_above=100_000) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        hub.add_repo("st/synthetic", {"model.safetensors": FILE, "config.json": b"{}\n"})
        result = mirror("st/synthetic", "me/dropped", exclude=["x_*"], transfer="lfs")
        assert result.stats.bytes_published > 1_400_000
        assert (
            sum(p.stat().st_size for p in (tmp_path / "hub" / "objects").rglob("*") if p.is_file()) < 50_000
        )
        assert verify("me/dropped", against_source=True).ok
