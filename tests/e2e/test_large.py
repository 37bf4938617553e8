"""Tensors above the limits of a format: `pytest --large tests/e2e/test_large.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tensorport_hub import open_checkpoint, verify

ROWS, COLUMNS = 150_000, 4_096
"""1.2 GB of bfloat16: more than one array of msgpack holds."""
SEED = 7

READ = """
import sys, numpy as np
from flax.serialization import msgpack_restore
found = msgpack_restore(open(sys.argv[1], "rb").read())
draw = np.random.default_rng(int(sys.argv[2]))
large = found["large"].view(np.uint16)
assert list(found) == ["first", "large"] and large.shape == (int(sys.argv[3]), int(sys.argv[4]))
assert all(np.array_equal(row, draw.integers(0, 1 << 15, row.size, np.uint16)) for row in large)
"""


@pytest.mark.large
@pytest.mark.timeout(900)
def test_a_tensor_above_a_gibibyte(tmp_path: Path) -> None:
    """msgpack holds it in chunks that flax joins; neither writing nor reading rows of it takes its memory."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    nbytes = 2 * ROWS * COLUMNS
    header = {
        "first": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "large": {"dtype": "BF16", "shape": [ROWS, COLUMNS], "data_offsets": [16, 16 + nbytes]},
    }
    text = json.dumps(header).encode()
    draw = np.random.default_rng(SEED)
    with open(source / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + bytes(16))
        for _ in range(ROWS):
            file.write(draw.integers(0, 1 << 15, COLUMNS, np.uint16).data)
    words = ["--input", str(source), "--output", str(out), "--format", "msgpack"]
    done = subprocess.run(
        [sys.executable, "-m", "tensorport_hub", "convert", *words, "--max-memory", "200MB", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stats"]["peak_memory"] < 200_000_000
    stored = json.loads((out / "manifest.json").read_bytes())["tensors"]["large"]["stored"]
    assert len(stored) == 2
    with open_checkpoint(out) as checkpoint:
        rows = np.asarray(checkpoint["large"][131_000:131_200])  # on both sides of the cut
    again = np.random.default_rng(SEED)
    wanted = [again.integers(0, 1 << 15, COLUMNS, np.uint16) for _ in range(131_200)][131_000:]
    assert np.array_equal(rows.view(np.uint16), np.stack(wanted))
    assert verify(str(out), deep=True).ok
    words = [str(out / "shard_000.msgpack"), str(SEED), str(ROWS), str(COLUMNS)]
    subprocess.run([sys.executable, "-c", READ, *words], check=True)
