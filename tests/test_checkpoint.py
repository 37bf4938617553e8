"""Checkpoints read lazily: any index gives what numpy would, and asks for no more than it needs."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from huggingface_hub import snapshot_download
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tensorport_hub import lazy, mirror, open_checkpoint, verify
from tensorport_hub.checkpoint import Checkpoint
from tensorport_hub.core import manifest
from tensorport_hub.core.digest import pointer
from tensorport_hub.core.indexing import select
from tensorport_hub.core.manifest import FileEntry
from tensorport_hub.devhub import DevHub, Fault
from tensorport_hub.edge import mapped, retry
from tensorport_hub.errors import SourceError, TensorportError, UseError, VerificationError
from tests.core.test_indexing import rows_needed
from tests.mirrored import PACKED, every_dtype, floats, make_mirror, same

TENSORS = every_dtype()
SHARD = 1000
"""Bytes: `embed.weight` and `deep` are cut into several files."""
REPO = "me/mirror"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror with a tensor of every dtype."""
    return make_mirror(tmp_path_factory.mktemp("mirror") / "out", TENSORS, shard_size=SHARD)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[DevHub]:
    """A devhub that holds the same mirror, and an empty cache."""
    root = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch, DevHub(root / "hub") as running:
        patch.setenv("HF_HOME", str(root / "home"))
        patch.setenv("HF_ENDPOINT", running.endpoint)
        patch.setenv("HF_TOKEN", running.token)
        patch.setattr(retry, "_FIRST", 0.01)
        running.add_repo(REPO, folder)
        yield running


@pytest.fixture(params=["folder", "hub"])
def checkpoint(request: pytest.FixtureRequest, folder: Path, hub: DevHub) -> Iterator[Checkpoint]:
    """The mirror, opened as a folder and as a repository."""
    with open_checkpoint(folder if request.param == "folder" else REPO) as opened:
        hub.forget()
        yield opened


@pytest.fixture
def remote(hub: DevHub) -> Iterator[Checkpoint]:
    """The repository, opened; what the devhub sees from now on are reads."""
    with open_checkpoint(REPO) as opened:
        hub.forget()
        yield opened


def downloaded(hub: DevHub) -> int:
    """Bytes of files that the devhub sent since it was told to forget."""
    return sum(seen.bytes_out for seen in hub.seen if seen.method == "GET" and seen.range)


class TestMapping:
    """A checkpoint is a mapping of names to arrays that know what they are."""

    def test_names(self, checkpoint: Checkpoint) -> None:
        """All of them, in the manifest's order."""
        assert list(checkpoint) == list(checkpoint.manifest["tensors"])
        assert set(checkpoint) == set(TENSORS)
        assert len(checkpoint) == len(TENSORS)
        assert "embed.weight" in checkpoint
        assert "embed" not in checkpoint
        assert checkpoint.get("embed") is None

    def test_a_name_that_is_none(self, checkpoint: Checkpoint) -> None:
        """A KeyError that names the checkpoint, and the name that was meant."""
        with pytest.raises(KeyError, match=r"did you mean `embed\.weight`"):
            checkpoint["embed.weights"]

    @pytest.mark.parametrize("name", TENSORS)
    def test_every_dtype(self, checkpoint: Checkpoint, name: str) -> None:
        """Facts without reading, then the values, bit for bit; small floats as ml_dtypes has them."""
        dtype, values = TENSORS[name]
        array = checkpoint[name]
        assert (array.name, array.shape, array.dtype) == (name, values.shape, values.dtype)
        assert (array.ndim, array.size, array.nbytes) == (values.ndim, values.size, values.nbytes)
        assert array.logical_dtype == dtype
        assert same(array, values)
        assert same(array[...], values)

    @pytest.mark.parametrize("dtype", PACKED)
    def test_packed_floats_come_as_bytes(self, checkpoint: Checkpoint, dtype: str) -> None:
        """F4 and F6: uint8, the last axis in bytes; the manifest's dtype and shape are told beside it."""
        array = checkpoint[f"packed.{dtype.lower()}"]
        assert array.dtype == np.uint8
        assert array.shape == (3, PACKED[dtype])
        assert (array.logical_dtype, array.logical_shape) == (dtype, (3, 8))

    def test_opening_reads_the_manifest_alone(self, hub: DevHub) -> None:
        """One question to the API and manifest.json; facts of all arrays cost nothing."""
        hub.forget()
        with open_checkpoint(REPO) as opened:
            assert sum(array.nbytes for array in opened.values())
        assert {seen.path for seen in hub.seen} == {
            f"/api/models/{REPO}",
            f"/{REPO}/resolve/{opened.commit}/manifest.json",
        }

    def test_carried_files(self, checkpoint: Checkpoint) -> None:
        """A small file of the mirror, compared with its sha256; one that it has not is an error."""
        assert json.loads(checkpoint.read_file("config.json")) == {"model_type": "none"}
        with pytest.raises(UseError, match=r"no file `absent\.json`"):
            checkpoint.read_file("absent.json")

    def test_it_says_what_it_is(self, checkpoint: Checkpoint, hub: DevHub) -> None:
        """Names, dtype and shape for people, without a request."""
        assert checkpoint.name in repr(checkpoint)
        assert repr(checkpoint["deep"]) == "<LazyArray `deep` float16 [5, 6, 7, 3]>"
        assert not hub.seen


@st.composite
def questions(draw: st.DrawFn) -> tuple[str, Any]:
    """A tensor and a basic index of it."""
    name = draw(st.sampled_from([n for n in TENSORS if n in ("embed.weight", "deep", "norm", "scalar.f32")]))
    shape = TENSORS[name][1].shape
    return name, draw(npst.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))


class TestIndexing:
    """Any basic index."""

    @settings(max_examples=400, deadline=None)
    @given(question=questions())
    def test_of_a_folder(self, folder: Path, question: tuple[str, Any]) -> None:
        """Equal to numpy's result on the whole array: values, dtype, shape, scalar or array."""
        name, index = question
        with open_checkpoint(folder) as opened:
            self.check(opened, name, index)

    @settings(max_examples=200, deadline=None)
    @given(
        question=questions(), gap=st.sampled_from([0, 64, lazy.GAP]), longest=st.sampled_from([100, 8 << 20])
    )
    def test_of_a_repository(self, hub: DevHub, question: tuple[str, Any], gap: int, longest: int) -> None:
        """The same; with steps of 1, or where gaps are not read, no byte beyond the rows that it needs."""
        name, index = question
        values = TENSORS[name][1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lazy, "GAP", gap)
            patch.setattr(lazy, "_LONGEST", longest)
            with open_checkpoint(REPO) as opened:
                asked = opened[name].requested(index)
                hub.forget()
                self.check(opened, name, index)
        assert downloaded(hub) == asked
        if values.ndim and (gap == 0 or abs(select(index, values.shape).axes[0].step) == 1):
            assert asked <= rows_needed(index, values.shape) * values[0].nbytes
        assert asked <= values.nbytes

    def check(self, opened: Checkpoint, name: str, index: Any) -> None:
        values = TENSORS[name][1]
        found, expected = opened[name][index], values[index]
        assert type(found) is type(expected)
        assert same(found, np.asarray(expected))

    def test_a_number_for_every_axis_is_a_scalar(self, checkpoint: Checkpoint) -> None:
        """As of an array."""
        found = checkpoint["embed.weight"][3, -1]
        assert isinstance(found, ml_dtypes.bfloat16)
        assert same(found, TENSORS["embed.weight"][1][3, -1])

    @pytest.mark.parametrize("index", [50, (0, 24), (0, 0, 0), [1, 2], np.array([True] * 50), "x"], ids=repr)
    def test_other_indices(self, checkpoint: Checkpoint, hub: DevHub, index: Any) -> None:
        """Out of bounds, or no basic index: an IndexError, before anything is read."""
        with pytest.raises(IndexError):
            checkpoint["embed.weight"][index]
        assert not hub.seen

    def test_rows_one_after_another(self, checkpoint: Checkpoint) -> None:
        """Iterating gives the rows; a 0-d array has none, and no length."""
        rows = list(checkpoint["embed.weight"])
        assert same(np.stack(rows), TENSORS["embed.weight"][1])
        assert len(checkpoint["embed.weight"]) == 50
        with pytest.raises(TypeError):
            len(checkpoint["scalar.f32"])
        with pytest.raises(TypeError):
            iter(checkpoint["scalar.f32"])


class TestArray:
    """`__array__`, as numpy 2 asks it."""

    def test_dtype(self, checkpoint: Checkpoint) -> None:
        """`numpy.asarray` converts where another dtype is wanted."""
        with np.errstate(invalid="ignore"):
            expected = TENSORS["one.bf16"][1].astype(np.float32)
            assert same(np.asarray(checkpoint["one.bf16"], np.float32), expected)

    def test_copy(self, checkpoint: Checkpoint) -> None:
        """A copy that was asked for is the caller's own: it may be written to."""
        mine = np.array(checkpoint["embed.weight"], copy=True)
        mine[...] = 0
        assert same(checkpoint["embed.weight"], TENSORS["embed.weight"][1])

    def test_no_copy(self, folder: Path, remote: Checkpoint) -> None:
        """`copy=False` gives the mapped file, and is refused where that is not the answer."""
        with open_checkpoint(folder) as local:
            values = local["norm"].__array__(copy=False)
            assert same(values, TENSORS["norm"][1])
            for array, dtype in (
                (local["norm"], np.float64),
                (local["embed.weight"], None),
                (remote["norm"], None),
            ):
                with pytest.raises(ValueError, match="without a copy"):
                    array.__array__(dtype, copy=False)

    def test_arithmetic(self, checkpoint: Checkpoint) -> None:
        """numpy's functions take a lazy array as any array."""
        _, values = TENSORS["one.i32"]
        assert np.array_equal(np.add(checkpoint["one.i32"], 1), values + 1)
        assert np.concatenate([checkpoint["one.i32"], checkpoint["one.i32"]]).shape == (18, 4)


class TestMapped:
    """Files on this machine."""

    def test_a_view_where_one_file_has_it(self, folder: Path) -> None:
        """Not a copy: two reads share memory, nothing can be written, it is aligned to 64 bytes."""
        with open_checkpoint(folder) as opened:
            norm = opened["norm"][...]
            assert np.shares_memory(norm, opened["norm"][3:9])
            assert not norm.flags.writeable
            assert norm.ctypes.data % 64 == 0
            rows = opened["embed.weight"][:5]
            assert np.shares_memory(rows, opened["embed.weight"][1:3, ::-2])
            assert not np.shares_memory(opened["embed.weight"][...], opened["embed.weight"][...])

    def test_arrays_outlive_the_checkpoint(self, folder: Path) -> None:
        """What was read stays; a lazy array can't be read any more, and says so."""
        opened = open_checkpoint(folder)
        norm, array = opened["norm"][...], opened["embed.weight"]
        opened.close()
        opened.close()
        assert same(norm, TENSORS["norm"][1])
        with pytest.raises(UseError, match="was closed"):
            array[0]
        with pytest.raises(UseError, match="was closed"):
            opened.read_file("config.json")

    def test_without_handles_files_are_read(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where no more files can be mapped the same bytes come, as a copy."""
        monkeypatch.setattr(mapped, "map_file", lambda path, size: None)
        monkeypatch.setattr("tensorport_hub.files.map_file", lambda path, size: None)
        with open_checkpoint(folder) as opened:
            for name, (_, values) in TENSORS.items():
                assert same(opened[name], values)
            assert same(opened["embed.weight"][10:40:7, ::2], TENSORS["embed.weight"][1][10:40:7, ::2])
            assert opened["norm"].requested(...) == 0

    def test_a_path_or_a_text(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A folder may be a `Path`, a text, or a relative name."""
        monkeypatch.chdir(folder.parent)
        for where in (folder, str(folder), folder.name, f"./{folder.name}"):
            with open_checkpoint(where) as opened:
                assert opened.name == str(folder)
                assert opened.commit is None


class TestRanges:
    """Files on the Hub."""

    def test_rows_come_in_one_request(self, remote: Checkpoint, hub: DevHub) -> None:
        """Consecutive rows are one range of exactly their bytes."""
        array = remote["one.f32"]
        assert same(array[2:7], TENSORS["one.f32"][1][2:7])
        (seen,) = [s for s in hub.seen if s.method == "GET"]
        assert seen.range == f"bytes={128 + 2 * 16}-{128 + 7 * 16 - 1}"

    def test_close_rows_come_together(self, remote: Checkpoint, hub: DevHub) -> None:
        """Every other row, a column, backwards: one request each, within the rows that are needed."""
        values = TENSORS["one.f32"][1]
        for index in (
            slice(0, 9, 2),
            (slice(None), 1),
            slice(None, None, -1),
            (slice(8, 2, -3), slice(1, 3)),
        ):
            hub.forget()
            assert same(remote["one.f32"][index], values[index])
            assert len([s for s in hub.seen if s.method == "GET"]) == 1

    def test_a_tensor_in_parts_costs_a_request_a_part(self, remote: Checkpoint, hub: DevHub) -> None:
        """Rows across parts; a part that holds none of them is not asked for."""
        parts = remote.manifest["tensors"]["embed.weight"]["stored"]
        assert len(parts) > 2
        edge = parts[1]["rows"][0]
        assert same(
            remote["embed.weight"][edge - 1 : edge + 1], TENSORS["embed.weight"][1][edge - 1 : edge + 1]
        )
        gets = [s for s in hub.seen if s.method == "GET"]
        assert sorted(s.range or "" for s in gets) == sorted(
            [f"bytes={parts[0]['size'] - 48}-{parts[0]['size'] - 1}", "bytes=128-175"]
        )

    def test_nothing_for_nothing(self, remote: Checkpoint, hub: DevHub) -> None:
        """Empty tensors and empty slices cost no request."""
        for name in ("none.first", "none.last"):
            assert same(remote[name], TENSORS[name][1])
        assert same(remote["embed.weight"][7:7], TENSORS["embed.weight"][1][7:7])
        assert not hub.seen

    def test_what_was_opened_is_what_is_read(self, hub: DevHub, tmp_path: Path) -> None:
        """A branch that moves is not followed; a revision is a commit, a branch or a tag."""
        old = {"w": floats("F32", (8, 3))}
        new = {"w": floats("F32", (8, 3), seed=1)}
        first = hub.add_repo("me/moving", make_mirror(tmp_path / "old", old))
        with open_checkpoint("me/moving") as opened:
            hub.add_repo("me/moving", make_mirror(tmp_path / "new", new))
            assert same(opened["w"], old["w"][1])
            assert opened.commit == first
        for name, revision, values in (
            ("me/moving", None, new),
            ("me/moving", first, old),
            (f"me/moving@{first}", None, old),
        ):
            with open_checkpoint(name, revision=revision) as opened:
                assert same(opened["w"], values["w"][1])

    @pytest.mark.parametrize("kind", ["drop", "truncate", "ignore_range", "status", "close"])
    def test_exact_bytes_in_spite_of_faults(self, remote: Checkpoint, hub: DevHub, kind: str) -> None:
        """What breaks off, comes short or is refused is asked for again; never a wrong byte."""
        hub.faults.add(Fault(kind, origin="cdn", at=7, status=503, times=2))
        assert same(remote["embed.weight"], TENSORS["embed.weight"][1])

    def test_or_an_error(self, remote: Checkpoint, hub: DevHub) -> None:
        """A fault that stays is a SourceError that names the file."""
        fault = hub.faults.add(Fault("status", origin="cdn", status=500, times=None))
        try:
            with pytest.raises(SourceError, match=r"one\.f32\.npy"):
                remote["one.f32"][0]
        finally:
            hub.faults.clear()
        assert fault

    def test_closed_before_requests_are_sent(self, hub: DevHub) -> None:
        """By another thread, after the files were looked for: the same error, not the pool's."""
        with open_checkpoint(REPO) as opened:
            array = opened["embed.weight"]
            files, looked = opened._reader.files, opened._reader.files.mapped
            left = len(opened.manifest["tensors"]["embed.weight"]["stored"])

            def look(entry: FileEntry) -> Any:
                nonlocal left
                found, left = looked(entry), left - 1
                if not left:
                    opened.close()
                return found

            files.mapped = look  # type: ignore[method-assign]
            with pytest.raises(UseError, match="was closed"):
                array[...]

    def test_a_gated_repository(self, hub: DevHub, folder: Path) -> None:
        """The token counts: without one that may read, the error says what the Hub says."""
        hub.add_repo("org/gated", folder, gated=True)
        granted = hub.add_user("reader", can_read_gated=["org/gated"])
        with open_checkpoint("org/gated", token=granted) as opened:
            assert same(opened["norm"], TENSORS["norm"][1])
        stranger = hub.add_user("stranger")
        with pytest.raises(SourceError, match="gated"):
            open_checkpoint("org/gated", token=stranger)["norm"][0]


class TestCache:
    """The Hugging Face cache."""

    @pytest.fixture
    def cached(self, hub: DevHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A cache with the mirror in it, as huggingface_hub fills it."""
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        return self.fill(hub, tmp_path / "home" / "hub")

    def fill(self, hub: DevHub, cache: Path, **options: Any) -> Path:
        found = snapshot_download(REPO, endpoint=hub.endpoint, token=hub.token, cache_dir=cache, **options)
        hub.forget()
        return Path(found)

    def test_what_lies_there_is_not_downloaded(self, cached: Path, hub: DevHub) -> None:
        """Mapped from the cache: the Hub is asked for the commit alone."""
        with open_checkpoint(REPO) as opened:
            for name, (_, values) in TENSORS.items():
                assert same(opened[name], values)
            assert not opened["norm"][...].flags.writeable
        assert {seen.path for seen in hub.seen} == {f"/api/models/{REPO}"}

    def test_what_does_not_is(self, hub: DevHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A part of the files in the cache, the rest by range."""
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        self.fill(hub, tmp_path / "cache", allow_patterns=["manifest.json", "*part-00000*"])
        with open_checkpoint(REPO) as opened:
            hub.forget()
            assert same(opened["embed.weight"], TENSORS["embed.weight"][1])
        parts = opened.manifest["tensors"]["embed.weight"]["stored"]
        assert len([s for s in hub.seen if s.method == "GET"]) == len(parts) - 1

    def test_offline(self, cached: Path, hub: DevHub, monkeypatch: pytest.MonkeyPatch) -> None:
        """With `HF_HUB_OFFLINE` the cache is all there is, and not one request is made."""
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with open_checkpoint(REPO) as opened:
            assert opened.commit == cached.name
            assert same(opened["embed.weight"], TENSORS["embed.weight"][1])
        with pytest.raises(SourceError, match="not in the Hugging Face cache") as raised:
            open_checkpoint("me/other")
        assert "HF_HUB_OFFLINE" in raised.value.hint
        assert not hub.seen

    def test_offline_with_a_part(self, hub: DevHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is not in the cache is an error that names the file."""
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        self.fill(hub, tmp_path / "hub", allow_patterns="manifest.json")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with open_checkpoint(REPO) as opened, pytest.raises(SourceError, match=r"norm\.npy"):
            opened["norm"][0]


class TestVerified:
    """`verify=True`, and what is compared without it."""

    @pytest.fixture
    def copy(self, tmp_path: Path) -> Path:
        """A mirror of the test's own."""
        return make_mirror(tmp_path / "copy", {"w": floats("F32", (40, 3)), "v": floats("F32", (4,))})

    def file(self, folder: Path, name: str = "w") -> Path:
        return folder / "shard_000" / f"{name}.npy"

    def test_a_flipped_bit(self, copy: Path) -> None:
        """Found before a byte of the file is used, and named; other files can be read."""
        data = bytearray(self.file(copy).read_bytes())
        data[-1] ^= 1
        self.file(copy).write_bytes(data)
        with open_checkpoint(copy) as opened:
            assert opened["w"][0].shape == (3,)
        with open_checkpoint(copy, verify=True) as opened:
            for _ in range(2):
                with pytest.raises(
                    VerificationError, match=r"`shard_000/w\.npy` .* expected sha256 [0-9a-f]{64}, got"
                ):
                    opened["w"][0]
            assert opened["v"][0] is not None

    def test_each_file_once(self, hub: DevHub, copy: Path) -> None:
        """On the Hub: one download of the file, then the ranges that are wanted; from threads too."""
        hub.add_repo("me/verified", copy)
        with open_checkpoint("me/verified", verify=True) as opened:
            hub.forget()
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda row: opened["w"][row], range(8)))
        assert downloaded(hub) == self.file(copy).stat().st_size + 8 * 12

    def test_another_file_than_the_manifest_lists(self, hub: DevHub, copy: Path) -> None:
        """On the Hub its digest is stated, and compared before a byte is read, asked for or not."""
        hub.add_repo("me/tampered", copy)
        self.file(copy).write_bytes(self.file(copy).read_bytes()[:-1] + b"\1")
        hub.add_repo("me/tampered", {"shard_000/w.npy": self.file(copy).read_bytes()}, message="tampered")
        with open_checkpoint("me/tampered") as opened:
            hub.forget()
            with pytest.raises(VerificationError, match="wrong sha256"):
                opened["w"][0]
        assert not hub.seen

    def test_a_damaged_manifest(self, hub: DevHub, copy: Path) -> None:
        """A manifest that comes otherwise than its digest says is refused."""
        hub.add_repo("me/damaged", copy)
        hub.faults.add(Fault("wrong_bytes", path="*manifest.json", at=100, times=1))
        with pytest.raises(VerificationError, match="damaged"):
            open_checkpoint("me/damaged")

    def test_a_carried_file(self, copy: Path) -> None:
        """Small files are always compared."""
        (copy / "config.json").write_bytes(b'{"model_type": "nono"}\n')
        with open_checkpoint(copy) as opened, pytest.raises(VerificationError, match=r"config\.json"):
            opened.read_file("config.json")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda file: file.unlink(), "No such file"),
            (
                lambda file: file.write_bytes(file.read_bytes()[:-1]),
                "wrong size: expected 608 bytes, got 607",
            ),
            (lambda file: file.write_bytes(pointer("0" * 64, 608)), "git-LFS pointer"),
            (lambda file: (file.unlink(), file.mkdir()), "directory"),
        ],
        ids=["missing", "short", "pointer", "folder"],
    )
    def test_a_file_that_is_not_it(self, copy: Path, change: Callable[[Path], object], words: str) -> None:
        """Named, with what is wrong: at its first use."""
        change(self.file(copy))
        with open_checkpoint(copy) as opened:
            with pytest.raises(SourceError, match=words) as raised:
                opened["w"][0]
            assert "w.npy" in raised.value.message
            assert opened["v"][0] is not None

    def test_a_file_of_another_shape(self, copy: Path) -> None:
        """A .npy of the same size whose header says something else is not read as what it is not."""
        np.save(self.file(copy), np.zeros((3, 40), np.float32))
        with open_checkpoint(copy) as opened, pytest.raises(VerificationError, match="does not begin"):
            opened["w"][0]


class TestRefused:
    """What is no mirror."""

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda m: m.update(format="zip"), 'or several, got "zip"'),
            (lambda m: m.pop("format"), "format"),
            (lambda m: m.update(schema="tensorport.manifest/9"), "version that this tool does not know"),
            (lambda m: m["tensors"]["norm"].update(shape=[34]), "shape"),
            (lambda m: m["tensors"]["norm"].update(dtype="F128"), "dtype"),
            (lambda m: m["tensors"]["norm"]["stored"][0].update(file="../norm.npy"), "norm"),
            (lambda m: m["tensors"]["norm"]["stored"][0].update(rows=[0, 34]), "norm"),
            (lambda m: m["tensors"]["norm"].update(stored=[]), "rows"),
            (lambda m: m["files"].clear(), "not listed"),
        ],
        ids=["format", "no format", "schema", "shape", "dtype", "path", "rows", "no files", "unlisted"],
    )
    def test_a_hostile_manifest(
        self, folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
    ) -> None:
        """A VerificationError that says where, before anything is opened."""
        text = copy.deepcopy(json.loads((folder / "manifest.json").read_bytes()))
        change(text)
        (tmp_path / "manifest.json").write_text(json.dumps(text))
        with pytest.raises(VerificationError) as raised:
            open_checkpoint(tmp_path)
        assert words in raised.value.message

    @pytest.mark.parametrize("data", [b"", b"\0" * 10, b"[]", b"{}", b"[" * 100_000], ids=range(5))
    def test_no_manifest_at_all(self, tmp_path: Path, data: bytes) -> None:
        """Any bytes are a VerificationError."""
        (tmp_path / "manifest.json").write_bytes(data)
        with pytest.raises(VerificationError):
            open_checkpoint(tmp_path)

    def test_a_manifest_that_is_too_large(
        self, hub: DevHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is refused by its size, from wherever it would be read, for reading, proof and another run."""
        with open(tmp_path / "manifest.json", "wb") as file:
            file.truncate(1 << 40)  # a sparse file
        with pytest.raises(VerificationError, match="too large: expected at most 536870912 bytes"):
            open_checkpoint(tmp_path)
        monkeypatch.setattr(manifest, "LARGEST", 100)
        source = str(folder.with_name(f"{folder.name}-source"))
        for call in (
            lambda: open_checkpoint(REPO),
            lambda: verify(REPO),
            lambda: verify(str(folder)),
            lambda: mirror(source, REPO),
        ):
            with pytest.raises(VerificationError, match="too large"):
                call()

    def test_a_place_without_one(self, hub: DevHub, tmp_path: Path) -> None:
        """A folder, a repository without a manifest: it is no mirror, and the hint says how to make one."""
        hub.add_repo("org/plain", {"config.json": b"{}"})
        for where in (str(tmp_path), "org/plain"):
            with pytest.raises(VerificationError, match=r"has no `manifest\.json`") as raised:
                open_checkpoint(where)
            assert "mirror" in raised.value.hint

    @pytest.mark.parametrize(
        ("where", "options", "kind"),
        [
            ("./absent", {}, SourceError),
            ("me/absent", {}, SourceError),
            (REPO, {"revision": "absent"}, SourceError),
            ("not a name", {}, UseError),
            (f"{REPO}@a", {"revision": "b"}, UseError),
            (f"hf://{REPO}/numpy-direct", {}, UseError),
            ("/", {}, UseError),
        ],
    )
    def test_wrong_use(
        self, hub: DevHub, where: str, options: dict[str, Any], kind: type[TensorportError]
    ) -> None:
        """Nothing there, or no name: whose fault it is decides the error."""
        with pytest.raises(kind):
            open_checkpoint(where, **options)

    def test_a_folder_has_no_revision(self, folder: Path) -> None:
        """A UseError."""
        with pytest.raises(UseError, match="revision"):
            open_checkpoint(folder, revision="main")


def test_from_threads(checkpoint: Checkpoint) -> None:
    """Many threads read many slices of the same arrays: each gets what it asked for."""
    values = TENSORS["embed.weight"][1]
    begin = threading.Barrier(16)

    def read(number: int) -> bool:
        begin.wait()
        return all(
            same(checkpoint["embed.weight"][row : row + number], values[row : row + number])
            for row in range(0, 50, 3)
        )

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(read, range(16)))


def test_a_published_mirror(hub: DevHub, tmp_path: Path) -> None:
    """The whole way: a model is mirrored to the Hub, opened by its name, and read."""
    tensors = {"a.weight": floats("BF16", (300, 7)), "b": floats("F32", ())}
    hub.add_repo("org/model", make_mirror(tmp_path / "x", tensors).with_name("x-source"))
    result = mirror("org/model", "me/published", shard_size=1000)
    with open_checkpoint(result.destination) as opened:
        assert opened.commit == result.commit
        assert same(opened["a.weight"][290:], tensors["a.weight"][1][290:])
        assert same(opened["b"], tensors["b"][1])
