"""Mirroring again after the source moved: what stayed the same is neither read nor sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import HfApi
from safetensors.numpy import load, save

from tensorport_hub import convert, mirror, plan, verify
from tensorport_hub.core import manifest
from tensorport_hub.devhub import DevHub
from tensorport_hub.errors import LossError
from tests.e2e.interrupted import EVERY, MODEL, SOURCE, TARGET, interrupted, pulls, read_bytes
from tests.e2e.reading import contents

FIRST = "model-00001-of-00004.safetensors"
TRANSFERS = pytest.mark.parametrize("transfer", ["lfs", "xet"])


def run(target: str = TARGET, **options: Any) -> Any:
    return mirror(SOURCE, target, **{"transfer": "lfs", "workers": 2, **options})


@pytest.fixture
def mirrored(hub: DevHub) -> DevHub:
    """A source, and its mirror."""
    hub.add_repo(SOURCE, MODEL)
    run()
    hub.forget()
    return hub


def edited(**tensors: Any) -> bytes:
    """The first file with other tensors; None removes one."""
    kept = {**load(MODEL[FIRST]), **{f"layers.0.{name}": value for name, value in tensors.items()}}
    return save({name: value for name, value in kept.items() if value is not None})


def index(first: bytes) -> bytes:
    names = dict.fromkeys(load(first), FIRST)
    others = json.loads(MODEL["model.safetensors.index.json"])["weight_map"]
    return json.dumps({"weight_map": {n: f for n, f in others.items() if f != FIRST} | names}).encode()


def headers(hub: DevHub, **options: Any) -> int:
    """Bytes that a plan reads; forgets what was seen before and by it."""
    hub.forget()
    plan(SOURCE, TARGET, **options)
    nbytes = read_bytes(hub)
    hub.forget()
    return nbytes


def sent(hub: DevHub) -> int:
    """Bytes of content that the storage was sent."""
    return sum(s.bytes_in for s in hub.seen if s.origin == "cdn" and s.method in ("PUT", "POST"))


def assert_as_fresh(hub: DevHub, **options: Any) -> None:
    """The mirror is what a first run into another repository makes."""
    run("me/fresh", **options)
    assert contents(hub, TARGET) == contents(hub, "me/fresh")
    assert verify(TARGET, deep=True, against_source=True).ok


class TestHub:
    """A repository on the Hub."""

    @TRANSFERS
    def test_one_changed_tensor(self, hub: DevHub, client: HfApi, transfer: str) -> None:
        """Its file is read whole, no other; only the changed tensor is sent; one commit."""
        hub.add_repo(SOURCE, MODEL)
        run(transfer=transfer)
        hub.add_repo(SOURCE, {FIRST: edited(w3=np.ones((250, 100), np.float32))})
        told = plan(SOURCE, TARGET)
        assert (told.parts_kept, told.bytes_kept, told.checkpoints) == (18, 18 * 100_128, None)
        planned = headers(hub)
        result = run(transfer=transfer)
        assert (result.stats.parts_kept, result.stats.files_verified, result.changed) == (18, 1, True)
        once = planned + len(MODEL[FIRST])
        assert once <= read_bytes(hub) <= once + 2_000  # Xet asks what is there already
        assert sent(hub) < 200_000
        assert len(client.list_repo_commits(TARGET)) == 3
        assert_as_fresh(hub)

    def test_another_card(self, mirrored: DevHub) -> None:
        """Of a change that no weight has part in, nothing but small files goes out."""
        mirrored.add_repo(SOURCE, {"README.md": b"---\nlicense: apache-2.0\n---\n\n# Other\n"})
        planned = headers(mirrored)
        result = run()
        assert (result.stats.parts_kept, result.changed) == (24, True)
        assert read_bytes(mirrored) == planned
        assert [s for s in mirrored.seen if s.method == "PUT"] == []
        assert b"apache-2.0" in mirrored.read(TARGET, "README.md")
        assert_as_fresh(mirrored)

    def test_no_change(self, mirrored: DevHub, client: HfApi) -> None:
        """No commit, no byte of weights, and it says so."""
        planned = headers(mirrored)
        result = run()
        assert (result.changed, read_bytes(mirrored)) == (False, planned)
        assert len(client.list_repo_commits(TARGET)) == 2

    @TRANSFERS
    def test_shards_that_move(self, hub: DevHub, transfer: str) -> None:
        """A tensor more, and one less, move others to other shards: they are renamed there, not sent."""
        hub.add_repo(SOURCE, MODEL)
        run(shard_size="250KB", transfer=transfer)
        first = edited(a=np.ones((250, 100), np.float32), w1=None)
        hub.add_repo(SOURCE, {FIRST: first, "model.safetensors.index.json": index(first)})
        hub.forget()
        result = run(shard_size="250KB", transfer=transfer)
        assert result.stats.parts_kept == 18
        assert sent(hub) < 200_000
        assert not [path for path in hub.files(TARGET) if "layers.0.w1" in path]
        assert_as_fresh(hub, shard_size="250KB")

    def test_renamed_source_files(self, mirrored: DevHub) -> None:
        """The same bytes in files of other names, as when a fifth file is added: nothing of them is read."""
        renamed = {
            path.replace("of-00004", "of-00005"): data for path, data in MODEL.items() if path.endswith("rs")
        }
        extra = {"extra": np.ones((10, 10), np.float32)}
        weight_map = json.loads(MODEL["model.safetensors.index.json"])["weight_map"]
        weight_map = {n: f.replace("of-00004", "of-00005") for n, f in weight_map.items()}
        last = "model-00005-of-00005.safetensors"
        listed = json.dumps({"weight_map": weight_map | dict.fromkeys(extra, last)}).encode()
        mirrored.add_repo(SOURCE, {**renamed, last: save(extra), "model.safetensors.index.json": listed})
        planned = headers(mirrored)
        result = run()
        assert result.stats.parts_kept == 24
        assert read_bytes(mirrored) == planned + len(save(extra))
        assert_as_fresh(mirrored)

    def test_interrupted_and_continued(self, mirrored: DevHub, client: HfApi) -> None:
        """By checkpoints: `main` stays as it was until all is there, and nothing is sent twice."""
        changed = {f"w{i}": np.full((250, 100), i, np.float32) for i in range(6)}
        mirrored.add_repo(SOURCE, {FIRST: edited(**changed)})
        before = contents(mirrored, TARGET)
        interrupted(mirrored, uploads=4)
        assert contents(mirrored, TARGET) == before
        mirrored.forget()
        result = run(checkpoint_every=EVERY)
        assert result.stats.parts_kept == 18
        assert 1 <= result.stats.parts_resumed <= 4
        assert sent(mirrored) <= (6 - result.stats.parts_resumed) * 101_000
        assert pulls(client) == {1: "merged"}
        assert_as_fresh(mirrored)

    def test_a_damaged_mirror(self, mirrored: DevHub) -> None:
        """What the destination no longer has is made again, whatever its manifest says."""
        path = next(path for path in mirrored.files(TARGET) if "layers.2" in path)
        mirrored.add_repo(TARGET, {path: b"damaged"})
        mirrored.add_repo(SOURCE, {"config.json": b'{"new": 1}\n'})
        assert run().stats.parts_kept == 23
        assert_as_fresh(mirrored)

    @pytest.mark.parametrize(
        "options", [{"precision": "bfloat16"}, {"restart": True}, {"shard_size": "60KB"}]
    )
    def test_nothing_in_common(self, mirrored: DevHub, options: dict[str, Any]) -> None:
        """Another precision, another cut, or `restart`: everything is made again."""
        result = run(**options)
        assert result.stats.parts_kept == 0
        assert read_bytes(mirrored) >= sum(len(d) for p, d in MODEL.items() if p.endswith("rs"))
        assert_as_fresh(mirrored, **options)

    def test_losses_of_what_is_kept(self, hub: DevHub) -> None:
        """What rounding cost stays in manifest and card; where it must be an error, nothing is kept."""
        tiny, ones = np.full((250, 100), 1e-30, np.float32), np.ones((250, 200), np.float32)
        hub.add_repo(SOURCE, {"model.safetensors": save({"w": tiny, "x": ones})})
        run(precision="float16")
        hub.add_repo(SOURCE, {"config.json": b"{}\n\n"})
        result = run(precision="float16")
        assert (result.stats.parts_kept, result.losses) == (2, {"w": (0, 25_000)})
        assert_as_fresh(hub, precision="float16")
        with pytest.raises(LossError, match="become 0"):
            run(precision="float16", on_underflow="error")

    def test_losses_of_a_tensor_that_is_split(self, hub: DevHub) -> None:
        """What each part of it lost is not stated: it is made again, so that the sum is right."""
        values = np.full((400, 100), 1e-30, np.float32)
        values[:100] = 1
        hub.add_repo(SOURCE, {"model.safetensors": save({"w": values, "x": values[:150]})})
        run(precision="float16", shard_size="40KB")
        path = next(path for path in hub.files(TARGET) if "w.part-00000" in path)
        hub.add_repo(TARGET, {path: b"damaged"})
        hub.add_repo(SOURCE, {"config.json": b"{}\n\n"})
        assert run(precision="float16", shard_size="40KB").stats.parts_kept == 1
        assert_as_fresh(hub, precision="float16", shard_size="40KB")

    def test_many_files_that_move(self, hub: DevHub, client: HfApi) -> None:
        """More new names than a commit holds go by several, on the pull request; no byte of them is sent."""
        tensors = {f"w{i:04d}": np.full((4,), i, np.float32) for i in range(1_600)}
        hub.add_repo(SOURCE, {"model.safetensors": save(tensors)})
        run(shard_size="64KB")
        first = {"w0000": np.ones((15_000,), np.float32)}
        listed = {"weight_map": dict.fromkeys(tensors, "model.safetensors") | {"w0000": "a.safetensors"}}
        hub.add_repo(
            SOURCE,
            {"a.safetensors": save(first), "model.safetensors.index.json": json.dumps(listed).encode()},
        )
        hub.forget()
        result = run(shard_size="64KB")
        assert result.stats.parts_kept == 1_599
        assert sent(hub) < 200_000
        assert pulls(client) == {1: "merged", 2: "merged"}
        assert_as_fresh(hub, shard_size="64KB")

    def test_files_of_several_tensors(self, hub: DevHub) -> None:
        """A file stays whose tensors all come from source files that stayed; the others are made again."""
        options: dict[str, Any] = {"format": ["msgpack", "safetensors"], "shard_size": 450_000}
        hub.add_repo(SOURCE, MODEL)
        files = run(**options).stats.parts
        hub.add_repo(SOURCE, {FIRST: edited(w3=np.ones((250, 100), np.float32))})
        result = run(**options)
        assert (files, result.stats.parts_kept) == (12, 8)
        assert_as_fresh(hub, **options)

    def test_another_format_joins(self, mirrored: DevHub) -> None:
        """What is there is only listed under its new name; the source is read once more for the new one."""
        result = run(format=["numpy-direct", "msgpack"])
        assert result.stats.parts_kept == 24
        assert all(f.startswith(("numpy-direct/", "msgpack/")) for f in _weights(result.manifest))
        assert_as_fresh(mirrored, format=["numpy-direct", "msgpack"])
        again = run()
        assert (again.stats.parts_kept, again.stats.bytes_read) == (24, 0)
        assert_as_fresh(mirrored)

    def test_losses_of_kept_files_of_several_tensors(self, hub: DevHub) -> None:
        """They are those of each tensor, counted once, whatever format they were taken from."""
        tiny, ones = np.full((250, 100), 1e-30, np.float32), np.ones((250, 200), np.float32)
        hub.add_repo(SOURCE, {"model.safetensors": save({"v": tiny[:9], "w": tiny, "x": ones})})
        options: dict[str, Any] = {"precision": "float16", "format": ["numpy-direct", "msgpack"]}
        run(**options)
        hub.add_repo(SOURCE, {"config.json": b"{}\n\n"})
        result = run(**options)
        assert (result.stats.parts_kept, result.losses) == (4, {"v": (0, 900), "w": (0, 25_000)})
        assert_as_fresh(hub, **options)


class TestFolder:
    """A folder of this machine."""

    def test_one_changed_tensor(self, hub: DevHub, tmp_path: Path) -> None:
        """Files that stay are links to what was there; all is as a first run makes it."""
        hub.add_repo(SOURCE, MODEL)
        out, fresh = tmp_path / "out", tmp_path / "fresh"
        convert(SOURCE, str(out))
        kept = next(out.rglob("layers.2.w0.npy")).stat().st_ino
        hub.add_repo(SOURCE, {FIRST: edited(w3=np.ones((250, 100), np.float32))})
        planned = headers(hub)
        result = convert(SOURCE, str(out))
        assert (result.stats.parts_kept, result.stats.files_verified) == (18, 1)
        assert read_bytes(hub) == planned + len(MODEL[FIRST])
        assert next(out.rglob("layers.2.w0.npy")).stat().st_ino == kept
        convert(SOURCE, str(fresh))
        assert _files(out) == _files(fresh)
        assert verify(str(out), deep=True).ok

    def test_a_damaged_file_is_made_again(self, hub: DevHub, tmp_path: Path) -> None:
        """Every file that is kept was hashed."""
        hub.add_repo(SOURCE, MODEL)
        out = tmp_path / "out"
        convert(SOURCE, str(out))
        path = next(out.rglob("layers.2.w0.npy"))
        true = path.read_bytes()
        path.write_bytes(true[:-1] + b"x")
        hub.add_repo(SOURCE, {"config.json": b"{}\n\n"})
        assert convert(SOURCE, str(out)).stats.parts_kept == 23
        assert path.read_bytes() == true


def test_another_version_keeps_nothing(mirrored: DevHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another version of this tool made is made again once the source moves: its decoders may differ."""
    text = json.loads(mirrored.read(TARGET, manifest.PATH))
    text["generator"]["version"] = "0.0.1"
    mirrored.add_repo(TARGET, {manifest.PATH: json.dumps(text).encode()})
    mirrored.add_repo(SOURCE, {"config.json": b"{}\n\n"})
    assert run().stats.parts_kept == 0
    assert_as_fresh(mirrored)


def _weights(text: Any) -> set[str]:
    return {stored["file"] for tensor in text["tensors"].values() for stored in tensor["stored"]}


def _files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
