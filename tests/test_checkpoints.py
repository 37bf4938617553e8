"""Every foreign checkpoint, bit for bit: to a folder, cut at rows, wrapped, and mirrored by ranges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import deserialize

from tensorport_hub import convert, inspect, mirror
from tensorport_hub.devhub import DevHub
from tensorport_hub.errors import CheckpointError
from tests.foreign import (
    CHECKPOINTS,
    check,
    check_checkpoint,
    check_wrapped,
    expected,
    read_mirror,
    stage,
    write,
)

NAMES = sorted(path.name for path in CHECKPOINTS.iterdir())
BOUND_TO_NAMES = {
    "torchao_float8_weight_only": "its metadata names the tensors",
    "torchao_int8_weight_only": "its metadata names the tensors",
    "torchao_int8da_int4w": "its metadata names the tensors",
}


NEED_CONFIG = frozenset(
    {
        "autoround_6bit_native",
        "bitnet_offline",
        "gemma_quant_int4",
        "gptq_v1_4bit_asym",
        "gptq_v2_4bit_asym",
        "mlx_affine_3bit_g64",
        "mlx_affine_4bit_g128_f32",
        "mlx_affine_4bit_g64",
        "mlx_affine_8bit_g64",
        "mlx_mixed_modes",
        "quark_int4_g32",
    }
)
"""Shapes alone have several readings."""


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


@pytest.mark.parametrize("name", NAMES)
def test_without_configuration(name: str, tmp_path: Path) -> None:
    """Without any configuration a checkpoint decodes right, or is refused where its shapes are ambiguous."""
    source = stage(name, tmp_path / "source")
    for path in source.glob("*.json"):
        path.unlink()
    if name in NEED_CONFIG:
        with pytest.raises(CheckpointError, match="down_proj"):
            convert(str(source), str(tmp_path / "mirror"))
        assert not (tmp_path / "mirror").exists()
    else:
        convert(str(source), str(tmp_path / "mirror"))
        check(name, read_mirror(tmp_path / "mirror"))


SIDE_BY_SIDE = [
    ("fp8_block_deepseek", "modelopt_nvfp4"),
    ("ct_w4a16_g128_sym", "ct_nvfp4a16"),
    ("ct_fp8_dynamic_per_channel", "ct_mxfp4a16"),
    ("gptq_v1_4bit_g32_sym", "bnb_nf4"),
    ("awq_gemm_g128", "hqq_4bit_g64_axis1"),
    ("mlx_mxfp4", "quanto_int8"),
    ("gptoss_mxfp4", "fp8_block_ue8m0"),
]


@pytest.mark.parametrize("names", SIDE_BY_SIDE, ids=lambda names: "+".join(names))
def test_side_by_side(names: tuple[str, str], tmp_path: Path) -> None:
    """Modules of two schemes in one checkpoint, each resolved by itself."""
    source = tmp_path / "source"
    source.mkdir()
    tensors: dict[str, Any] = {}
    for name in names:
        data = (CHECKPOINTS / name / "model.safetensors").read_bytes()
        tensors |= {f"{name}.{key}": value for key, value in deserialize(data)}
    (source / "model.safetensors").write_bytes(write(tensors, None))
    convert(str(source), str(tmp_path / "mirror"))
    made = read_mirror(tmp_path / "mirror")
    for name in names:
        check(name, {key: v for key, v in made.items() if key.startswith(f"{name}.")}, prefix=f"{name}.")


@pytest.mark.parametrize("name", NAMES)
def test_kept_as_stored(name: str, tmp_path: Path) -> None:
    """`--quantized keep`: every tensor byte for byte under its stored name, and how to decode it."""
    source = stage(name, tmp_path / "source")
    result = convert(str(source), str(tmp_path / "mirror"), quantized="keep")
    stored = dict(deserialize((source / "model.safetensors").read_bytes()))
    made = read_mirror(tmp_path / "mirror")
    assert made.keys() == stored.keys()
    for tensor, (array, dtype) in made.items():
        assert dtype == stored[tensor]["dtype"]
        assert array.tobytes() == bytes(stored[tensor]["data"]), tensor
    packed = result.manifest["packed"]
    assert packed.keys() >= {tensor for tensor in expected(name) if tensor not in stored}
    assert packed
    config = source / "config.json"
    if config.exists():
        assert (tmp_path / "mirror" / "config.json").read_bytes() == config.read_bytes()


def test_precision_rounds_once_from_the_exact_value(tmp_path: Path) -> None:
    """Under float32 the product is exact; float16 is that value rounded once, not twice over bfloat16."""
    source = stage("fp8_block_deepseek", tmp_path / "source")
    made = {}
    for precision in ("float32", "float16", "keep"):
        convert(str(source), str(tmp_path / precision), precision=precision, on_overflow="inf")
        made[precision] = read_mirror(tmp_path / precision)
    differs = 0
    for name in expected("fp8_block_deepseek"):
        exact = made["float32"][name][0]
        assert np.array_equal(made["float16"][name][0], exact.astype(np.float16))
        assert np.array_equal(made["keep"][name][0], exact.astype(ml_dtypes.bfloat16))
        differs += np.count_nonzero(made["keep"][name][0].astype(np.float32) != exact)
    assert differs > 0
