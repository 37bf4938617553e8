"""`--max-memory` and tensors that are larger: read again in strips, or refused with what would be enough."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tensorport_hub import plan
from tensorport_hub.devhub import DevHub
from tensorport_hub.edge.hub_xet import SPARING
from tensorport_hub.errors import LimitError
from tensorport_hub.limits import Limits
from tests.bench import layouts
from tests.e2e.test_cli import run

GROUP = 128


def write_gptq(folder: Path, columns: int, rows: int, bits: int, *, content: bool) -> Mapping[str, Any]:
    """A checkpoint of one GPTQ weight with act-order, its tensors in the order of a library's file.

    Without `content` the file is a hole of the right size, of which nothing but the header can be read.
    """
    rng = np.random.default_rng(0)
    groups = -(-columns // GROUP)
    shapes = {
        "w.g_idx": ("I32", (columns,)),
        "w.qweight": ("I32", (columns * bits // 32, rows)),
        "w.qzeros": ("I32", (groups, rows * bits // 32)),
        "w.scales": ("F16", (groups, rows)),
    }
    header, at = {}, 0
    for name, (dtype, shape) in shapes.items():
        nbytes = int(np.prod(shape)) * (4 if dtype == "I32" else 2)
        header[name] = {"dtype": dtype, "shape": [*shape], "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir()
    path = folder / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, path.stat().st_size + at)
    config = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": True, "sym": False}
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    start = 8 + len(text)
    places = {
        name: np.memmap(
            path,
            np.dtype("<i4") if dtype == "I32" else np.dtype("<f2"),
            "r+",
            start + header[name]["data_offsets"][0],
            shape,
        )
        for name, (dtype, shape) in shapes.items()
    }
    if content:
        places["w.g_idx"][:] = rng.permutation(np.arange(columns) // GROUP)
        places["w.scales"][:] = rng.uniform(0.001, 0.01, (groups, rows))
        for name in ("w.qzeros", "w.qweight"):
            for some in np.array_split(places[name], 20):
                some[:] = np.frombuffer(rng.bytes(some.nbytes), "<i4").reshape(some.shape)
    return places


def row_of(stored: Mapping[str, Any], row: int) -> npt.NDArray[np.float16]:
    """One output row of 8-bit codes by the formula."""
    codes = np.ascontiguousarray(stored["w.qweight"][:, row]).view(np.uint8).astype(np.float32)
    group = stored["w.g_idx"]
    zeros = (stored["w.qzeros"].view(np.uint8)[:, row].astype(np.int32) + 1) % 256
    scales = stored["w.scales"][:, row].astype(np.float32)
    return ((codes - zeros[group].astype(np.float32)) * scales[group]).astype(np.float16)


def test_a_tensor_of_twice_the_cap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """300 MB of packed GPTQ under 150 MB: the process stays below, reads what `plan` said, and is right."""
    columns, rows, cap = 16_384, 18_432, 150_000_000
    stored = write_gptq(tmp_path / "model", columns, rows, 8, content=True)
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert stored["w.qweight"].nbytes > 2 * cap
    limits = ["--max-memory", str(cap), "--workers", "1", "--shard-size", "350MB"]
    assert run("plan", str(tmp_path / "model"), str(tmp_path / "out"), *limits) == 0
    said = capsys.readouterr().out
    planned = plan(
        str(tmp_path / "model"), str(tmp_path / "out"), max_memory=cap, workers=1, shard_size=350_000_000
    )
    assert planned.bytes_in == planned.bytes_again + size
    share = 100 * planned.bytes_again / size
    assert share > 90
    assert re.search(rf"^read again +[0-9.]+ MB \({share:.1f} %\)", said, re.MULTILINE)
    words = [
        "convert",
        "--input",
        str(tmp_path / "model"),
        "--output",
        str(tmp_path / "out"),
        "--json",
        *limits,
    ]
    ended = subprocess.run(
        [sys.executable, "-m", "tensorport_hub", *words], capture_output=True, text=True, check=True
    )
    stats = json.loads(ended.stdout)["stats"]
    assert stats["peak_memory"] < cap
    assert stats["bytes_read"] == planned.bytes_in
    assert stats["parts"] == 2
    parts = sorted((tmp_path / "out" / "shard_000").iterdir()) + sorted(
        (tmp_path / "out" / "shard_001").iterdir()
    )
    halves = [np.load(part, mmap_mode="r") for part in parts]
    for row in (0, 1, 1_001, rows // 2 - 1, rows // 2, 12_345, rows - 1):
        half, at = divmod(row, rows // 2)
        assert halves[half][at].tobytes() == row_of(stored, row).tobytes()


def test_not_even_one_row_fits(tmp_path: Path) -> None:
    """A row that alone is too large is exit 7, with the tensor and a cap that is enough; 1 MB less is not."""
    write_gptq(tmp_path / "model", 80_000_000, 8, 4, content=False)

    def try_with(megabytes: int) -> Any:
        return plan(str(tmp_path / "model"), str(tmp_path / "out"), max_memory=f"{megabytes}MB")

    with pytest.raises(LimitError, match=r"too small for `w\.weight`: expected at least \d+MB") as caught:
        try_with(150)
    assert caught.value.exit_code == 7
    assert "--max-memory" in caught.value.hint
    enough = int(re.findall(r"at least (\d+)MB", caught.value.message)[0])
    with pytest.raises(LimitError, match=r"`w\.weight`"):
        try_with(enough - 1)
    assert try_with(enough).bytes_in > try_with(4_000).bytes_in


def test_by_xet_a_large_model_needs_little(hub: DevHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """14 GB: one stream more than processors and four uploads under the usual cap, fewer under 512 MB, one
    stream that spares memory under 300 MB, and below that a refusal that names what is enough; 1 MB less is
    not."""
    monkeypatch.setattr("tensorport_hub.limits._processors", lambda: 2)
    layout, config = layouts.model("plain 14")
    hub.add_repo("st/model", layouts.repository(layout, config, digests=False))

    def try_with(cap: str) -> Any:
        return plan("st/model", "me/mirror", max_memory=cap, transfer="xet").plan

    planned = try_with("300MB")
    usual, less, least = (
        Limits.of(None, cap).allot(planned, streams=True, by_xet=False) for cap in ("1GB", "512MB", "300MB")
    )
    assert (usual.workers, usual.uploads) == (3, 4)
    assert (less.workers, less.uploads) == (1, 2)
    assert (least.workers, least.uploads) == (1, SPARING)
    with pytest.raises(LimitError) as caught:
        try_with("200MB")
    enough = int(re.findall(r"at least (\d+)MB", caught.value.message)[0])
    try_with(f"{enough}MB")
    with pytest.raises(LimitError):
        try_with(f"{enough - 1}MB")
