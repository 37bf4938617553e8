"""gpt-oss parameters: either layout of the experts gives the same, whatever lacks or differs is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensorport_hub import convert, open_checkpoint
from tensorport_hub.devhub import DevHub
from tensorport_hub.errors import CheckpointError, UseError
from tensorport_hub.jax import load_gpt_oss
from tests.jax.test_params import flat
from tests.mirrored import make_mirror, same

CHECKPOINT = Path(__file__).parents[1] / "golden" / "gpt_oss"
REPO = "me/gpt-oss"
EXPERTS = "model.layers.0.mlp.experts"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror in the `source` layout."""
    out = tmp_path_factory.mktemp("gptoss") / "out"
    convert(str(CHECKPOINT), str(out), shard_size=60_000)
    return out


@pytest.fixture(scope="module")
def apart(folder: Path) -> Path:
    """The same in the `stacked` layout."""
    out = folder.with_name("stacked")
    convert(str(CHECKPOINT), str(out), experts="stacked", shard_size=60_000)
    return out


def edited(folder: Path, out: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The stacked mirror with other tensors."""
    with open_checkpoint(folder) as opened:
        tensors = {name: (array.logical_dtype, np.asarray(array)) for name, array in opened.items()}
        config = opened.read_file("config.json")
    change(tensors)
    return make_mirror(out / "edited", tensors, config=config)


def test_gate_and_up_come_apart(folder: Path) -> None:
    """Rows 0::2 and 1::2 of the interleaved tensor and of its bias; everything else by its own name."""
    with open_checkpoint(folder) as opened:
        found = flat(load_gpt_oss(opened))
        for name, array in opened.items():
            if "gate_up_proj" in name:
                assert same(found[name.replace("gate_up_proj", "gate_proj")], array[:, 0::2])
                assert same(found[name.replace("gate_up_proj", "up_proj")], array[:, 1::2])
            else:
                assert same(found[name], array[...])
    assert not any("gate_up" in name for name in found)
    assert found[f"{EXPERTS}.gate_proj"].shape == (4, 96, 64)
    assert found[f"{EXPERTS}.down_proj"].shape == (4, 64, 96)


def test_stacked_is_the_other_layout_taken_apart(folder: Path, apart: Path) -> None:
    """`--experts stacked` writes what is taken apart here from the rows of gate_up."""
    with open_checkpoint(folder) as one, open_checkpoint(apart) as two:
        names = {name for name in one if "gate_up_proj" in name}
        for name in names:
            assert same(two[name.replace("gate_up_proj", "gate_proj")][...], one[name][:, 0::2].copy())
            assert same(two[name.replace("gate_up_proj", "up_proj")][...], one[name][:, 1::2].copy())
        assert len(two) == len(one) + len(names)
        assert all(same(two[name][...], one[name][...]) for name in one.keys() - names)


def test_either_layout_gives_the_same(folder: Path, apart: Path) -> None:
    """Names, dtypes and bits."""
    one, two = (flat(load_gpt_oss(where)) for where in (folder, apart))
    assert one.keys() == two.keys()
    assert all(same(one[name], np.asarray(two[name])) for name in one)


def test_each_byte_is_read_once(hub: DevHub, folder: Path) -> None:
    """Gate and up lie in the same rows: the Hub is asked for them once."""
    hub.add_repo(REPO, folder)
    hub.forget()
    params = load_gpt_oss(REPO)
    sent = sum(seen.bytes_out for seen in hub.seen if seen.origin == "cdn")
    assert sent == sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def test_options(folder: Path) -> None:
    """dtype and sharding are those of `load_params`; a function sees the names and shapes of the result."""
    seen: dict[str, tuple[int, ...]] = {}

    def where(name: str, shape: tuple[int, ...]) -> None:
        seen[name] = shape

    found = flat(load_gpt_oss(folder, dtype="float32", sharding=where))
    assert {name: leaf.shape for name, leaf in found.items()} == seen
    assert {leaf.dtype for leaf in found.values()} == {jnp.dtype("float32")}
    with pytest.raises(UseError, match="tree of shardings"):
        load_gpt_oss(folder, sharding={"model": None})


class TestRefused:
    """What is not the gpt-oss that its configuration calls for."""

    def test_missing_and_extra(self, apart: Path, tmp_path: Path) -> None:
        """All of them are listed."""

        def change(tensors: dict[str, Any]) -> None:
            tensors["model.layers.9.extra"] = tensors.pop("model.norm.weight")
            del tensors[f"{EXPERTS}.up_proj_bias"]

        with pytest.raises(CheckpointError) as raised:
            load_gpt_oss(edited(apart, tmp_path, change))
        for words in (
            "`model.norm.weight` is missing",
            f"`{EXPERTS}.up_proj_bias` is missing",
            "`model.layers.9.extra` in",
        ):
            assert words in raised.value.message
        assert raised.value.message.startswith("3 problems")

    def test_shapes(self, apart: Path, tmp_path: Path) -> None:
        """A parameter of another shape, a transposed one too, is named with both."""

        def change(tensors: dict[str, Any]) -> None:
            dtype, values = tensors[f"{EXPERTS}.down_proj"]
            tensors[f"{EXPERTS}.down_proj"] = (dtype, values.swapaxes(1, 2).copy())

        with pytest.raises(CheckpointError, match=r"expected \[4, 64, 96\], got \[4, 96, 64\]"):
            load_gpt_oss(edited(apart, tmp_path, change))

    def test_packed_experts(self, tmp_path: Path) -> None:
        """A mirror that kept the quantized tensors does not hold the parameters; the hint says so."""
        convert(str(CHECKPOINT), str(tmp_path / "out"), quantized="keep")
        with pytest.raises(CheckpointError, match="gate_proj` is missing") as raised:
            load_gpt_oss(tmp_path / "out")
        assert raised.value.message.count("is missing") == 4 * 3  # gate, up and down of each layer
        assert raised.value.message.count("one too many") == 4 * 4  # blocks and scales of two tensors
        assert "--quantized keep" in raised.value.hint

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"model_type": "llama"}, "expected `model_type` `gpt_oss`, got `llama`"),
            ({"model_type": None}, "no gpt-oss"),
            ({"hidden_size": None}, "expected [320, None], got [320, 64]"),
            ({"hidden_size": 128}, "wrong shape"),
            ({"num_hidden_layers": 3}, "one too many"),
            ({"num_hidden_layers": 10**12}, "missing"),
            ({"num_hidden_layers": "x"}, "no gpt-oss'"),
            ({"tie_word_embeddings": True}, "`lm_head.weight` in"),
            ({"attention_bias": False}, "q_proj.bias` in"),
        ],
        ids=str,
    )
    def test_other_configurations(
        self, folder: Path, tmp_path: Path, change: Mapping[str, Any], words: str
    ) -> None:
        """A configuration that is not this checkpoint's is an error that says where they differ."""
        config = {**json.loads((CHECKPOINT / "config.json").read_bytes()), **change}
        with open_checkpoint(folder) as opened:
            tensors = {name: (a.logical_dtype, np.asarray(a)) for name, a in opened.items()}
        out = make_mirror(tmp_path / "out", tensors, config=json.dumps(config).encode())
        with pytest.raises(CheckpointError) as raised:
            load_gpt_oss(out)
        assert words in raised.value.message

    @pytest.mark.parametrize("data", [b"[]", b"1", b"nonsense", b"[" * 50_000], ids=range(4))
    def test_no_configuration(self, folder: Path, tmp_path: Path, data: bytes) -> None:
        """A config.json that is none of a model is an error, whatever it holds."""
        with open_checkpoint(folder) as opened:
            tensors = {
                "w": (opened["model.norm.weight"].logical_dtype, np.asarray(opened["model.norm.weight"]))
            }
        manifest = make_mirror(tmp_path / "out", tensors) / "manifest.json"
        config = tmp_path / "out" / "config.json"
        _replace_file(manifest, config, data)
        with pytest.raises(CheckpointError):
            load_gpt_oss(tmp_path / "out")


def _replace_file(manifest: Path, file: Path, data: bytes) -> None:
    """Another content of a carried file, entered in the manifest."""
    import hashlib

    file.write_bytes(data)
    value = json.loads(manifest.read_bytes())
    for entry in value["files"]:
        if entry["path"] == file.name:
            entry.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    manifest.write_text(json.dumps(value))
