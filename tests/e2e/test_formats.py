"""Formats and stacked experts through a real Hub client: read by each format's own reader, and proven."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jsonschema
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
from safetensors import safe_open

from tensorport_hub import convert, mirror, open_checkpoint, plan, verify
from tensorport_hub.core.encode import msgpack
from tensorport_hub.core.encode.table import ENCODINGS
from tensorport_hub.core.safetensors import FIRST_READ
from tensorport_hub.devhub import DevHub
from tensorport_hub.errors import LimitError, UseError, VerificationError
from tensorport_hub.jax import load_gpt_oss, load_params
from tensorport_hub.ports import Event, Warned
from tests.core.encode.test_frames import READERS
from tests.e2e.conftest import CHECKPOINTS
from tests.e2e.reading import arrays, contents, expected_gptoss, folder_contents, same
from tests.e2e.test_cli import run
from tests.e2e.test_mirror import SCHEMA
from tests.mirrored import every_dtype, write

ALL = list(ENCODINGS)
SOURCE, TARGET = "openai/tiny", "me/tiny-all"
GOLDEN = Path(__file__).parents[1] / "golden" / "gpt_oss"
Arrays = dict[str, npt.NDArray[Any]]


@pytest.fixture
def seeded(hub: DevHub, gptoss: Path) -> DevHub:
    """A tiny gpt-oss with a licence and a tokenizer."""
    hub.add_repo(SOURCE, gptoss)
    hub.add_repo(SOURCE, {"LICENSE": b"do what you like\n", "tokenizer.json": b"{}"})
    return hub


def expected() -> Arrays:
    """What transformers decoded, in stored order."""
    found = expected_gptoss(CHECKPOINTS / "gptoss_mxfp4")
    return {name: array.astype(ml_dtypes.bfloat16) for name, array in found.items()}


def read_back(files: dict[str, bytes], form: str) -> Arrays:
    """All tensors of one format of a mirror, by its own reader."""
    own = {path: data for path, data in sorted(files.items()) if path.startswith(f"{form}/")} or files
    found: Arrays = {}
    for path, data in own.items():
        if path.endswith(".msgpack"):
            found |= READERS["msgpack"](data)
        elif path.endswith(".pkl"):
            found |= READERS["jax-pickle"](data)
        elif path.endswith(".safetensors"):
            found |= READERS["safetensors"](data)
    if form == "safetensors":
        for name in found:
            if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                found[name] = found[name].swapaxes(1, 2)
    return found or _by_numpy(files)


def _by_numpy(files: dict[str, bytes]) -> Arrays:
    """`numpy-direct` beside others: the entries of the manifest that are its."""
    text = json.loads(files["manifest.json"])
    for tensor in text["tensors"].values():
        tensor["stored"] = [s for s in tensor["stored"] if s.get("format") in (None, "numpy-direct")]
    return arrays({**files, "manifest.json": json.dumps(text).encode()})


def downloaded(hub: DevHub) -> int:
    """Bytes of weights that the source sent, headers included."""
    return sum(seen.bytes_out for seen in hub.seen if seen.path.startswith(f"/lfs/{SOURCE}/"))


class TestSeveral:
    """One run, four formats."""

    @pytest.mark.parametrize("transfer", ["xet", "lfs"])
    def test_all_hold_the_same(self, seeded: DevHub, transfer: str) -> None:
        """Every array is what transformers decoded; the manifest keeps to its schema."""
        mirror(SOURCE, TARGET, format=ALL, transfer=transfer)
        files = contents(seeded, TARGET)
        jsonschema.validate(json.loads(files["manifest.json"]), SCHEMA)
        want = expected()
        for form in ALL:
            found = read_back(files, form)
            assert found.keys() == want.keys()
            assert all(same(found[name], want[name]) for name in want), form

    @pytest.mark.parametrize(
        ("experts", "formats"),
        [("source", ["numpy-direct"]), ("source", ["safetensors"]), ("stacked", ["msgpack"])],
    )
    def test_they_cost_one_read(self, hub: DevHub, experts: str, formats: list[str]) -> None:
        """The Hub is asked for no more bytes of weights than for one of them alone."""
        hub.add_repo(SOURCE, GOLDEN)
        several = [form for form in ALL if experts == "source" or form != "safetensors"]
        counted = []
        for number, chosen in enumerate((formats, several)):
            hub.forget()
            result = mirror(SOURCE, f"me/{number}", format=chosen, experts=experts)
            counted.append((downloaded(hub), result.stats.bytes_read))
        assert counted[0] == counted[1]
        whole = (GOLDEN / "model.safetensors").stat().st_size
        if experts == "source":
            assert counted[0][1] == whole
            assert counted[0][0] == whole + FIRST_READ

    def test_where_files_lie(self, seeded: DevHub) -> None:
        """Each format in its own folder with its own config and tokenizer; card, manifest, licence on top."""
        mirror(SOURCE, TARGET, format=ALL)
        files = contents(seeded, TARGET)
        top = {path for path in files if "/" not in path}
        assert top == {"README.md", "manifest.json", "LICENSE"}
        assert {path.partition("/")[0] for path in files} - top == set(ALL)
        for form in ALL:
            for name in ("config.json", "tokenizer.json", "generation_config.json", "LICENSE"):
                assert f"{form}/{name}" in files
            assert "quantization_config" not in json.loads(files[f"{form}/config.json"])
        assert files["LICENSE"] == files["msgpack/LICENSE"]
        index = json.loads(files["safetensors/model.safetensors.index.json"])
        assert {f"safetensors/{name}" for name in index["weight_map"].values()} <= files.keys()

    def test_the_same_bytes_however_they_are_made(self, seeded: DevHub, tmp_path: Path) -> None:
        """Workers, memory, transport and order of words don't show; each format is as if it were alone."""
        mirror(SOURCE, TARGET, format=ALL, workers=1)
        mirror(SOURCE, str(tmp_path / "out"), format=ALL[::-1], workers=4, max_memory="600MB")
        files = contents(seeded, TARGET)
        assert folder_contents(tmp_path / "out") == files
        for form in ALL:
            mirror(SOURCE, str(tmp_path / form), format=form)
            alone = folder_contents(tmp_path / form)
            for path, data in alone.items():
                if path not in ("README.md", "manifest.json"):
                    assert files[f"{form}/{path}"] == data

    def test_running_again_changes_nothing(self, seeded: DevHub) -> None:
        """The second run finds everything in its place."""
        mirror(SOURCE, TARGET, format=ALL)
        again = mirror(SOURCE, TARGET, format=ALL)
        assert not again.changed
        assert again.stats.bytes_read == 0
        assert mirror(SOURCE, TARGET, format="msgpack").changed


@pytest.mark.parametrize("formats", [["msgpack"], ["jax-pickle"], ["safetensors"], ALL], ids=str)
@pytest.mark.parametrize("where", ["folder", "hub"])
class TestProof:
    """`verify` of what the other formats wrote."""

    @pytest.fixture
    def made(self, seeded: DevHub, tmp_path: Path, where: str, formats: list[str]) -> str:
        out = TARGET if where == "hub" else str(tmp_path / "out")
        mirror(SOURCE, out, format=formats)
        return out

    @pytest.mark.parametrize(
        "depth",
        [{}, {"deep": True}, {"against_source": True}, {"against_source": True, "sample": 2}],
        ids=str,
    )
    def test_it_is_proven(self, made: str, depth: dict[str, Any]) -> None:
        """At every depth."""
        result = verify(made, **depth)
        assert result.ok, result.faults

    def test_a_damaged_byte_is_found(
        self, made: str, where: str, seeded: DevHub, formats: list[str], tmp_path: Path
    ) -> None:
        """In the last weight file of each format: by its name."""
        if where == "hub":
            return  # a Hub states the digests itself
        weights = [s["file"] for t in _tensors(tmp_path / "out").values() for s in t["stored"]]
        for form in formats:
            path = [file for file in weights if len(formats) == 1 or file.startswith(f"{form}/")][-1]
            damage = tmp_path / "out" / path
            data = damage.read_bytes()
            damage.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
            assert [fault.what for fault in verify(made, deep=True).faults] == [path]
            damage.write_bytes(data)


def _tensors(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())["tensors"]
    return found


def change_manifest(folder: Path, change: Any) -> None:
    path = folder / "manifest.json"
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))


MOVED: dict[str, Any] = {
    "offset": lambda stored: stored.update(offset=stored["offset"] + 2),
    "no offset": lambda stored: stored.pop("offset"),
    "swapped": lambda stored: stored.update(swapped=True),
    "rows": lambda stored: stored.update(rows=[0, 1]),
    "format": lambda stored: stored.update(format="numpy-direct"),
}


@pytest.mark.parametrize("change", MOVED)
def test_a_manifest_that_places_tensors_elsewhere(gptoss: Path, tmp_path: Path, change: str) -> None:
    """Is refused: a tensor stands where its file's format puts it, and nowhere else."""
    convert(str(gptoss), str(tmp_path / "out"), format="msgpack")

    def moved(value: dict[str, Any]) -> None:
        MOVED[change](value["tensors"]["model.norm.weight"]["stored"][0])

    change_manifest(tmp_path / "out", moved)
    with pytest.raises(VerificationError, match=r"manifest\.json"):
        verify(str(tmp_path / "out"))


@pytest.mark.parametrize("formats", [5, [], ["msgpack"], ["msgpack", "msgpack"], ["msgpack", "zarr"], "zarr"])
def test_a_manifest_of_formats_that_are_none(gptoss: Path, tmp_path: Path, formats: object) -> None:
    """Is refused, by the name of the key."""
    convert(str(gptoss), str(tmp_path / "out"), format="msgpack")
    change_manifest(tmp_path / "out", lambda value: value.update(format=formats))
    with pytest.raises(VerificationError, match="format"):
        open_checkpoint(tmp_path / "out")


class TestRead:
    """`open_checkpoint` and the loaders, whatever the format."""

    @pytest.fixture(params=["folder", "hub"])
    def place(self, request: pytest.FixtureRequest, seeded: DevHub, tmp_path: Path) -> Any:
        def made(**options: Any) -> str:
            out = str(tmp_path / "out") if request.param == "folder" else TARGET
            mirror(SOURCE, out, **options)
            return out

        return made

    @pytest.mark.parametrize("form", ["msgpack", "safetensors"])
    def test_any_index(self, place: Any, form: str) -> None:
        """Arrays and slices of the right orientation, also of experts whose axes are swapped in the file."""
        with open_checkpoint(place(format=form), verify=True) as checkpoint:
            assert checkpoint.format == form
            want = expected()
            assert checkpoint.keys() == want.keys()
            for name, array in want.items():
                assert same(np.asarray(checkpoint[name]), array), name
                for index in [
                    (0,),
                    (slice(1, None, 2),),
                    (..., 0),
                    (..., slice(3, 9)),
                    (slice(0, 1), ..., 5),
                ]:
                    if array.ndim >= len([i for i in index if i is not ...]):
                        assert np.array_equal(
                            np.asarray(checkpoint[name][index]).view(np.uint16), array[index].view(np.uint16)
                        ), (name, index)

    @pytest.mark.parametrize("form", [None, "numpy-direct", "msgpack", "safetensors"])
    def test_one_of_several(self, place: Any, form: str | None) -> None:
        """The first one, or the one that is asked for; small files are those beside it."""
        with open_checkpoint(place(format=ALL), format=form) as checkpoint:
            assert checkpoint.format == (form or "numpy-direct")
            name = "model.layers.0.mlp.experts.down_proj"
            assert same(np.asarray(checkpoint[name]), expected()[name])
            assert json.loads(checkpoint.read_file("config.json"))["model_type"] == "gpt_oss"
            assert b"tensorport-hub" in checkpoint.read_file("README.md")

    @pytest.mark.parametrize("formats", [["safetensors"], ["msgpack"], ALL], ids=str)
    def test_loaders(self, place: Any, formats: list[str], tmp_path: Path) -> None:
        """`load_params` and `load_gpt_oss` give what they give of a `numpy-direct` mirror."""
        mirror(SOURCE, str(tmp_path / "plain"))
        out = place(format=formats)
        for load in (load_params, load_gpt_oss):
            one, two = load(out), load(tmp_path / "plain")
            assert jax.tree.structure(one) == jax.tree.structure(two)
            pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
            assert all(same(np.asarray(a), np.asarray(b)) for a, b in pairs)

    def test_pickles_are_never_read(self, place: Any) -> None:
        """A mirror of pickles alone is refused, with what to do instead; so is that format of several."""
        out = place(format=["jax-pickle"])
        with pytest.raises(UseError, match="which this tool never does") as raised:
            open_checkpoint(out)
        assert "--format numpy-direct" in raised.value.hint

    def test_a_format_that_is_not_there(self, place: Any) -> None:
        """Is named, with those that are."""
        with pytest.raises(UseError, match="has no format `msgpack`: it has safetensors"):
            open_checkpoint(place(format="safetensors"), format="msgpack")

    def test_every_dtype_through_every_format(self, tmp_path: Path) -> None:
        """Each dtype, 0-d and empty arrays, cut ones: the same lazily read arrays."""
        tensors = every_dtype()
        (tmp_path / "source").mkdir()
        (tmp_path / "source" / "model.safetensors").write_bytes(write(tensors))
        out = tmp_path / "out"
        convert(str(tmp_path / "source"), str(out), format=ALL, shard_size=1500, allow_large_shards=True)
        for form in ("numpy-direct", "msgpack", "safetensors"):
            with open_checkpoint(out, format=form) as checkpoint:
                for name, (_, array) in tensors.items():
                    assert same(np.asarray(checkpoint[name]), array), (form, name)


@pytest.mark.parametrize("shard_size", [7_000, 1 << 20])
def test_chunks_of_any_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_size: int) -> None:
    """Arrays above msgpack's limit, whole and cut over shards: by flax, lazily, and proven."""
    monkeypatch.setattr(msgpack, "CHUNK", 700)
    rng = np.random.default_rng(0)
    tensors = {
        "a": ("F32", rng.standard_normal((90, 30)).astype(np.float32)),
        "b": ("BF16", rng.standard_normal((701,)).astype(ml_dtypes.bfloat16)),
        "c": ("F32", rng.standard_normal((7, 5, 5)).astype(np.float32)),
        "d": ("F64", np.zeros((0, 3))),
    }
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    (source / "model.safetensors").write_bytes(write(tensors))
    result = convert(str(source), str(out), format=["msgpack", "numpy-direct"], shard_size=shard_size)
    jsonschema.validate(dict(result.manifest), SCHEMA)
    with open_checkpoint(out, format="msgpack", verify=True) as checkpoint:
        for name, (_, array) in tensors.items():
            assert same(np.asarray(checkpoint[name]), array)
            assert same(np.asarray(checkpoint[name][1::3]), array[1::3])
    found: dict[str, list[npt.NDArray[Any]]] = {}
    for file in sorted((out / "msgpack").glob("*.msgpack")):
        for name, array in READERS["msgpack"](file.read_bytes()).items():
            found.setdefault(name.partition(".part-")[0], []).append(array)
    assert all(same(np.concatenate(found[name]), array) for name, (_, array) in tensors.items())
    assert verify(str(out), deep=True, against_source=True, source=str(source)).ok


class TestStacked:
    """`--experts stacked` from the command line to JAX."""

    def test_gpt_oss(self, seeded: DevHub, tmp_path: Path) -> None:
        """gate_proj, up_proj and down_proj [E, out, in] with their biases, from one read of the source."""
        result = mirror(SOURCE, TARGET, experts="stacked")
        files = contents(seeded, TARGET)
        jsonschema.validate(json.loads(files["manifest.json"]), SCHEMA)
        found, want = arrays(files), expected()
        for name in [name for name in want if "gate_up_proj" in name]:
            both = want.pop(name)
            want[name.replace("gate_up_proj", "gate_proj")] = both[:, 0::2]
            want[name.replace("gate_up_proj", "up_proj")] = both[:, 1::2]
        assert found.keys() == want.keys()
        assert all(same(found[name], want[name]) for name in want)
        assert result.stats.bytes_read == (CHECKPOINTS / "gptoss_mxfp4" / "model.safetensors").stat().st_size
        assert verify(TARGET, deep=True, against_source=True).ok
        mirror(SOURCE, str(tmp_path / "source-layout"))
        one, two = load_gpt_oss(TARGET), load_gpt_oss(tmp_path / "source-layout")
        pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
        assert all(same(np.asarray(a), np.asarray(b)) for a, b in pairs)

    def moe(self, folder: Path, skip: str = "") -> dict[str, npt.NDArray[np.float32]]:
        """A Mixtral of two files whose experts lie in the order of their names."""
        rng = np.random.default_rng(0)
        stem = "model.layers.0.block_sparse_moe.experts"
        tensors = {
            f"{stem}.{n}.{name}.weight": rng.standard_normal(shape).astype(np.float32)
            for n in range(11)
            for name, shape in (("w1", (6, 4)), ("w2", (4, 6)), ("w3", (6, 4)))
            if f"{n}.{name}" != skip
        }
        names = sorted(tensors)
        folder.mkdir(exist_ok=True)
        placed = {}
        for number, own in enumerate((names[::2], names[1::2])):
            file = f"model-0000{number + 1}-of-00002.safetensors"
            safetensors.numpy.save_file({name: tensors[name] for name in own}, folder / file)
            placed |= dict.fromkeys(own, file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
        (folder / "config.json").write_text('{"model_type": "mixtral", "num_local_experts": 11}')
        return tensors

    @pytest.mark.parametrize("formats", [["numpy-direct"], ["msgpack"]])
    def test_experts_that_are_stored_one_by_one(self, tmp_path: Path, formats: list[str]) -> None:
        """One array a projection, in the order of their numbers, across files; proven against the source."""
        tensors = self.moe(tmp_path / "moe")
        out = str(tmp_path / "out")
        result = convert(str(tmp_path / "moe"), out, experts="stacked", format=formats)
        jsonschema.validate(dict(result.manifest), SCHEMA)
        with open_checkpoint(out) as checkpoint:
            assert len(checkpoint) == 3
            for name in ("w1", "w2", "w3"):
                stem = "model.layers.0.block_sparse_moe.experts"
                want = np.stack([tensors[f"{stem}.{n}.{name}.weight"] for n in range(11)])
                assert same(np.asarray(checkpoint[f"{stem}.{name}.weight"]), want)
        assert verify(out, deep=True, against_source=True, source=str(tmp_path / "moe")).ok
        shown = plan(str(tmp_path / "moe"), str(tmp_path / "new"), experts="stacked", format=formats)
        assert shown.bytes_again == sum(array.nbytes for array in tensors.values())
        assert shown.bytes_in == result.stats.bytes_read

    def test_a_missing_expert_is_exit_3(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Named, by `plan` already."""
        self.moe(tmp_path / "moe", skip="7.w2")
        assert run("plan", str(tmp_path / "moe"), str(tmp_path / "out"), "--experts", "stacked") == 3
        said = capsys.readouterr().err
        assert "experts.7.w2.weight` is missing: expected 11 experts" in said
        assert "hint: `--experts source`" in said


class TestUse:
    """What is asked for that can't be."""

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--experts", "stacked", "--format", "safetensors"], "exclude each other"),
            (["--experts", "stacked", "--quantized", "keep"], "exclude each other"),
        ],
    )
    def test_what_excludes_each_other(
        self, gptoss: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
    ) -> None:
        """Exit 2, before anything is read."""
        assert run("plan", str(gptoss), str(tmp_path / "out"), *words) == 2
        assert said in capsys.readouterr().err

    def test_unknown_formats(self, gptoss: Path, tmp_path: Path) -> None:
        """The library names those that there are."""
        with pytest.raises(UseError, match="`zarr` is no format: expected one of `numpy-direct`"):
            convert(str(gptoss), str(tmp_path / "out"), format=["msgpack", "zarr"])

    def test_a_tensor_above_the_shard_size(self, gptoss: Path, tmp_path: Path) -> None:
        """`safetensors` can't cut it: exit 7 that names it, at plan time; it stands alone if it may."""
        out = tmp_path / "out"
        with pytest.raises(LimitError, match=r"experts\.gate_up_proj` alone fills") as raised:
            plan(str(gptoss), str(out), format=["safetensors", "numpy-direct"], shard_size=30_000)
        assert "--allow-large-shards" in raised.value.hint
        convert(str(gptoss), str(out), format="safetensors", shard_size=30_000, allow_large_shards=True)
        found: Arrays = {}
        for file in sorted(out.glob("*.safetensors")):
            with safe_open(file, "numpy") as opened:
                names = list(opened.keys())
                assert file.stat().st_size <= 30_000 or len(names) == 1
                found |= {name: opened.get_tensor(name) for name in names}
        assert found.keys() == expected().keys()

    def test_pickles_come_with_a_warning(self, gptoss: Path, tmp_path: Path) -> None:
        """In the result, as an event, and in the card; other formats don't have it."""
        events: list[Event] = []
        result = convert(str(gptoss), str(tmp_path / "out"), format="jax-pickle", on_event=events.append)
        assert any("run any code" in warning for warning in result.warnings)
        assert any(isinstance(event, Warned) and "run any code" in event.message for event in events)
        assert "run any code" in (tmp_path / "out" / "README.md").read_text()
        other = convert(str(gptoss), str(tmp_path / "other"), format="msgpack")
        assert not other.warnings
        assert "run any code" not in (tmp_path / "other" / "README.md").read_text()

    def test_plan_shows_them(self, gptoss: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Formats and experts, for people; every file with its size, for programs."""
        words = ["plan", str(gptoss), str(tmp_path / "out"), "--format", "msgpack", "--format", "safetensors"]
        assert run(*words) == 0
        assert re.search(r"^formats +msgpack, safetensors", capsys.readouterr().out, re.MULTILINE)
        assert run(*words, "--json") == 0
        files = json.loads(capsys.readouterr().out)["files"]
        convert(str(gptoss), str(tmp_path / "out"), format=["msgpack", "safetensors"])
        made = {path: len(data) for path, data in folder_contents(tmp_path / "out").items()}
        assert {file["path"]: file["size"] for file in files}.items() <= made.items()
        assert len(files) == 2


def test_transformers_loads_these_very_files(tmp_path: Path) -> None:
    """What the golden script loaded with transformers, with the same logits, is what is made here."""
    golden = json.loads((GOLDEN / "safetensors.json").read_text())
    convert(str(GOLDEN), str(tmp_path / "out"), format="safetensors", shard_size=200_000)
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("model*")}
    assert {name: hashlib.sha256(data).hexdigest() for name, data in files.items()} == golden


@pytest.mark.parametrize("formats", [["msgpack"], ["jax-pickle"], ["safetensors"], ALL], ids=str)
def test_what_the_card_says_to_type(seeded: DevHub, home: Path, formats: list[str]) -> None:
    """Each way to load, with this repository's id put in, but transformers' (the golden script does that)."""
    from tests.e2e.test_snippets import typed

    mirror(SOURCE, TARGET, format=formats)
    card = contents(seeded, TARGET)["README.md"].decode()
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    kinds = {"flax": "msgpack", "pickle": "jax-pickle", "transformers": "safetensors"}
    for form in formats:
        assert form in card
    for block in blocks:
        code = block.replace("OWNER/NAME", TARGET)
        if "transformers" in code:
            assert 'subfolder="safetensors"' in code or len(formats) == 1
            continue
        said = typed(f"{code}\nprint(len(params))", home).strip()
        assert int(said) == (20 if "load_params" not in code else 2), code
    assert {kinds[word] for word in kinds if word in "".join(blocks)} == set(formats) - {"numpy-direct"}


@pytest.mark.parametrize("experts", ["source", "stacked"])
@pytest.mark.parametrize("transfer", ["xet", "lfs", "folder"])
def test_an_interrupted_run_is_continued(seeded: DevHub, tmp_path: Path, transfer: str, experts: str) -> None:
    """Killed after any file, the same command ends with the bytes of an undisturbed run."""
    formats = [form for form in ALL if experts == "source" or form != "safetensors"]
    options: dict[str, Any] = {"format": formats, "shard_size": 40_000, "allow_large_shards": True}
    options |= {"experts": experts, "checkpoint_every": 2_000}
    options |= {"transfer": transfer} if transfer != "folder" else {}
    mirror(SOURCE, str(tmp_path / "whole"), **{**options, "transfer": "auto"})
    whole = folder_contents(tmp_path / "whole")
    for stop_at in (2, 12, 25):
        target = f"me/stopped-{stop_at}" if transfer != "folder" else str(tmp_path / f"stopped-{stop_at}")
        code = (
            "import sys, os\n"
            "import tensorport_hub.engine.run\n"
            "from tensorport_hub import mirror\n"
            "from tensorport_hub.ports import PartDone\n"
            "sys.modules['tensorport_hub.engine.run'].SMALL_NBYTES = 0  # files end one after another\n"
            "left = [int(sys.argv[2])]\n"
            "def stop(event):\n"
            "    left[0] -= isinstance(event, PartDone)\n"
            "    if left[0] < 0: os._exit(9)\n"
            f"mirror({SOURCE!r}, sys.argv[1], on_event=stop, **{options!r})\n"
        )
        ended = subprocess.run([sys.executable, "-c", code, target, str(stop_at)], timeout=120, check=False)
        assert ended.returncode == 9
        result = mirror(SOURCE, target, **options)
        found = contents(seeded, target) if transfer != "folder" else folder_contents(Path(target))
        assert found == whole
        assert result.stats.parts_resumed > 0


def hollow(folder: Path, tensors: dict[str, tuple[str, list[int]]], config: dict[str, Any]) -> int:
    """A checkpoint of zeros that takes no room on the disk; how many bytes it says that it has."""
    folder.mkdir()
    head, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        nbytes = int(np.prod(shape)) * {"U8": 1, "BF16": 2, "F32": 4}[dtype]
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(head).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    (folder / "config.json").write_text(json.dumps(config))
    return at


STEM = "model.layers.0.mlp.experts"
LARGE: dict[str, tuple[dict[str, tuple[str, list[int]]], list[str], int]] = {
    "a tensor of 400 MB in two containers": (
        {"w": ("F32", [6_000, 16_384])},
        ["--format", "msgpack", "--format", "safetensors"],
        210,
    ),
    "gpt-oss' experts, turned round": (
        {
            f"{STEM}.gate_up_proj_blocks": ("U8", [13, 5760, 90, 16]),
            f"{STEM}.gate_up_proj_scales": ("U8", [13, 5760, 90]),
        },
        ["--format", "safetensors"],
        300,
    ),
    "gpt-oss' experts, gate and up apart": (
        {
            f"{STEM}.gate_up_proj_blocks": ("U8", [13, 5760, 90, 16]),
            f"{STEM}.gate_up_proj_scales": ("U8", [13, 5760, 90]),
        },
        ["--experts", "stacked"],
        210,
    ),
    "experts that are stored one by one": (
        {f"{STEM}.{n}.up_proj.weight": ("BF16", [4096, 7168]) for n in range(6)},
        ["--experts", "stacked"],
        210,
    ),
}


@pytest.mark.parametrize("case", LARGE)
def test_memory_stays_below_the_cap(tmp_path: Path, case: str) -> None:
    """Tensors that are larger than the cap pass through, and never lie in memory."""
    tensors, words, cap = LARGE[case]
    config = {"model_type": "gpt_oss"} if "gpt-oss" in case else {}
    hollow(tmp_path / "source", tensors, config)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tensorport_hub", "convert", "--max-memory", f"{cap}MB", "--json"),
            *("--input", str(tmp_path / "source"), "--output", str(tmp_path / "out"), *words),
        ],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peak = json.loads(done.stdout)["stats"]["peak_memory"]
    assert peak < cap * 1_000_000
    assert json.loads(done.stdout)["totals"]["bytes"] > 1.3 * cap * 1_000_000
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert not any(array[-1].any() for array in checkpoint.values())
