"""Shardings over eight devices; run by `test_sharding.py` in a process that has so many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from tensorport_hub import convert
from tensorport_hub.devhub import DevHub
from tensorport_hub.errors import UseError
from tensorport_hub.jax import load_gpt_oss, load_params, place
from tests.jax.test_gpt_oss import CHECKPOINT
from tests.jax.test_params import flat
from tests.mirrored import Tensors, floats, make_mirror, same

TENSORS: Tensors = {
    "matrix": floats("BF16", (64, 48)),
    "experts": floats("BF16", (8, 16, 4096)),
    "vector": floats("F32", (40,)),
    "scalar": floats("F32", ()),
}
REPO = "me/sharded"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mirror(tmp_path_factory.mktemp("sharded") / "out", TENSORS, shard_size=400_000)


@pytest.fixture(scope="module", params=["folder", "hub"])
def source(request: pytest.FixtureRequest, folder: Path, hub: DevHub) -> str:
    """The mirror as a folder and as a repository; matrices of both kinds in several parts."""
    if request.param == "folder":
        return str(folder)
    hub.add_repo(REPO, folder)
    return REPO


def mesh(*shape: int) -> Mesh:
    return Mesh(np.array(jax.devices()).reshape(shape), ("x", "y")[: len(shape)])


def test_there_are_eight() -> None:
    """The process that runs this has eight devices."""
    assert len(jax.devices()) == 8


SPECS = [
    ("matrix", (8,), P("x")),
    ("matrix", (8,), P(None, "x")),
    ("matrix", (2, 4), P("x", "y")),
    ("matrix", (2, 4), P("y", "x")),
    ("matrix", (2, 4), P(None, ("x", "y"))),
    ("matrix", (2, 4), P("y")),
    ("matrix", (8,), P()),
    ("experts", (8,), P("x")),
    ("experts", (8,), P(None, "x")),
    ("experts", (8,), P(None, None, "x")),
    ("experts", (2, 4), P("x", None, "y")),
    ("experts", (2, 4), P(None, "y", "x")),
    ("vector", (8,), P("x")),
    ("scalar", (8,), P()),
]


@pytest.mark.parametrize(("name", "shape", "spec"), SPECS, ids=str)
def test_each_device_has_its_slice(
    source: str, hub: DevHub, name: str, shape: tuple[int, ...], spec: P
) -> None:
    """Any axis, any mesh: each shard is the slice of the whole, and no byte is asked for twice."""
    sharding = NamedSharding(mesh(*shape), spec)
    values = TENSORS[name][1]
    hub.forget()
    array = load_params(source, include=name, sharding=sharding)[name]
    sent = sum(seen.bytes_out for seen in hub.seen if seen.origin == "cdn")
    assert array.sharding == sharding
    assert same(array, values)
    assert len(array.addressable_shards) == 8
    for shard in array.addressable_shards:
        assert same(shard.data, values[shard.index])
    assert sent == (values.nbytes if source == REPO else 0)


def test_columns_of_large_rows_are_read_alone(hub: DevHub, tmp_path: Path) -> None:
    """Where a slice of a later axis lies apart, only that slice is asked for: no neighbour's bytes."""
    values = {"experts": floats("F32", (4, 8, 80_000))}
    hub.add_repo("me/large", make_mirror(tmp_path / "out", values))
    hub.forget()
    one = SingleDeviceSharding(jax.devices()[5])
    half = NamedSharding(Mesh(np.array(jax.devices()[:2]), "x"), P(None, "x"))
    assert same(load_params("me/large", sharding=half)["experts"], values["experts"][1])
    starts = sorted(int(str(s.range)[6:].partition("-")[0]) for s in hub.seen if s.origin == "cdn")
    assert len(starts) == 8
    assert same(load_params("me/large", sharding=one)["experts"], values["experts"][1])


def test_one_sharding_each(source: str) -> None:
    """A tree, or a function of name and shape: every parameter where it was asked for."""
    eight, grid = mesh(8), mesh(2, 4)
    tree = {
        "matrix": NamedSharding(grid, P("x", "y")),
        "experts": NamedSharding(eight, P(None, "x")),
        "vector": NamedSharding(eight, P()),
        "scalar": SingleDeviceSharding(jax.devices()[3]),
    }

    def chosen(name: str, shape: tuple[int, ...]) -> Sharding:
        assert TENSORS[name][1].shape == shape
        return tree[name]

    for sharding in (tree, chosen):
        found = flat(load_params(source, sharding=sharding))
        assert {name: array.sharding for name, array in found.items()} == tree
        assert all(same(found[name], values) for name, (_, values) in TENSORS.items())


def test_rounded_and_sharded(source: str) -> None:
    """Slices are rounded before they are moved."""
    found = load_params(source, dtype="float32", include="matrix", sharding=NamedSharding(mesh(8), P("x")))
    assert same(found["matrix"], TENSORS["matrix"][1].astype(np.float32))


@pytest.mark.parametrize("held", [1, 5000, 100_000])
def test_a_few_slices_at_a_time(source: str, monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    """Whatever may be held at a time, the result is the same."""
    monkeypatch.setattr(place, "HELD", held)
    sharding = NamedSharding(mesh(8), P("x"))
    found = flat(load_params(source, include=["matrix", "experts"], sharding=sharding))
    assert all(same(array, TENSORS[name][1]) for name, array in found.items())


def test_what_does_not_fit(source: str) -> None:
    """A length that does not divide, an axis too many: all such tensors are named."""
    three = Mesh(np.array(jax.devices()[:3]), "x")
    with pytest.raises(UseError) as raised:
        load_params(source, sharding=NamedSharding(mesh(8), P(None, "x")))
    assert "`vector` [40] can't be sharded so" in raised.value.message
    assert "`scalar` [] can't be sharded so" in raised.value.message
    assert "`matrix`" not in raised.value.message
    assert "function of name and shape" in raised.value.hint
    with pytest.raises(UseError, match=r"`experts` \[8, 16, 4096\] can't be sharded so: .* 3 times"):
        load_params(source, include="experts", sharding=NamedSharding(three, P("x")))


def test_the_callers_default_device(source: str) -> None:
    """Without a sharding, parameters go where the caller's `jax.default_device` says."""
    with jax.default_device(jax.devices()[6]):
        found = load_params(source, include=["matrix", "vector"])
    assert {array.device for array in found.values()} == {jax.devices()[6]}


def test_it_computes(source: str) -> None:
    """A jitted function of sharded parameters gives what numpy gives."""
    params = load_params(
        source,
        dtype="float32",
        include=["matrix"],
        sharding=NamedSharding(mesh(2, 4), P("x", "y")),
    )
    total = jax.jit(lambda tree, x: tree["matrix"] @ x)(params, jnp.ones(48))
    wanted: Any = TENSORS["matrix"][1].astype(np.float32) @ np.ones(48, np.float32)
    assert np.allclose(total, wanted, atol=1e-4)


def test_gpt_oss_over_devices(hub: DevHub, tmp_path: Path) -> None:
    """Rows of gate and up over eight devices: each byte is read once, by two shardings twice."""
    convert(str(CHECKPOINT), str(tmp_path / "out"))
    hub.add_repo("me/gpt-oss", tmp_path / "out")
    whole = flat(load_gpt_oss("me/gpt-oss"))
    rows, everywhere = NamedSharding(mesh(8), P(None, "x")), NamedSharding(mesh(8), P())

    def spread(name: str, shape: tuple[int, ...]) -> Sharding:
        return rows if "gate_proj" in name or "up_proj" in name else everywhere

    def half(name: str, shape: tuple[int, ...]) -> Sharding:
        return rows if "gate_proj" in name else everywhere

    for sharding, times in ((spread, 1), (half, 2)):
        hub.forget()
        found = flat(load_gpt_oss("me/gpt-oss", sharding=sharding))
        assert all(same(array, np.asarray(whole[name])) for name, array in found.items())
        assert all(array.sharding == sharding(name, array.shape) for name, array in found.items())
        pairs = sum(a.nbytes for name, a in whole.items() if "gate_proj" in name or "up_proj" in name)
        others = sum(a.nbytes for a in whole.values()) - pairs
        assert sum(s.bytes_out for s in hub.seen if s.origin == "cdn") == others + times * pairs
