"""A run's bytes: equal to an independent decode, whatever order, block, shard or number of threads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensorport_hub.core.schedule import Schedule
from tensorport_hub.errors import LimitError, VerificationError
from tensorport_hub.ports import BytesRead, BytesWritten, Event, FileVerified, PartDone
from tests.engine.models import (
    NUMPY,
    Experts,
    Made,
    Tensor,
    allotment,
    arrays,
    bits,
    expected,
    experts,
    plain,
    plan_of,
    raw,
    run_plan,
    stored,
    write_by_library,
    write_in_order,
)
from tests.fakes import FlakySource, MemorySink, MemorySource, everything

GPT_OSS = Path(__file__).parents[1] / "checkpoints" / "gptoss_mxfp4"


@st.composite
def checkpoints(draw: st.DrawFn) -> tuple[Made, dict[str, bytes], str]:
    """Tensors, the files that hold them, and a precision that holds their values."""
    precision = draw(st.sampled_from(["keep", "keep", "bfloat16", "float16", "float32"]))
    names = [f"layers.{i}.{word}" for i, word in enumerate(("norm", "bias", "up", "down", "gate", "mask"))]
    made: list[Tensor | Experts] = []
    for name in names[: draw(st.integers(1, 6))]:
        rows = draw(st.sampled_from([0, 1, 2, 7, 40]))
        seed = draw(st.integers(0, 3))
        if draw(st.booleans()):
            blocks = (rows, draw(st.integers(1, 3)), draw(st.integers(0, 3)))
            scales = (0, 1, 127, 252, 255) if precision == "keep" else ()
            made.append(experts(name, blocks, seed, scales=scales))
        else:
            dtype = draw(st.sampled_from(sorted(NUMPY)))
            shapes: list[tuple[int, ...]] = [(), (rows,), (rows, 3), (rows, 1, 5), (rows, 0)]
            shape = draw(st.sampled_from(shapes))
            if dtype == "U8":
                shape = shape[:1]  # of rank 2 and 3 they are taken for packed weights
            made.append((bits if precision == "keep" else plain)(name, dtype, shape, seed))
    held = stored(made)
    count = draw(st.integers(1, 3))
    places = draw(st.lists(st.integers(0, count - 1), min_size=len(held), max_size=len(held)))
    order = draw(st.permutations(range(len(held))))
    write = draw(st.sampled_from([write_by_library, write_in_order]))
    groups = [[held[i] for i in order if places[i] == number] for number in range(count)]
    files = {f"m-{n}.safetensors": write(group) for n, group in enumerate(groups) if group}
    return made, files, precision


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    checkpoint=checkpoints(),
    block=st.sampled_from([1, 16, 100, 1000, 1 << 20]),
    keep=st.sampled_from([0, 30, 400, 1 << 20]),
    workers=st.integers(1, 8),
    lanes=st.integers(1, 4),
    slack=st.sampled_from([0, 300, 1 << 20]),
    verify=st.sampled_from(["auto", "whole", "no"]),
)
def test_any_run_writes_the_decoded_bytes(
    checkpoint: tuple[Made, dict[str, bytes], str],
    block: int,
    keep: int,
    workers: int,
    lanes: int,
    slack: int,
    verify: str,
) -> None:
    """For any checkpoint and any way to run it: right arrays, receipts, digests, reads and events."""
    made, files, precision = checkpoint
    want = expected(made, precision)
    shard = 128 + max(array[:1].nbytes if array.ndim else array.nbytes for array in want.values()) + slack
    source, sink = MemorySource(files), MemorySink()
    plan = plan_of(source, precision=precision, shard_size=shard, verify_source=verify)
    source.reads.clear()
    events: list[Event] = []
    chosen = allotment(block=block, keep=keep, workers=workers, lanes=lanes)
    outcome = run_plan(plan, source, sink, chosen, events.append)

    assert arrays(sink.held) == raw(want)
    assert all(len(data) <= shard for data in sink.held.values())
    assert [r.path for r in outcome.receipts] == [p.path for p in plan.outputs]
    for receipt in outcome.receipts:
        data = sink.held[receipt.path]
        assert (receipt.size, receipt.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert sink.counted("open") == sink.counted("finish") == dict.fromkeys(sink.held, 1)
    assert sink.commits == []
    assert not sink.live

    whole = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
    assert outcome.digests == (dict.fromkeys(files) if verify == "no" else whole)
    schedule = Schedule(plan, everything(plan), block=block, keep=keep, room=chosen.room)
    assert source.bytes_read == schedule.bytes_read()
    if verify != "no":
        assert source.bytes_read - sum(map(len, files.values())) == schedule.bytes_again()
        assert all(source.counts(path).min(initial=1) == 1 for path in files)
    assert sum(e.nbytes for e in events if isinstance(e, BytesRead)) == source.bytes_read
    assert sum(e.nbytes for e in events if isinstance(e, BytesWritten)) == plan.bytes_out
    assert {e.receipt for e in events if isinstance(e, PartDone)} == {*outcome.receipts}
    assert len([e for e in events if isinstance(e, FileVerified)]) == (0 if verify == "no" else len(files))


def test_writer_of_the_tests_is_sound() -> None:
    """The tests' own safetensors writer is read by the library's reader."""
    tensors = [
        bits("b", "F32", (3, 2)),
        bits("a", "U8", (5,)),
        plain("c", "BF16", ()),
        plain("z", "I64", (0,)),
    ]
    found = safetensors.deserialize(write_in_order(tensors))  # type: ignore[no-untyped-call]
    assert {name: (info["dtype"], tuple(info["shape"]), bytes(info["data"])) for name, info in found} == {
        t.name: (t.dtype, t.values.shape, t.values.tobytes()) for t in tensors
    }


@pytest.mark.parametrize("block", [64, 1000, 1 << 20])
@pytest.mark.parametrize("workers", [1, 8])
def test_real_gpt_oss(block: int, workers: int) -> None:
    """A real gpt-oss checkpoint comes out as transformers decodes it, experts in stored order."""
    source, sink = (
        MemorySource({"model.safetensors": (GPT_OSS / "model.safetensors").read_bytes()}),
        MemorySink(),
    )
    outcome = run_plan(plan_of(source), source, sink, allotment(block=block, workers=workers))
    want: dict[str, Any] = {}
    for name in json.loads((GPT_OSS / "expected" / "dtypes.json").read_text())["reference_output_dtype"]:
        array = np.load(GPT_OSS / "expected" / f"{name}.npy").astype(NUMPY["BF16"])
        swapped = name.endswith(("gate_up_proj", "down_proj"))
        want[name] = np.ascontiguousarray(array.swapaxes(-1, -2)) if swapped else array
    found = arrays(sink.held)
    assert set(found) == set(want)
    for name, array in want.items():
        assert found[name][1:] == (array.shape, array.tobytes()), name
    assert outcome.digests == {"model.safetensors": source.files[0].sha256}


LAYOUTS: dict[str, list[tuple[str, ...]]] = {
    "ahead": [("b", "s")],
    "far ahead": [("b", "x", "s")],
    "behind": [("s", "b")],
    "far behind": [("s", "x", "b")],
    "other file": [("b", "x"), ("s",)],
    "other file first": [("s", "x"), ("b",)],
}


class TestCompanions:
    """Where an expert's scales may lie."""

    PAIR = experts("e", (16, 4, 8))
    OTHER = plain("x", "F32", (3000,))

    def files(self, layout: str) -> dict[str, bytes]:
        blocks, scales = self.PAIR.tensors
        by_letter = {"b": blocks, "s": scales, "x": self.OTHER}
        return {
            f"m-{n}.safetensors": write_in_order([by_letter[letter] for letter in group])
            for n, group in enumerate(LAYOUTS[layout])
        }

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("shard_size", [2200, 8000, 1 << 20])
    @pytest.mark.parametrize("block", [100, 2000, 1 << 20])
    def test_bytes(self, layout: str, shard_size: int, block: int) -> None:
        """Scales are found wherever they lie, for whole tensors and for every part of a split one."""
        files = self.files(layout)
        source, sink = MemorySource(files), MemorySink()
        run_plan(plan_of(source, shard_size=shard_size), source, sink, allotment(block=block))
        made: Made = [self.PAIR, *([self.OTHER] if any("x" in g for g in LAYOUTS[layout]) else [])]
        assert arrays(sink.held) == raw(expected(made))

    @pytest.mark.parametrize("layout", ["ahead", "far ahead", "behind", "far behind"])
    def test_same_file_is_read_once(self, layout: str) -> None:
        """Scales in the same file are kept, not read again: each byte comes once."""
        source = MemorySource(self.files(layout))
        plan = plan_of(source)
        source.reads.clear()
        run_plan(plan, source, MemorySink(), allotment(block=500))
        assert set(source.counts("m-0.safetensors")) == {1}

    @pytest.mark.parametrize("layout", ["other file", "other file first"])
    def test_other_file_is_read_twice(self, layout: str) -> None:
        """Scales of another file are read twice: for their experts, and as their own file passes; no more."""
        source = MemorySource(self.files(layout))
        plan = plan_of(source)
        source.reads.clear()
        run_plan(plan, source, MemorySink(), allotment(block=500))
        twice = sum(int((source.counts(path) == 2).sum()) for path in source.contents)
        once = sum(int((source.counts(path) == 1).sum()) for path in source.contents)
        assert twice == self.PAIR.scales.nbytes
        assert once + twice == sum(map(len, source.contents.values()))

    def test_without_room_to_keep(self) -> None:
        """Scales that may not be kept are read again, and the bytes are right all the same."""
        source, sink = MemorySource(self.files("far ahead")), MemorySink()
        plan = plan_of(source)
        source.reads.clear()
        run_plan(plan, source, sink, allotment(block=500, keep=0))
        assert source.counts("m-0.safetensors").max() == 2
        assert arrays(sink.held) == raw(expected([self.PAIR, self.OTHER]))


class TestSelection:
    """Reading less than everything."""

    TENSORS = (plain("a", "F32", (50_000,)), plain("b", "F32", (70_000,)), plain("c", "F32", (50_000,)))

    def test_only_wanted_ranges_are_read(self) -> None:
        """With `--include`, only the wanted tensors' bytes are read, and the digest stays unknown."""
        source, sink = MemorySource({"m.safetensors": write_in_order(self.TENSORS)}), MemorySink()
        plan = plan_of(source, include=("b",))
        source.reads.clear()
        outcome = run_plan(plan, source, sink, allotment(block=10_000))
        assert arrays(sink.held) == raw(expected(self.TENSORS[1:2]))
        assert source.bytes_read == 280_000
        assert outcome.digests == {"m.safetensors": None}

    def test_whole_files_on_demand(self) -> None:
        """`--verify-source whole` reads and checks everything all the same."""
        source, sink = MemorySource({"m.safetensors": write_in_order(self.TENSORS)}), MemorySink()
        plan = plan_of(source, include=("b",), verify_source="whole")
        source.reads.clear()
        outcome = run_plan(plan, source, sink, allotment(block=10_000))
        assert arrays(sink.held) == raw(expected(self.TENSORS[1:2]))
        assert set(source.counts("m.safetensors")) == {1}
        assert outcome.digests == {"m.safetensors": source.files[0].sha256}


class TestVerification:
    """The sha256 of a source file, as it passes."""

    FILES: Mapping[str, bytes] = {
        "m-0.safetensors": write_in_order([plain("a", "F32", (3000,)), plain("b", "F16", (100,))]),
        "m-1.safetensors": write_in_order([plain("c", "F32", (3000,))]),
    }

    @pytest.mark.parametrize("stated", ["sha256", "git"])
    @pytest.mark.parametrize(("path", "at"), [("m-0*", 200), ("m-0*", 12_300), ("m-1*", 5_000), ("m-1*", 9)])
    def test_wrong_bytes(self, stated: Any, path: str, at: int) -> None:
        """One wrong byte anywhere is a `VerificationError` with both digests."""
        plan = plan_of(MemorySource(self.FILES, stated=stated))
        source = FlakySource(MemorySource(self.FILES, stated=stated), "wrong", path=path, at=at)
        sink = MemorySink()
        with pytest.raises(
            VerificationError, match=r"`m-[01]\.safetensors`.*expected digest \w+, got \w+"
        ) as e:
            run_plan(plan, source, sink)
        assert e.value.exit_code == 6
        assert not sink.live
        assert sink.commits == []

    @pytest.mark.parametrize("stated", ["sha256", "git", "nothing"])
    def test_digests(self, stated: Any) -> None:
        """Files read whole have their sha256 in the outcome, whatever the source states."""
        source = MemorySource(self.FILES, stated=stated)
        outcome = run_plan(plan_of(source), source, MemorySink())
        assert outcome.digests == {
            path: hashlib.sha256(data).hexdigest() for path, data in self.FILES.items()
        }

    def test_unread_bytes_are_not_verified(self) -> None:
        """`--verify-source no` takes what comes."""
        plan = plan_of(MemorySource(self.FILES), verify_source="no")
        sink = MemorySink()
        run_plan(plan, FlakySource(MemorySource(self.FILES), "wrong", path="m-0*", at=5000), sink)
        found = arrays(sink.held)
        want = raw(expected([plain("a", "F32", (3000,))]))
        assert found["a"] != want["a"]


class TestLosses:
    """What rounding costs, end to end."""

    HUGE = np.array([[1.0, 70_000.0, -1e6], [65_504.0, np.inf, np.nan]], np.float32)
    TINY = np.array([1e-9, -1e-30, 0.0, -0.0, 6e-8, 1.0], np.float32)

    def run(self, tensor: Tensor | Experts, **options: Any) -> tuple[Any, Any]:
        source, sink = MemorySource({"m.safetensors": write_in_order(stored([tensor]))}), MemorySink()
        outcome = run_plan(plan_of(source, **options), source, sink)
        assert not sink.live
        (found,) = arrays(sink.held).values()
        return found, outcome.losses

    def test_overflow_error(self) -> None:
        """A finite value that float16 can't hold is exit code 7 and names tensor and count."""
        source = MemorySource({"m.safetensors": write_in_order([Tensor("big", "F32", self.HUGE)])})
        sink = MemorySink()
        with pytest.raises(LimitError, match=r"2 finite values of `big` are too large for F16") as caught:
            run_plan(plan_of(source, precision="float16"), source, sink)
        assert caught.value.exit_code == 7
        assert "--on-overflow" in caught.value.hint
        assert (sink.held, sink.counted("abort")) == ({}, {"shard_000/big.npy": 1})

    def test_overflow_error_names_rows(self) -> None:
        """Of a split tensor, the rows are named."""
        source = MemorySource({"m.safetensors": write_in_order([Tensor("big", "F32", self.HUGE)])})
        with pytest.raises(LimitError, match=r"2 finite values of `big`, rows 0:1 are"):
            run_plan(plan_of(source, precision="float16", shard_size=134), source, MemorySink())

    @pytest.mark.parametrize(("how", "top"), [("inf", np.inf), ("saturate", 65_504.0)])
    def test_overflow_accepted(self, how: str, top: float) -> None:
        """`inf` and `saturate` give infinities or the largest finite value, and count; infinities stay."""
        found, losses = self.run(Tensor("big", "F32", self.HUGE), precision="float16", on_overflow=how)
        want = np.array([[1.0, top, -top], [65_504.0, np.inf, np.nan]], np.float16)
        assert found == ("<f2", (2, 3), want.tobytes())
        assert (losses[0].overflow, losses[0].underflow) == (2, 0)

    def test_underflow_reported(self) -> None:
        """Values that become 0 are counted, with their sign kept; zeros are none."""
        found, losses = self.run(Tensor("small", "F32", self.TINY), precision="float16")
        want = np.array([0.0, -0.0, 0.0, -0.0, 6e-8, 1.0]).astype(np.float16)
        assert found[2] == want.tobytes()
        assert (losses[0].overflow, losses[0].underflow) == (0, 2)

    def test_underflow_error(self) -> None:
        """`--on-underflow error` makes it exit code 7, naming tensor and count."""
        with pytest.raises(LimitError, match=r"2 non-zero values of `small` become 0 in F16"):
            self.run(Tensor("small", "F32", self.TINY), precision="float16", on_underflow="error")

    @pytest.mark.parametrize("precision", ["keep", "bfloat16", "float32"])
    @pytest.mark.parametrize("how", ["inf", "saturate"])
    def test_experts_beyond_bfloat16(self, precision: str, how: str) -> None:
        """MXFP4 values from 2^128 overflow in the decoder: counted, and as asked for, in any precision."""
        pair = experts("e", (2, 3, 2), scales=(127, 254))
        found, losses = self.run(pair, precision=precision, on_overflow=how)
        exact = pair.decoded().astype(np.float64)
        count = int(np.isinf(exact).sum())
        assert count > 0
        word = "F32" if precision == "float32" else "BF16"
        top = (
            {"F32": 3.4028234663852886e38, "BF16": 3.3895313892515355e38}[word]
            if how == "saturate"
            else np.inf
        )
        want = np.where(np.isinf(exact), np.copysign(top, exact), exact)
        assert found[2] == want.astype(np.float32).astype(NUMPY[word]).tobytes()
        assert losses[0].overflow == count

    def test_experts_overflow_error(self) -> None:
        """Without a choice it is exit code 7."""
        with pytest.raises(LimitError, match="finite values of `e` are too large for BF16"):
            self.run(experts("e", (2, 3, 2), scales=(254,)))

    def test_losses_of_all_parts_add_up(self) -> None:
        """A split tensor's losses are the sum over its parts."""
        rows = np.full((40, 3), 1e-30, np.float32)
        source = MemorySource({"m.safetensors": write_in_order([Tensor("small", "F32", rows)])})
        plan = plan_of(source, precision="float16", shard_size=150)
        assert len(plan.parts) > 5
        outcome = run_plan(plan, source, MemorySink(), allotment(workers=4))
        assert outcome.losses[0].underflow == 120


class TestReport:
    """Whom the run tells."""

    def test_events_come_in_order(self) -> None:
        """A part's bytes are reported before the part, and a file's bytes before its digest."""
        source = MemorySource({"m.safetensors": write_in_order([plain("a", "F32", (3000,))])})
        events: list[Event] = []
        run_plan(plan_of(source), source, MemorySink(), report=events.append)
        kinds = [type(event) for event in events]
        assert kinds.index(PartDone) > max(i for i, kind in enumerate(kinds) if kind is BytesWritten)
        assert kinds.index(FileVerified) > max(i for i, kind in enumerate(kinds) if kind is BytesRead)
