"""The main job: two real models, through a real Hub client, by every transport and precision."""

from __future__ import annotations

import io
import json
from importlib.resources import files as package_files
from pathlib import Path

import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest
from huggingface_hub import HfApi, ModelCard, snapshot_download

from tensorport_hub import convert, mirror
from tensorport_hub.devhub import DevHub
from tests.e2e.conftest import CHECKPOINTS
from tests.e2e.reading import ROUNDED, arrays, contents, expected_gptoss, folder_contents, same, stored

PRECISIONS = ["keep", "bfloat16", "float16", "float32"]
SCHEMA = json.loads(package_files("tensorport_hub").joinpath("manifest.schema.json").read_text())


@pytest.mark.parametrize("transfer", ["xet", "lfs"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_minilm_equals_an_independent_decode(
    hub: DevHub, client: HfApi, minilm: Path, precision: str, transfer: str
) -> None:
    """Every array of the mirrored all-MiniLM-L6-v2 is what safetensors and ml_dtypes make of the source."""
    hub.add_repo("sentence-transformers/all-MiniLM-L6-v2", minilm)
    result = mirror(
        "sentence-transformers/all-MiniLM-L6-v2", "me/minilm", precision=precision, transfer=transfer
    )
    found = contents(hub, "me/minilm")
    source = stored(minilm / "model.safetensors")
    made = arrays(found)
    assert made.keys() == source.keys()
    for name, array in source.items():
        wanted = ROUNDED.get(precision) if array.dtype.kind == "f" else None
        assert same(made[name], array if wanted is None else array.astype(wanted)), name
    assert result.stats.parameters == 22_713_216
    assert result.stats.files_verified == 1
    _check_published(hub, client, "me/minilm", found)
    _check_card(found, base_model="sentence-transformers/all-MiniLM-L6-v2", license_="apache-2.0")


@pytest.mark.parametrize("transfer", ["xet", "lfs"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_gpt_oss_equals_transformers(
    hub: DevHub, client: HfApi, gptoss: Path, precision: str, transfer: str
) -> None:
    """Every array of the mirrored tiny gpt-oss is what transformers decoded, MXFP4 experts included."""
    hub.add_repo("openai/tiny", gptoss)
    result = mirror("openai/tiny", "me/tiny", precision=precision, transfer=transfer)
    found = contents(hub, "me/tiny")
    expected = expected_gptoss(CHECKPOINTS / "gptoss_mxfp4")
    made = arrays(found)
    assert made.keys() == expected.keys()
    for name, array in expected.items():
        wanted = ROUNDED["bfloat16" if precision == "keep" else precision]
        assert same(made[name], array.astype(wanted)), name
    lost = sum(under for _, under in result.losses.values())
    in_half = sum(np.count_nonzero(a) - np.count_nonzero(a.astype(np.float16)) for a in expected.values())
    assert lost == (in_half if precision == "float16" else 0)
    config = json.loads(found["config.json"])
    assert "quantization_config" not in config
    original = json.loads(json.loads(found["manifest.json"])["original_config"])
    assert original == json.loads((gptoss / "config.json").read_bytes())
    _check_published(hub, client, "me/tiny", found)
    _check_card(found, base_model="openai/tiny", license_="apache-2.0")


def _check_published(hub: DevHub, client: HfApi, repo_id: str, found: dict[str, bytes]) -> None:
    """Manifest and Hub agree on every file; the manifest keeps to its schema; one commit made all of it."""
    manifest = json.loads(found["manifest.json"])
    jsonschema.validate(manifest, SCHEMA)
    info = client.model_info(repo_id, files_metadata=True)
    siblings = {s.rfilename: s for s in info.siblings or []}
    listed = {entry["path"]: entry for entry in manifest["files"]}
    assert siblings.keys() - {".gitattributes", "manifest.json"} == listed.keys()
    for path, entry in listed.items():
        sibling = siblings[path]
        assert sibling.size == entry["size"]
        if sibling.lfs is None:
            assert sibling.blob_id == entry["git_oid"], path
        else:
            assert sibling.lfs.sha256 == entry["sha256"], path
        if path.endswith(".npy"):
            assert sibling.lfs is not None
            assert sibling.blob_id == entry["git_oid"], path
    assert len(client.list_repo_commits(repo_id)) == 2


def _check_card(found: dict[str, bytes], *, base_model: str, license_: str) -> None:
    data = ModelCard(found["README.md"].decode()).data.to_dict()
    assert data["base_model"] == base_model
    assert data["base_model_relation"] == "quantized"
    assert data["library_name"] == "tensorport-hub"
    assert data["license"] == license_


def test_snapshot_download_and_jax_read_it_back(hub: DevHub, gptoss: Path, tmp_path: Path) -> None:
    """The unmodified client downloads the mirror, and numpy and jax open every file alone."""
    hub.add_repo("openai/tiny", gptoss)
    mirror("openai/tiny", "me/tiny")
    folder = Path(
        snapshot_download("me/tiny", endpoint=hub.endpoint, token=hub.token, local_dir=tmp_path / "back")
    )
    expected = expected_gptoss(CHECKPOINTS / "gptoss_mxfp4")
    tensors = json.loads((folder / "manifest.json").read_bytes())["tensors"]
    for name, tensor in tensors.items():
        file = folder / tensor["stored"][0]["file"]
        mapped = np.load(file, mmap_mode="r")
        assert mapped.offset % 64 == 0
        array = jnp.load(file)
        assert array.dtype == jnp.bfloat16
        assert np.array_equal(np.asarray(array, np.float32), expected[name]), name


def test_equal_inputs_give_equal_bytes(hub: DevHub, gptoss: Path, minilm: Path, tmp_path: Path) -> None:
    """One and eight workers, Xet, LFS and a folder, small blocks and large: not one byte differs."""
    for source, folder in (("openai/tiny", gptoss), ("st/minilm", minilm)):
        hub.add_repo(source, folder)
        name = source.partition("/")[2]
        made = {}
        for workers in (1, 8):
            for transfer in ("xet", "lfs"):
                target = f"me/{name}-{workers}-{transfer}"
                mirror(source, target, workers=workers, transfer=transfer, precision="float16")
                made[target] = contents(hub, target)
            out = tmp_path / f"{name}-{workers}"
            convert(source, str(out), workers=workers, precision="float16", max_memory="400MB")
            made[str(out)] = folder_contents(out)
        first, *rest = made.values()
        for other in rest:
            assert other == first


def test_a_second_run_changes_nothing(hub: DevHub, client: HfApi, gptoss: Path) -> None:
    """Mirroring the same commit again makes no commit, and says so."""
    hub.add_repo("openai/tiny", gptoss)
    first = mirror("openai/tiny", "me/tiny")
    again = mirror("openai/tiny", "me/tiny")
    assert (first.changed, again.changed) == (True, False)
    assert again.commit == first.commit
    assert len(client.list_repo_commits("me/tiny")) == 2


def test_a_new_source_commit_replaces_the_mirror(hub: DevHub, gptoss: Path) -> None:
    """After the source moved, the mirror holds the new state and nothing of the old one."""
    hub.add_repo("openai/tiny", gptoss)
    mirror("openai/tiny", "me/tiny")
    hub.add_repo("openai/tiny", {"model.safetensors": _one_tensor()}, message="smaller")
    result = mirror("openai/tiny", "me/tiny", exclude=["nothing.*"])
    assert [f["path"] for f in result.manifest["files"] if f["path"].endswith(".npy")] == [
        "shard_000/only.npy"
    ]
    assert [p for p in hub.files("me/tiny") if p.endswith(".npy")] == ["shard_000/only.npy"]


def _one_tensor() -> bytes:
    from safetensors.numpy import save

    return save({"only": np.arange(6, dtype=np.float32).reshape(2, 3)})


def test_odd_shapes_and_splits_arrive(hub: DevHub, tmp_path: Path) -> None:
    """0-d, empty, 1-row and larger-than-a-shard tensors, the first of them included, read back equal."""
    from safetensors.numpy import save

    rng = np.random.default_rng(0)
    tensors = {
        "a.first_is_large": rng.standard_normal((1000, 33)).astype(np.float32),
        "b.scalar": np.array(3.5, np.float32),
        "c.empty": np.zeros((0, 7), np.float32),
        "d.one_row": rng.standard_normal((1, 5000)).astype(np.float32),
        "e.ids": np.arange(12, dtype=np.int64).reshape(1, 12),
        "f.mask": np.array([True, False, True]),
        "weird/../näme": np.ones(3, np.float16),
        "Weird/../näme": np.zeros(3, np.float16),
    }
    hub.add_repo("org/odd", {"model.safetensors": save(tensors)})
    result = mirror("org/odd", "me/odd", shard_size=40_000)
    found = contents(hub, "me/odd")
    made = arrays(found)
    for name, array in tensors.items():
        assert same(made[name], array), name
    stored_in = result.manifest["tensors"]["a.first_is_large"]["stored"]
    assert len(stored_in) == 4
    assert result.stats.parts == len(tensors) + 3
    for path, content in found.items():
        if path.endswith(".npy"):
            assert len(content) <= 40_000
            header = np.lib.format.read_magic(io.BytesIO(content))
            assert header == (1, 0)
    first = {s["file"].partition("/")[0] for s in stored_in}
    assert "shard_000" in first


def test_xet_without_a_server(
    home: Path, tmp_path: Path, gptoss: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a Hub whose Xet storage is hf_xet's own `local://` store, the same mirror comes out."""
    made = {}
    for kind in ("local", "http"):
        with DevHub(tmp_path / kind, xet=kind) as hub:
            monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
            monkeypatch.setenv("HF_TOKEN", hub.token)
            hub.add_repo("openai/tiny", gptoss)
            mirror("openai/tiny", "me/tiny", transfer="xet")
            made[kind] = contents(hub, "me/tiny")
    weights = [{p: c for p, c in files.items() if p.endswith(".npy")} for files in made.values()]
    assert weights[0] == weights[1]
    expected = expected_gptoss(CHECKPOINTS / "gptoss_mxfp4")
    for name, array in arrays(made["local"]).items():
        assert np.array_equal(array.astype(np.float32), expected[name]), name
