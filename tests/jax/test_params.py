"""Parameters on one device: every dtype, every source, and what can't be loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import PartitionSpec, SingleDeviceSharding

from tensorport_hub import mirror, open_checkpoint
from tensorport_hub.devhub import DevHub
from tensorport_hub.errors import CheckpointError, LossError, SourceError, UseError, VerificationError
from tensorport_hub.jax import load_params
from tests.mirrored import NUMPY, Tensors, bits, every_dtype, floats, make_mirror, same

ROOT = Path(__file__).parents[2]
TENSORS: Tensors = {
    **every_dtype(),
    "one.i64": ("I64", np.arange(-18, 18).reshape(9, 4)),
    "one.u64": ("U64", np.arange(36, dtype=np.uint64).reshape(9, 4)),
    "one.f64": floats("F64", (9, 4)),
}
"""64-bit values that 32 bits hold."""
NARROW = {np.dtype(np.int64): np.int32, np.dtype(np.uint64): np.uint32, np.dtype(np.float64): np.float32}
REPO = "me/params"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror with a tensor of every dtype, some of them in parts."""
    return make_mirror(tmp_path_factory.mktemp("params") / "out", TENSORS, shard_size=1000)


@pytest.fixture(scope="module", params=["folder", "hub"])
def source(request: pytest.FixtureRequest, folder: Path, hub: DevHub) -> str:
    """The mirror as a folder and as a repository."""
    if request.param == "folder":
        return str(folder)
    hub.add_repo(REPO, folder)
    return REPO


def flat(tree: dict[str, Any]) -> dict[str, jax.Array]:
    """Leaves by their names."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {".".join(key.key for key in way): leaf for way, leaf in leaves}


@contextmanager
def x64(on: bool) -> Iterator[None]:
    """JAX with 64-bit types, or without."""
    jax.config.update("jax_enable_x64", on)
    yield
    jax.config.update("jax_enable_x64", False)


def loaded(folder: Path, tensors: Tensors, **options: Any) -> dict[str, Any]:
    return load_params(make_mirror(folder / "mirror", tensors), **options)


class TestLoaded:
    """What comes out."""

    def test_every_dtype(self, source: str) -> None:
        """A nested dict by the names' dots, bit for bit; 64-bit types become 32, as always in JAX."""
        found = flat(load_params(source))
        assert set(found) == set(TENSORS)
        for name, (_, values) in TENSORS.items():
            assert isinstance(found[name], jax.Array)
            assert same(found[name], values.astype(NARROW.get(values.dtype, values.dtype))), name

    def test_64_bits(self, source: str) -> None:
        """With x64 on they stay."""
        with x64(True):
            found = load_params(source)["one"]
        for kind in ("i64", "u64", "f64"):
            assert same(found[kind], TENSORS[f"one.{kind}"][1])

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", jnp.bfloat16, np.float32])
    def test_rounded(self, source: str, dtype: Any) -> None:
        """`dtype` rounds every float to nearest even, and nothing else."""
        found = flat(load_params(source, dtype=dtype, include=["one.f64", "one.i8", "packed.f4"]))
        assert same(found["one.f64"], TENSORS["one.f64"][1].astype(np.dtype(dtype)))
        for name in ("one.i8", "packed.f4"):
            assert same(found[name], TENSORS[name][1])

    def test_widened(self, source: str) -> None:
        """Shorter floats, those of 8 bits too, become exactly what they are."""
        names = [f"one.{name.lower()}" for name in NUMPY if name.startswith(("F8", "F16", "BF16"))]
        found = flat(load_params(source, dtype="float32", include=names))
        for name in names:
            with np.errstate(invalid="ignore"):
                expected = TENSORS[name][1].astype(np.float32)
            assert found[name].dtype == np.float32
            assert np.array_equal(found[name], expected, equal_nan=True), name

    def test_once(self, tmp_path: Path) -> None:
        """float64 to bfloat16 in one step: by way of float32 this value would go the other way."""
        value = np.float64(1 + 2.0**-8 + 2.0**-40)
        found = loaded(tmp_path, {"w": ("F64", np.array([value]))}, dtype="bfloat16")
        assert float(found["w"][0]) == 1 + 2.0**-7
        assert float(value.astype(np.float32).astype(ml_dtypes.bfloat16)) == 1

    def test_include(self, source: str) -> None:
        """Globs over names, one or several; what is not included is not read."""
        assert set(flat(load_params(source, include="one.f8*"))) == {
            n for n in TENSORS if n.startswith("one.f8")
        }
        assert set(flat(load_params(source, include=["norm", "scalar.*"]))) == {
            "norm",
            "scalar.f32",
            "scalar.bf16",
        }

    def test_sources(self, folder: Path, hub: DevHub) -> None:
        """A path, a revision, an opened checkpoint: that stays open."""
        first = hub.add_repo("me/moving", make_mirror(folder.parent / "old", {"w": floats("F32", (3,))}))
        hub.add_repo("me/moving", make_mirror(folder.parent / "new", {"w": floats("F32", (3,), seed=1)}))
        old, new = (floats("F32", (3,), seed=seed)[1] for seed in (0, 1))
        assert same(load_params("me/moving")["w"], new)
        assert same(load_params("me/moving", revision=first)["w"], old)
        with open_checkpoint(folder) as opened:
            assert same(load_params(opened, include="norm")["norm"], TENSORS["norm"][1])
            assert same(opened["norm"], TENSORS["norm"][1])
            with pytest.raises(UseError, match="open already"):
                load_params(opened, revision="main")
        assert same(load_params(folder, include="norm")["norm"], TENSORS["norm"][1])


class TestMapped:
    """Folders on a CPU."""

    def test_no_copy_is_made(self, folder: Path) -> None:
        """A tensor in one file is the mapped file itself; it outlives the checkpoint."""
        with open_checkpoint(folder) as opened:
            array = load_params(opened, include="norm")["norm"]
            address = opened["norm"][...].ctypes.data
        assert array.unsafe_buffer_pointer() == address
        assert same(array, TENSORS["norm"][1])

    def test_donating_it_is_safe(self, folder: Path) -> None:
        """A donated parameter is not written to in place: the file and a second load stay as they are."""
        array = load_params(folder, include="norm")["norm"]
        step = jax.jit(lambda x: jnp.zeros_like(x) + 1, donate_argnums=0)
        assert (step(array) == 1).all()
        assert same(load_params(folder, include="norm")["norm"], TENSORS["norm"][1])


class TestNames:
    """Names and trees."""

    def test_a_leaf_that_is_a_branch(self, tmp_path: Path) -> None:
        """`a` and `a.b` can't both be there: an error that names all such; `include` chooses."""
        tensors = {name: floats("F32", (2,)) for name in ("a", "a.b", "a.b.c", "b")}
        with pytest.raises(CheckpointError) as raised:
            loaded(tmp_path, tensors)
        assert raised.value.message.count("\n") == 3
        assert "`a` is a tensor, and a part of the name of `a.b.c`" in raised.value.message
        assert set(flat(load_params(tmp_path / "mirror", include=["a.b.c", "b"]))) == {"a.b.c", "b"}

    def test_odd_names(self, tmp_path: Path) -> None:
        """Numbers and empty pieces are keys like any other."""
        tensors = {name: floats("F32", (2,)) for name in ("layers.0.w", "layers.10.w", "x..y", ".z", "ünï")}
        found = loaded(tmp_path, tensors)
        assert set(flat(found)) == set(tensors)
        assert list(found["layers"]) == ["0", "10"]


class TestRefused:
    """What can't be loaded."""

    @pytest.mark.parametrize("dtype", ["int8", "float64", "float8_e4m3fn", "nonsense", jnp.int32])
    def test_other_dtypes(self, folder: Path, dtype: Any) -> None:
        """Floats are rounded to three precisions; the error lists them."""
        with pytest.raises(UseError, match="`bfloat16`, `float16`, `float32`"):
            load_params(folder, dtype=dtype)

    def test_a_value_that_is_too_large(self, tmp_path: Path) -> None:
        """Never a silent infinity: an error that names tensor, count and dtype."""
        values = np.array([1.0, 1e6, -1e6, np.inf], np.float32)
        with pytest.raises(LossError, match="`w`: 2 values of F32 are too large for F16"):
            loaded(tmp_path, {"w": ("F32", values)}, dtype="float16")
        assert np.isinf(load_params(tmp_path / "mirror", dtype="bfloat16")["w"][3])

    def test_an_integer_that_is_too_large(self, tmp_path: Path) -> None:
        """Never a silent wrap-around: an error whose hint says how 64 bits are kept."""
        with pytest.raises(LossError, match="too large for I32") as raised:
            loaded(tmp_path, {"ids": ("I64", np.array([1, 2**31]))})
        assert "jax_enable_x64" in raised.value.hint

    def test_nothing_included(self, folder: Path) -> None:
        """A glob that matches nothing is an error."""
        with pytest.raises(UseError, match=r"no tensor .* matches `model\.\*`"):
            load_params(folder, include="model.*")

    def test_no_mirror(self, tmp_path: Path) -> None:
        """Errors of opening are those of `open_checkpoint`."""
        with pytest.raises(SourceError):
            load_params(tmp_path / "absent")
        with pytest.raises(VerificationError):
            load_params(tmp_path)

    def test_a_file_that_is_gone(self, tmp_path: Path) -> None:
        """Of many tensors one can't be read: the error names its file."""
        make_mirror(tmp_path / "mirror", {f"w{i}": floats("F32", (3,)) for i in range(20)})
        (tmp_path / "mirror/shard_000/w13.npy").unlink()
        with pytest.raises(SourceError, match=r"w13\.npy"):
            load_params(tmp_path / "mirror")

    @pytest.mark.parametrize("sharding", [PartitionSpec("x"), 5, "x", [None]], ids=repr)
    def test_no_sharding(self, folder: Path, sharding: Any) -> None:
        """Something else than a sharding, a tree or a function, and what it should be."""
        with pytest.raises(UseError, match="Sharding"):
            load_params(folder, sharding=sharding, include="norm")

    def test_a_tree_that_is_not_like_it(self, folder: Path) -> None:
        """Names match exactly and completely: what is missing and what is too much is listed."""
        here = SingleDeviceSharding(jax.devices()[0])
        with pytest.raises(UseError) as raised:
            load_params(folder, include=["norm", "deep"], sharding={"norm": here, "more": {"w": here}})
        assert "`deep` is missing in the tree of shardings" in raised.value.message
        assert "`more.w` in the tree of shardings is one too many" in raised.value.message

    def test_a_leaf_that_is_no_sharding(self, folder: Path) -> None:
        """In a tree, or from a function: named."""
        with pytest.raises(UseError, match=r"`norm` \[33\]: expected a `jax\.sharding\.Sharding`, got"):
            load_params(folder, include="norm", sharding={"norm": PartitionSpec()})
        with pytest.raises(UseError, match="`norm`"):
            load_params(folder, include="norm", sharding=lambda name, shape: "x")


def test_one_device_by_name(source: str) -> None:
    """A sharding for all, a tree and a function give the same, committed to the device."""
    here = SingleDeviceSharding(jax.devices()[0])
    names = ["norm", "scalar.bf16", "embed.weight", "none.first"]
    tree = {"norm": here, "scalar": {"bf16": here}, "embed": {"weight": None}, "none": {"first": here}}
    seen = {}

    def chosen(name: str, shape: tuple[int, ...]) -> Any:
        seen[name] = shape
        return here

    for sharding in (here, tree, chosen):
        found = flat(load_params(source, include=names, sharding=sharding))
        for name in names:
            assert same(found[name], TENSORS[name][1])
            assert found[name].sharding == here
    assert seen == {name: TENSORS[name][1].shape for name in names}


@pytest.fixture(scope="module")
def mirrors(hub: DevHub, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Mirrors of every precision."""
    root = tmp_path_factory.mktemp("mirrors")
    tensors = {f"w.{d.lower()}": bits(d, (40, 7)) for d in ("F16", "BF16", "F32", "F64")}
    hub.add_repo("org/floats", make_mirror(root / "out", tensors).with_name("out-source"))
    for precision in ("keep", "bfloat16", "float32"):
        mirror("org/floats", str(root / precision), precision=precision, on_overflow="inf", shard_size=400)
    return [root / precision for precision in ("keep", "bfloat16", "float32")]


def test_jnp_load_opens_every_float(mirrors: list[Path]) -> None:
    """Each .npy of a mirror alone: dtype and values as the lazy array has them, bfloat16 too."""
    for folder in mirrors:
        with open_checkpoint(folder) as opened:
            for name, tensor in opened.manifest["tensors"].items():
                for stored in tensor["stored"]:
                    rows = opened[name][slice(*stored["rows"])]
                    with x64(rows.dtype == np.float64):
                        assert same(jnp.load(folder / stored["file"]), rows)


WITHOUT_JAX = """
import sys
sys.modules["jax"] = None
import tensorport_hub
tensorport_hub.open_checkpoint
try:
    import tensorport_hub.jax
except ImportError as error:
    print(error)
"""


def test_without_jax() -> None:
    """The rest of the package works, and importing this module says what is missing."""
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_JAX], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "pip install '.[jax]'" in run.stdout


MANY_FILES = """
import resource, sys
import jax
jax.devices()
from tensorport_hub.jax import load_params
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
params = load_params(sys.argv[1])
print(len(params), float(sum(leaf.sum() for leaf in params.values())))
"""


def test_more_tensors_than_handles(tmp_path: Path) -> None:
    """A folder with more files than this process may open is loaded all the same."""
    tensors = {f"w{i}": ("F32", np.full((100,), i, np.float32)) for i in range(300)}
    make_mirror(tmp_path / "mirror", tensors)
    run = subprocess.run(
        [sys.executable, "-c", MANY_FILES, str(tmp_path / "mirror")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert run.stdout.split() == ["300", str(float(100 * sum(range(300))))]
