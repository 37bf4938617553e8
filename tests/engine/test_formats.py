"""Several files from one decoding: whatever the formats, the run and its faults, the same arrays come out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensorport_hub.core.decode.mxfp4 import Mxfp4
from tensorport_hub.core.decode.stacked import Stacked
from tensorport_hub.core.demand import demand
from tensorport_hub.core.encode.table import ENCODINGS
from tensorport_hub.core.layout import lay_out
from tensorport_hub.core.plan import Plan
from tensorport_hub.core.progress import Entry, Progress, gathered
from tensorport_hub.core.recipe import Recipe
from tensorport_hub.core.schedule import Schedule
from tensorport_hub.errors import LossError, SourceError, VerificationError
from tensorport_hub.ports import BytesWritten, Event, PartDone, PartRetried
from tests.core.encode.test_frames import READERS
from tests.engine.layouts import LAYOUTS, Checkpoint, checkpoint
from tests.engine.models import (
    Experts,
    Made,
    Tensor,
    allotment,
    arrays,
    expected,
    experts,
    plain,
    plan_of,
    raw,
    run_plan,
    stored,
    write_in_order,
)
from tests.engine.test_resume import Fuse, FusedJournal, FusedSink, FusedSource, Killed
from tests.engine.test_run import checkpoints
from tests.fakes import (
    BoundedSink,
    FlakySink,
    FlakySource,
    MemoryJournal,
    MemorySink,
    MemorySource,
    everything,
)

Array = npt.NDArray[Any]
Raw = dict[str, tuple[str, tuple[int, ...], bytes]]

ALL = tuple(ENCODINGS)
FORMATS = st.lists(st.sampled_from(ALL), min_size=1, unique=True).map(tuple)


def read_back(files: Mapping[str, bytes], form: str, several: bool) -> Raw:
    """What a format's own reader makes of its files: name -> descr, shape, bytes; cut tensors joined."""
    own = {p: d for p, d in files.items() if not several or p.startswith(f"{form}/")}
    if form == "numpy-direct":
        return arrays(own)
    pieces: dict[str, list[Array]] = {}
    for _, data in sorted(own.items()):
        for name, array in READERS[form](data).items():
            pieces.setdefault(name.partition(".part-")[0], []).append(array)
    joined = {n: found[0] if len(found) == 1 else np.concatenate(found) for n, found in pieces.items()}
    return raw(joined)


def check(plan: Plan, sink: MemorySink, want: Raw) -> None:
    """Every format holds every array."""
    formats = plan.options.formats
    for form in formats:
        assert read_back(sink.held, form, len(formats) > 1) == want, form
    assert {path: len(data) for path, data in sink.held.items()} == {f.path: f.size for f in plan.outputs}
    assert not sink.live


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    made=checkpoints(),
    formats=FORMATS,
    block=st.sampled_from([1, 16, 100, 1000, 1 << 20]),
    keep=st.sampled_from([0, 30, 400, 1 << 20]),
    workers=st.integers(1, 4),
    lanes=st.integers(1, 3),
    slack=st.sampled_from([500, 900, 1 << 20]),
    verify=st.sampled_from(["auto", "no"]),
)
def test_any_run_writes_every_format(
    made: tuple[Made, dict[str, bytes], str],
    formats: tuple[str, ...],
    block: int,
    keep: int,
    workers: int,
    lanes: int,
    slack: int,
    verify: str,
) -> None:
    """Right arrays in all of them, from the bytes that one format alone reads."""
    tensors, files, precision = made
    want = expected(tensors, precision)
    shard = max(array[:1].nbytes if array.ndim else array.nbytes for array in want.values()) + slack
    source, sink = MemorySource(files), MemorySink()
    plan = plan_of(source, precision=precision, shard_size=shard, verify_source=verify, formats=formats)
    source.reads.clear()
    events: list[Event] = []
    chosen = allotment(block=block, keep=keep, workers=workers, lanes=lanes)
    outcome = run_plan(plan, source, sink, chosen, events.append)
    check(plan, sink, raw(want))
    assert sink.counted("open") == sink.counted("finish") == dict.fromkeys(sink.held, 1)
    assert [r.path for r in outcome.receipts] == [f.path for f in plan.outputs]
    schedule = Schedule(plan, everything(plan), block=block, keep=keep, room=chosen.room)
    assert source.bytes_read == schedule.bytes_read()
    if verify == "auto":
        assert source.bytes_read - sum(map(len, files.values())) == schedule.bytes_again()
    assert sum(e.nbytes for e in events if isinstance(e, BytesWritten)) == plan.bytes_out
    assert {e.receipt for e in events if isinstance(e, PartDone)} == {*outcome.receipts}


PAIR = experts("moe.experts.gate", (6, 4, 2))
MADE: Made = [plain("a", "F32", (40, 30)), PAIR, plain("b", "BF16", (70, 20)), plain("c", "F32", (9,))]
FILES = {
    "m-0.safetensors": write_in_order(stored(MADE[:2])),
    "m-1.safetensors": write_in_order(stored(MADE[2:])),
}


@pytest.mark.parametrize("formats", [("numpy-direct",), ("msgpack", "safetensors"), ALL], ids=len)
def test_it_is_read_and_decoded_once(formats: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte of the source comes once, each item is decoded once, however many formats there are."""
    decoded: Counter[int] = Counter()
    exact = Mxfp4.rounded

    def counting(self: Mxfp4, inputs: Any, start: int, stop: int, target: Any) -> Any:
        decoded.update(range(start, stop))
        return exact(self, inputs, start, stop, target)

    monkeypatch.setattr(Mxfp4, "rounded", counting)
    source, sink = MemorySource(FILES), MemorySink()
    plan = plan_of(source, formats=formats)
    source.reads.clear()
    run_plan(plan, source, sink, allotment(block=500))
    check(plan, sink, raw(expected(MADE)))
    assert all(set(source.counts(path)) == {1} for path in FILES)
    assert decoded == Counter(range(6 * 4 * 64))


GATE_UP = experts("model.layers.0.mlp.experts.gate_up_proj", (3, 10, 2))
DOWN = experts("model.layers.0.mlp.experts.down_proj", (3, 64, 1))
BIAS = plain("model.layers.0.mlp.experts.gate_up_proj_bias", "BF16", (3, 10))
GPT_OSS: Made = [plain("a", "F32", (30,)), GATE_UP, BIAS, DOWN]
STEM = "model.layers.0.mlp.experts."


def apart() -> dict[str, Array]:
    """The experts with gate and up apart, all [E, out, in]."""
    gate_up, bias = GATE_UP.decoded(), BIAS.values
    return {
        "a": GPT_OSS[0].values,  # type: ignore[union-attr]
        f"{STEM}gate_proj": gate_up[:, 0::2],
        f"{STEM}up_proj": gate_up[:, 1::2],
        f"{STEM}gate_proj_bias": bias[:, 0::2],
        f"{STEM}up_proj_bias": bias[:, 1::2],
        f"{STEM}down_proj": DOWN.decoded(),
    }


def gpt_oss_source() -> MemorySource:
    return MemorySource({"model.safetensors": write_in_order(stored(GPT_OSS))})


class TestGptOss:
    """Experts that are stored together, by every layout."""

    def test_safetensors_has_transformers_orientation(self) -> None:
        """[E, in, out], gate and up interleaved on the last axis."""
        source, sink = gpt_oss_source(), MemorySink()
        run_plan(plan_of(source, formats=("safetensors",)), source, sink, allotment(block=100))
        found = read_back(sink.held, "safetensors", False)
        want = expected(GPT_OSS)
        for name in (GATE_UP.name, DOWN.name):
            want[name] = want[name].swapaxes(1, 2)
        assert found == raw(want)

    @pytest.mark.parametrize("workers", [1, 3])
    @pytest.mark.parametrize("block", [70, 1000])
    @pytest.mark.parametrize("shard_size", [4300, 1 << 20])
    def test_stacked(
        self, workers: int, block: int, shard_size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Gate and up come from one reading and one decoding of their rows, in any cut."""
        decoded: Counter[int] = Counter()
        exact = Mxfp4.rounded

        def counting(self: Mxfp4, inputs: Any, start: int, stop: int, target: Any) -> Any:
            decoded[self.items] += stop - start
            return exact(self, inputs, start, stop, target)

        monkeypatch.setattr(Mxfp4, "rounded", counting)
        source, sink = gpt_oss_source(), MemorySink()
        plan = plan_of(source, experts="stacked", shard_size=shard_size)
        source.reads.clear()
        run_plan(plan, source, sink, allotment(block=block, workers=workers))
        check(plan, sink, raw(apart()))
        assert set(source.counts("model.safetensors")) == {1}
        assert decoded == {3 * 10 * 64: 3 * 10 * 64, 3 * 64 * 32: 3 * 64 * 32}

    @pytest.mark.parametrize("formats", [("msgpack",), ("numpy-direct", "jax-pickle")])
    def test_stacked_in_a_container(self, formats: tuple[str, ...]) -> None:
        """Up stands behind all of gate, so their rows are read twice, and the plan says so."""
        source, sink = gpt_oss_source(), MemorySink()
        plan = plan_of(source, experts="stacked", formats=formats)
        source.reads.clear()
        chosen = allotment(block=100)
        run_plan(plan, source, sink, chosen)
        check(plan, sink, raw(apart()))
        again = GATE_UP.blocks.nbytes + GATE_UP.scales.nbytes + BIAS.values.nbytes
        schedule = Schedule(plan, everything(plan), block=100, keep=chosen.keep, room=chosen.room)
        assert source.bytes_read - len(source.contents["model.safetensors"]) == again
        assert schedule.bytes_again() == again

    def test_stacked_from_dense_experts(self) -> None:
        """Stored in transformers' orientation they come out the same, each matrix turned round."""
        gate_up = plain(GATE_UP.name, "BF16", (3, 32, 20))
        down = plain(DOWN.name, "BF16", (3, 10, 32))
        files = {
            "model.safetensors": write_in_order([gate_up, down]),
            "config.json": b'{"model_type": "gpt_oss", "hidden_size": 32, "intermediate_size": 10}',
        }
        want = {
            f"{STEM}gate_proj": gate_up.values[:, :, 0::2].swapaxes(1, 2),
            f"{STEM}up_proj": gate_up.values[:, :, 1::2].swapaxes(1, 2),
            f"{STEM}down_proj": down.values.swapaxes(1, 2),
        }
        for precision in ("keep", "float32"):
            source, sink = MemorySource(files), MemorySink()
            plan = plan_of(source, experts="stacked", precision=precision)
            run_plan(plan, source, sink, allotment(block=90))
            dtype = np.float32 if precision == "float32" else ml_dtypes.bfloat16
            check(plan, sink, raw({name: array.astype(dtype) for name, array in want.items()}))

    def test_losses_are_those_of_each(self) -> None:
        """What rounding costs is counted for gate and up apart, though they are decoded together."""
        scales = np.full((2, 6, 1), 127, np.uint8)
        scales[:, 1::2] = 150  # up: beyond float16
        tensor = Experts(GATE_UP.name, np.full((2, 6, 1, 16), 0x77, np.uint8), scales)
        source = MemorySource({"m.safetensors": write_in_order(tensor.tensors)})
        for formats in (("numpy-direct",), ("msgpack", "jax-pickle")):
            plan = plan_of(source, experts="stacked", precision="float16", on_overflow="inf", formats=formats)
            outcome = run_plan(plan, source, MemorySink(), allotment(block=70))
            lost = {plan.recipes[i].name: one.overflow for i, one in outcome.losses.items()}
            assert lost == {f"{STEM}up_proj": 2 * 3 * 32}
            plan = plan_of(source, experts="stacked", precision="float16", formats=formats)
            with pytest.raises(LossError, match=r"192 finite values of `.*experts\.up_proj`"):
                run_plan(plan, source, MemorySink(), allotment(block=70))


def moe(count: int, seed: int = 0) -> list[Tensor | Experts]:
    """Experts that are stored one by one: packed ones, dense ones, biases."""
    return [
        one
        for n in range(count)
        for one in (
            experts(f"mlp.experts.{n}.up_proj", (8, 2), seed),
            plain(f"mlp.experts.{n}.down_proj.weight", "BF16", (5, 6), seed),
            plain(f"mlp.experts.{n}.down_proj.bias", "F32", (5,), seed),
        )
    ]


def stacked_moe(count: int, seed: int = 0) -> dict[str, Array]:
    found = expected(moe(count, seed))
    return {
        name.replace(".0.", "."): np.stack([found[name.replace(".0.", f".{n}.")] for n in range(count)])
        for name in found
        if ".0." in name
    }


@settings(max_examples=60, deadline=None)
@given(
    count=st.sampled_from([1, 3, 11]),
    files=st.integers(1, 3),
    order=st.randoms(use_true_random=False),
    formats=st.sampled_from([("numpy-direct",), ("msgpack",), ("numpy-direct", "jax-pickle")]),
    block=st.sampled_from([40, 300, 1 << 20]),
    workers=st.integers(1, 3),
    shard_size=st.sampled_from([1500, 1 << 20]),
    verify=st.sampled_from(["auto", "no"]),
)
def test_experts_in_any_order_are_stacked(
    count: int,
    files: int,
    order: Any,
    formats: tuple[str, ...],
    block: int,
    workers: int,
    shard_size: int,
    verify: str,
) -> None:
    """Wherever each expert and each companion lies: one array a projection; reads are those of the plan."""
    tensors = [*stored(moe(count)), plain("head", "F32", (20,))]
    order.shuffle(tensors)
    contents = {
        f"m-{n}.safetensors": write_in_order(tensors[n::files]) for n in range(files) if tensors[n::files]
    }
    source, sink = MemorySource(contents), MemorySink()
    plan = plan_of(source, experts="stacked", formats=formats, shard_size=shard_size, verify_source=verify)
    source.reads.clear()
    chosen = allotment(block=block, workers=workers)
    run_plan(plan, source, sink, chosen)
    check(plan, sink, raw({**stacked_moe(count), "head": plain("head", "F32", (20,)).values}))
    schedule = Schedule(plan, everything(plan), block=block, keep=chosen.keep, room=chosen.room)
    assert source.bytes_read == schedule.bytes_read()
    if verify == "no":
        assert max(source.counts(path).max() for path in contents) <= 1 + (shard_size < 2000)
    else:
        assert schedule.bytes_again() == source.bytes_read - sum(map(len, contents.values()))


@pytest.mark.parametrize("formats", [("numpy-direct",), ("msgpack",)])
@pytest.mark.parametrize("at", [400, 900, 1500])
def test_experts_that_are_read_wrong_once(at: int, formats: tuple[str, ...]) -> None:
    """Expert bytes come beside the walk that hashes them: a wrong reading is not published."""
    contents = {"m.safetensors": write_in_order(stored(moe(3)))}
    at += len(contents["m.safetensors"]) // 3
    for after in (0, 1):
        damaged, sink = FlakySource(MemorySource(contents), "wrong", at=at, after=after), MemorySink()
        plan = plan_of(MemorySource(contents), experts="stacked", formats=formats)
        try:
            run_plan(plan, damaged, sink, allotment(block=100))
        except (VerificationError, SourceError):
            continue
        check(plan, sink, raw(stacked_moe(3)))


def held_layouts(names: list[str], **options: Any) -> Checkpoint:
    weights = {name: LAYOUTS[name]() for name in names}
    order: list[tuple[str, int] | int] = [
        (name, i) for name in names for i in range(len(weights[name].stored))
    ]
    return checkpoint(weights, order, **options)


@pytest.mark.parametrize("share", [0.3, 1, 4])
@pytest.mark.parametrize("fault", ["none", "write"])
def test_held_layouts_go_into_containers(share: float, fault: str) -> None:
    """Layouts that are gathered before they are decoded, in order, in any room, and made again."""
    names = [name for name in LAYOUTS if "nothing" not in name]
    base = held_layouts(names)
    formats = ("numpy-direct", "msgpack")
    plan = replace(
        base.plan,
        outputs=lay_out(base.plan.recipes, shard_size=1 << 20, formats=formats),
        options=replace(base.plan.options, formats=formats),
    )
    wants = demand(plan)
    chosen = allotment(block=300, room=max(wants.least, int(share * wants.most)))
    source, sink = MemorySource(base.files), MemorySink()
    flaky = FlakySink(sink, "write", byte=2000) if fault == "write" else sink
    run_plan(plan, source, flaky, chosen)
    for form in formats:
        found = read_back(sink.held, form, True)
        assert {name: data for name, (_, _, data) in found.items()} == {
            name.replace(" ", "%20").replace(",", "%2C") if form == "numpy-direct" else name: data
            for name, data in base.expected.items()
        }


@pytest.mark.parametrize("name", [name for name in LAYOUTS if "nothing" not in name])
@pytest.mark.parametrize("formats", [("numpy-direct",), ("msgpack",)])
def test_any_layout_is_stacked(name: str, formats: tuple[str, ...]) -> None:
    """Three experts of each layout, the last one's bytes first: in any room, whole or cut, with faults."""
    weights = {f"e{n}": LAYOUTS[name]() for n in range(3)}
    order = [(f"e{n}", i) for n in (2, 0, 1) for i in range(len(weights["e0"].stored))]
    base = checkpoint(weights, list(order), 2)
    decoders = tuple(recipe.decoder for recipe in base.plan.recipes)
    recipe = Recipe("stacked", Stacked(decoders), decoders[0].dtype)
    nbytes = len(weights["e0"].expected)
    for shard_size in (nbytes + 400, 1 << 30):
        files = lay_out([recipe], shard_size=shard_size, formats=formats)
        options = replace(base.plan.options, formats=formats, experts="stacked")
        plan = replace(base.plan, recipes=(recipe,), outputs=files, options=options)
        wants = demand(plan)
        for room in {wants.least, wants.most + 1000}:
            source, sink = MemorySource(base.files), MemorySink()
            run_plan(plan, source, FlakySink(sink, "write", byte=300), allotment(block=200, room=room))
            (found,) = read_back(sink.held, formats[0], False).items()
            assert found[1][2] == weights["e0"].expected * 3
            assert found[1][1] == (3, *decoders[0].shape)


class TestFaults:
    """A file that fails in passing is made again; the others don't notice."""

    @pytest.mark.parametrize("fault", ["open", "write", "finish", "truncate"])
    @pytest.mark.parametrize("times", [1, 3])
    @pytest.mark.parametrize("form", ALL)
    def test_one_format_fails(
        self, form: str, times: int, fault: Literal["open", "write", "finish", "truncate"]
    ) -> None:
        """It is retried alone, and every array is right in the end."""
        source, sink = MemorySource(FILES), MemorySink()
        plan = plan_of(source, formats=ALL, shard_size=6000)
        events: list[Event] = []
        flaky = FlakySink(sink, fault, path=f"{form}/*", byte=300, times=times)
        if fault == "truncate":
            with pytest.raises(Exception, match="expected"):
                run_plan(plan, source, flaky, allotment(block=500))
            assert not sink.live
            return
        run_plan(plan, source, flaky, allotment(block=500), events.append)
        check(plan, sink, raw(expected(MADE)))
        retried = {e.path for e in events if isinstance(e, PartRetried)}
        assert retried == {f.path for f in plan.outputs if f.format == form}
        assert sink.counted("finish") == dict.fromkeys(sink.held, 1)

    def test_every_file_fails_somewhere(self) -> None:
        """All formats at once, each file at another byte."""
        for byte in range(0, 9000, 700):
            source, sink = MemorySource(FILES), MemorySink()
            plan = plan_of(source, formats=ALL)
            run_plan(plan, source, FlakySink(sink, "write", byte=byte, times=2), allotment(block=500))
            check(plan, sink, raw(expected(MADE)))

    def test_a_file_that_fails_for_good(self) -> None:
        """Ends the run with its error; no writer is left."""
        source, sink = MemorySource(FILES), MemorySink()
        plan = plan_of(source, formats=ALL)
        flaky = FlakySink(sink, "write", path="msgpack/*", byte=5000, transient=False)
        with pytest.raises(Exception, match=r"msgpack/shard_000\.msgpack"):
            run_plan(plan, source, flaky, allotment(block=500))
        assert not sink.live

    def test_what_is_read_again_is_proven_to_be_the_same(self) -> None:
        """A file made again from other bytes than were hashed is not published."""
        offset = len(FILES["m-0.safetensors"]) - 700
        source = FlakySource(MemorySource(FILES), "wrong", path="m-0*", at=offset, after=1, times=99)
        plan = plan_of(MemorySource(FILES), formats=("msgpack", "numpy-direct"))
        flaky = FlakySink(MemorySink(), "finish", path="msgpack/*")
        with pytest.raises(SourceError, match="two readings"):
            run_plan(plan, source, flaky, allotment(block=500))

    @pytest.mark.parametrize("experts", ["source", "stacked"])
    def test_no_more_files_are_open_than_the_plan_says(self, experts: str) -> None:
        """A sink that has room for just so many files, and just so many bytes, is enough."""
        for formats in [("numpy-direct",)] if experts == "stacked" else [("numpy-direct",), ALL]:
            source, sink = gpt_oss_source(), MemorySink()
            plan = plan_of(source, formats=formats, experts=experts, shard_size=4500)
            for writers in (plan.files_at_once, plan.files_at_once + 1):
                sink = MemorySink()
                bounded = BoundedSink(sink, staging=plan.bytes_at_once, writers=writers)
                flaky = FlakySink(bounded, "write", byte=100)
                run_plan(plan, source, flaky, allotment(block=100, workers=3))
                assert sink.held.keys() == {file.path for file in plan.outputs}


CASES: dict[str, tuple[Callable[[], dict[str, bytes]], dict[str, Any]]] = {
    "formats": (lambda: FILES, {"formats": ALL, "shard_size": 6000}),
    "gate and up": (
        lambda: {"m.safetensors": write_in_order(stored(GPT_OSS))},
        {"experts": "stacked", "shard_size": 4300},
    ),
    "stacked msgpack": (
        lambda: {"m.safetensors": write_in_order(stored(GPT_OSS))},
        {"experts": "stacked", "formats": ("msgpack",)},
    ),
    "one by one": (
        lambda: {
            "m-0.safetensors": write_in_order(stored(moe(3))[::2]),
            "m-1.safetensors": write_in_order(stored(moe(3))[1::2]),
        },
        {"experts": "stacked", "formats": ("numpy-direct", "msgpack")},
    ),
}


@pytest.mark.parametrize("verify", ["auto", "no"])
@pytest.mark.parametrize("case", CASES)
def test_killed_at_every_call(case: str, verify: str) -> None:
    """Wherever a run dies, the next one ends with the bytes, receipts and digests of an undisturbed one."""
    files, options = CASES[case][0](), CASES[case][1]
    plan = plan_of(MemorySource(files), verify_source=verify, **options)
    whole = MemorySink()
    undisturbed = run_plan(plan, MemorySource(files), whole, allotment(block=500, lanes=1, workers=1))
    at, calls = 0, 1
    while at <= calls:
        sink, fuse = MemorySink(), Fuse(at)
        source = FusedSource(files)
        source.fuse = fuse
        journal = FusedJournal(Progress(), fuse)
        chosen = allotment(block=500, lanes=1, workers=1)
        try:
            outcome = run_plan(plan, source, FusedSink(sink, fuse), chosen, journal=journal)
        except Killed:
            assert not sink.live
            outcome = run_plan(plan, MemorySource(files), sink, chosen, journal=journal.next())
        assert outcome == undisturbed
        assert sink.held == whole.held
        calls, at = max(calls, fuse.calls), at + 7


@settings(max_examples=60, deadline=None)
@given(
    case=st.sampled_from(sorted(CASES)),
    kills=st.lists(st.integers(0, 80), max_size=5),
    workers=st.integers(1, 3),
    block=st.sampled_from([100, 500, 5000]),
    verify=st.sampled_from(["auto", "no"]),
)
def test_killed_again_and_again(case: str, kills: list[int], workers: int, block: int, verify: str) -> None:
    """Any number of kills come to the same end."""
    files, options = CASES[case][0](), CASES[case][1]
    plan = plan_of(MemorySource(files), verify_source=verify, **options)
    whole = MemorySink()
    undisturbed = run_plan(plan, MemorySource(files), whole, allotment())
    sink, entries = MemorySink(), list[Entry]()
    for at in [*kills, float("inf")]:
        fuse, source = Fuse(at), FusedSource(files)
        source.fuse = fuse
        journal = FusedJournal(gathered(entries), fuse)
        journal.entries = list(entries)
        chosen = allotment(block=block, workers=workers)
        try:
            outcome = run_plan(plan, source, FusedSink(sink, fuse), chosen, journal=journal)
        except Killed:
            entries = journal.entries
            continue
        assert outcome == undisturbed
        assert sink.held == whole.held
        break


def test_a_format_that_was_finished_is_not_made_again() -> None:
    """A run that has all of one format reads for the others alone, and opens nothing of it."""
    source, sink, journal = MemorySource(FILES), MemorySink(), MemoryJournal()
    plan = plan_of(source, formats=("numpy-direct", "msgpack"), verify_source="no")
    flaky = FlakySink(sink, "write", path="msgpack/*", byte=5000, transient=False)
    with pytest.raises(Exception, match="msgpack"):
        run_plan(plan, source, flaky, allotment(block=500), journal=journal)
    opened = sink.counted("open")
    run_plan(plan, source, sink, allotment(block=500), journal=journal.next())
    check(plan, sink, raw(expected(MADE)))
    again = {path for path, count in sink.counted("open").items() if count > opened[path]}
    made_before = {e.index for e in journal.entries if not isinstance(e, str) and hasattr(e, "index")}
    assert not again & {plan.outputs[index].path for index in made_before}
    assert "msgpack/shard_000.msgpack" in again
