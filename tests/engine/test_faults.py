"""Faults of source and sink at every step: replayed where they pass, else raised, and nothing stays behind.

`conftest.py` checks after each test that no thread is left running.
"""

from __future__ import annotations

import re
import time
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tensorport_hub.core.schedule import Schedule
from tensorport_hub.engine import part as part_module
from tensorport_hub.engine.blocks import StopFlag, Stopped
from tensorport_hub.engine.feed import Streamed
from tensorport_hub.engine.part import ATTEMPTS
from tensorport_hub.engine.reader import Reader
from tensorport_hub.engine.witness import Witness
from tensorport_hub.errors import DestinationError, SourceError, TensorportError, VerificationError
from tensorport_hub.ports import BytesRead, Event, PartDone, PartRetried, Receipt, Sink
from tests.engine.models import (
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
from tests.fakes import FlakySink, FlakySource, MemorySink, MemorySource, everything

pytestmark = pytest.mark.timeout(60)

LONG, SHORT, PAIR = plain("long", "F32", (9000,)), plain("short", "F16", (10,)), experts("pair", (8, 4, 4))
MADE: Made = [SHORT, LONG, PAIR]
FILES = {"m-0.safetensors": write_in_order([SHORT, LONG]), "m-1.safetensors": write_in_order(stored([PAIR]))}
PLAN = plan_of(MemorySource(FILES))
SIZES = {file.path.rpartition("/")[2]: file.size for file in PLAN.outputs}
TOTAL = sum(map(len, FILES.values()))

Where = Literal["open", "write", "finish", "truncate"]


def check_success(sink: MemorySink) -> None:
    """Every array is right and every writer ended."""
    assert arrays(sink.held) == raw(expected(MADE))
    assert not sink.live


class TestReplays:
    """A part that is written again comes from bytes that nothing else hashes."""

    @pytest.mark.parametrize(("path", "file"), [("m-0.safetensors", "*long*"), ("m-1.safetensors", "*pair*")])
    def test_a_damaged_second_reading_is_no_result(self, path: str, file: str) -> None:
        """A byte that is damaged only when a part is read again is found, and the part read once more."""
        sink, events = MemorySink(), list[Event]()
        damaged = FlakySource(MemorySource(FILES), "wrong", path=path, at=len(FILES[path]) // 2, after=1)
        run_plan(PLAN, damaged, FlakySink(sink, "finish", path=file), allotment(), events.append)
        check_success(sink)
        reasons = [event.reason for event in events if isinstance(event, PartRetried)]
        assert len(reasons) == 2
        assert "two readings" in reasons[1]


class TestBeside:
    """Companions that are read beside the walk of their file: nothing hashes those very bytes."""

    CODES, SCALES = stored([PAIR])

    def files(self, *, scales_first: bool) -> dict[str, bytes]:
        """Codes and their scales in files of their own."""
        names = ("m-0.safetensors", "m-1.safetensors")
        codes, scales = names[::-1] if scales_first else names
        return {codes: write_in_order([self.CODES]), scales: write_in_order([LONG, self.SCALES])}

    @pytest.mark.parametrize("scales_first", [False, True], ids=["read before its walk", "after"])
    def test_a_damaged_companion_is_no_result(self, scales_first: bool) -> None:
        """A byte that is damaged only in the reading beside: found when the walk passes, or at once where it
        has passed; and then read again."""
        files = self.files(scales_first=scales_first)
        plan = plan_of(MemorySource(files))
        scales = next(t for r in plan.recipes for t in r.decoder.inputs if t.name == "pair_scales")
        for at in (scales.start, scales.stop - 1):
            sink, events = MemorySink(), list[Event]()
            walked = 1 if scales_first else 0
            damaged = FlakySource(MemorySource(files), "wrong", path=scales.file, at=at, after=walked)
            given = allotment(lanes=1, workers=1)
            if scales_first:
                run_plan(plan, damaged, sink, given, events.append)
                assert arrays(sink.held) == raw(expected([LONG, PAIR]))
                assert damaged.struck == 1
            else:
                with pytest.raises(VerificationError, match="read otherwise before"):
                    run_plan(plan, damaged, sink, given, events.append)

    def test_a_good_companion_is_no_fault(self) -> None:
        """In either order of files, at any limit for what may be kept."""
        for scales_first in (False, True):
            files = self.files(scales_first=scales_first)
            plan = plan_of(MemorySource(files))
            for keep in (0, 100, 1 << 20):
                sink = MemorySink()
                run_plan(plan, MemorySource(files), sink, allotment(keep=keep))
                assert arrays(sink.held) == raw(expected([LONG, PAIR]))


class TestPassingFaults:
    """A part that fails in passing is written again from the source."""

    @pytest.mark.parametrize("times", range(1, ATTEMPTS))
    @pytest.mark.parametrize("where", ["open", "write", "finish"])
    def test_every_part_fails(self, where: Where, times: int) -> None:
        """Up to three failures of every part, at any step, end in the right bytes; each is reported."""
        source, sink = MemorySource(FILES), MemorySink()
        events: list[Event] = []
        flaky = FlakySink(sink, where, times=times, byte=150)
        outcome = run_plan(PLAN, source, flaky, allotment(block=1000), events.append)
        check_success(sink)
        assert [receipt.path for receipt in outcome.receipts] == [file.path for file in PLAN.outputs]
        retried = sorted((e.path, e.attempt) for e in events if isinstance(e, PartRetried))
        assert retried == sorted((p.path, n) for p in PLAN.outputs for n in range(2, times + 2))
        assert all(e.reason.endswith(f"failed at {where}") for e in events if isinstance(e, PartRetried))
        assert len([e for e in events if isinstance(e, PartDone)]) == len(PLAN.parts)
        assert sum(e.nbytes for e in events if isinstance(e, BytesRead)) == source.bytes_read

    @settings(max_examples=40, deadline=None)
    @given(
        name=st.sampled_from(["short.npy", "long.npy", "pair.npy"]),
        share=st.floats(0, 1, exclude_max=True),
        block=st.sampled_from([50, 1000, 4096, 1 << 20]),
        workers=st.integers(1, 4),
        times=st.integers(1, 3),
    )
    def test_at_any_byte(self, name: str, share: float, block: int, workers: int, times: int) -> None:
        """Wherever in the file a writer fails, the file that is published in the end is whole."""
        source, sink = MemorySource(FILES), MemorySink()
        flaky = FlakySink(sink, "write", path=f"*/{name}", byte=int(share * SIZES[name]), times=times)
        run_plan(PLAN, source, flaky, allotment(block=block, workers=workers))
        check_success(sink)
        assert sink.counted("abort") == {f"shard_000/{name}": times}

    def test_replay_reads_its_own_ranges(self) -> None:
        """A replay reads the part's primary and its companions once more, and nothing else."""
        source, sink = MemorySource(FILES), MemorySink()
        given_ = allotment(block=1000)
        run_plan(PLAN, source, FlakySink(sink, "finish", path="*/pair.npy"), given_)
        walked = Schedule(
            PLAN, everything(PLAN), block=given_.block, keep=given_.keep, room=given_.room
        ).bytes_read()
        assert source.bytes_read == walked + PAIR.blocks.nbytes + PAIR.scales.nbytes
        assert max(read.stop - read.start for read in source.reads) <= 1000

    def test_digests_are_taken_once(self) -> None:
        """Replays don't disturb the files' digests."""
        source = MemorySource(FILES)
        outcome = run_plan(PLAN, source, FlakySink(MemorySink(), "write", byte=200, times=2))
        assert outcome.digests == {file.path: file.sha256 for file in source.files}

    def test_losses_are_of_the_last_attempt(self) -> None:
        """What a failed attempt counted is not counted twice."""
        tiny = Tensor("tiny", "F32", np.full(5000, 1e-30, np.float32))
        source = MemorySource({"m.safetensors": write_in_order([tiny])})
        plan = plan_of(source, precision="float16")
        outcome = run_plan(plan, source, FlakySink(MemorySink(), "finish", times=3))
        assert outcome.losses[0].underflow == 5000

    def test_source_faults_in_a_replay_may_pass_too(self) -> None:
        """A replay that the source breaks in passing is one attempt of the part."""
        source = FlakySource(MemorySource(FILES), "drop", path="m-1*", at=500, after=1, transient=True)
        sink = MemorySink()
        events: list[Event] = []
        run_plan(PLAN, source, FlakySink(sink, "finish", path="*/pair.npy"), report=events.append)
        check_success(sink)
        assert [e.attempt for e in events if isinstance(e, PartRetried)] == [2, 3]

    @pytest.mark.parametrize("asked", [0.0, -5.0, 0.2, 1e9, float("inf")])
    def test_asked_wait(self, asked: float, monkeypatch: pytest.MonkeyPatch) -> None:
        """A wait that the sink asks for is kept, but no longer than the longest one."""
        monkeypatch.setattr(part_module, "_LONGEST_ASKED", 0.25)
        sink = MemorySink()
        begun = time.monotonic()
        run_plan(PLAN, MemorySource(FILES), FlakySink(sink, "open", path="*/short.npy", retry_after=asked))
        check_success(sink)
        assert min(max(asked, 0), 0.25) <= time.monotonic() - begun < 5


class TestLastingFaults:
    """What does not pass is raised as it is; every writer ends, and no more is read."""

    @pytest.mark.parametrize("name", ["short.npy", "long.npy", "pair.npy"])
    @pytest.mark.parametrize("where", ["open", "write", "finish"])
    @pytest.mark.parametrize("workers", [1, 3])
    def test_sink_refuses(self, where: Where, name: str, workers: int) -> None:
        """A sink's lasting error is what `run` raises, after one attempt."""
        error = DestinationError("refused")
        sink = MemorySink()
        flaky = FlakySink(sink, where, path=f"*/{name}", byte=150, times=99, error=error)
        with pytest.raises(DestinationError) as caught:
            run_plan(PLAN, MemorySource(FILES), flaky, allotment(block=1000, workers=workers))
        assert caught.value is error
        assert not sink.live
        assert sink.counted("open")[f"shard_000/{name}"] <= 1
        assert sink.commits == []

    def test_passing_fault_that_stays(self) -> None:
        """The fourth failure in passing is raised."""
        sink = MemorySink()
        events: list[Event] = []
        with pytest.raises(DestinationError, match="failed at finish"):
            run_plan(
                PLAN,
                MemorySource(FILES),
                FlakySink(sink, "finish", path="*/short.npy", times=99),
                report=events.append,
            )
        assert len([e for e in events if isinstance(e, PartRetried)]) == ATTEMPTS - 1
        assert sink.counted("abort")["shard_000/short.npy"] == ATTEMPTS
        assert not sink.live

    def test_lost_bytes(self) -> None:
        """A writer that loses bytes is found by the length."""
        sink = MemorySink()
        with pytest.raises(DestinationError, match=r"expected \d+ bytes, got 200"):
            run_plan(
                PLAN, MemorySource(FILES), FlakySink(sink, "truncate", path="*/long.npy", byte=200, times=9)
            )
        assert not sink.live

    @pytest.mark.parametrize("where", ["open", "write", "finish"])
    @pytest.mark.parametrize("error", [ValueError("ours"), MemoryError(), SystemExit(3)])
    def test_foreign_errors(self, where: Where, error: BaseException) -> None:
        """An error that is none of ours is raised as it is, too."""
        sink = MemorySink()
        flaky = FlakySink(sink, where, path="*/long.npy", byte=150, times=99, error=error)
        with pytest.raises(type(error)) as caught:
            run_plan(PLAN, MemorySource(FILES), flaky, allotment(block=1000))
        assert caught.value is error
        assert not sink.live

    @pytest.mark.parametrize("error", [DestinationError("refused"), ValueError("ours")])
    @pytest.mark.parametrize("where", ["open", "write"])
    def test_no_more_is_read(self, where: Where, error: Exception) -> None:
        """A part that is refused at its first byte stops the reading of the rest of it."""
        huge = {"m.safetensors": write_in_order([plain("huge", "F32", (500_000,))])}
        source = MemorySource(huge)
        plan = plan_of(source)
        source.reads.clear()
        with pytest.raises(type(error)):
            run_plan(plan, source, FlakySink(MemorySink(), where, error=error), allotment(block=1000))
        assert source.bytes_read < 400_000

    @pytest.mark.parametrize(("path", "at"), [("m-0*", 0), ("m-0*", 20_000), ("m-1*", 0), ("m-1*", 1500)])
    @pytest.mark.parametrize("transient", [False, True])
    def test_source_fails(self, path: str, at: int, transient: bool) -> None:
        """A source's error in any lane is raised, and all other lanes stop."""
        sink = MemorySink()
        source = FlakySource(MemorySource(FILES), "drop", path=path, at=at, times=99, transient=transient)
        with pytest.raises(SourceError, match=f"broke off at byte {at}"):
            run_plan(PLAN, source, sink, allotment(block=1000, lanes=2))
        assert not sink.live

    @pytest.mark.parametrize("order", ["blocks first", "scales first", "apart"])
    def test_scales_fail(self, order: str) -> None:
        """Scales that can't be read fail the run, wherever they lie."""
        blocks, scales = PAIR.tensors
        groups = {
            "blocks first": [[blocks, scales]],
            "scales first": [[scales, blocks]],
            "apart": [[blocks], [scales]],
        }[order]
        files = {f"m-{n}.safetensors": write_in_order(group) for n, group in enumerate(groups)}
        source = MemorySource(files)
        plan = plan_of(source)
        (spec,) = [r.decoder.inputs[1] for r in plan.recipes]
        flaky = FlakySource(source, "drop", path=spec.file, at=spec.start + 3, times=99)
        sink = MemorySink()
        with pytest.raises(SourceError, match=f"broke off at byte {spec.start + 3}"):
            run_plan(plan, flaky, sink, allotment(block=500))
        assert not sink.live
        assert sink.held == {}

    def test_source_fails_in_a_replay(self) -> None:
        """A lasting source error while a part is written again is what is raised."""
        source = FlakySource(MemorySource(FILES), "drop", path="m-0*", at=20_000, after=1, times=99)
        sink = MemorySink()
        with pytest.raises(SourceError, match="broke off at byte 20000"):
            run_plan(PLAN, source, FlakySink(sink, "finish", path="*/long.npy"))
        assert not sink.live

    def test_stop_ends_a_wait(self) -> None:
        """A part that waits 15 minutes for its next attempt does not delay another's lasting error."""
        sink = MemorySink()
        patient = FlakySink(sink, "open", path="*/short.npy", retry_after=900.0, times=9)
        flaky = FlakySink(patient, "finish", path="*/pair.npy", transient=False)
        begun = time.monotonic()
        with pytest.raises(DestinationError, match=r"pair\.npy` failed at finish"):
            run_plan(PLAN, MemorySource(FILES), flaky, allotment(workers=3))
        assert time.monotonic() - begun < 5
        assert not sink.live

    def test_first_error_is_raised(self) -> None:
        """Of several errors the first one is raised."""
        sink = MemorySink()
        late = _Late(FlakySink(sink, "finish", path="*/long.npy", error=ValueError("second")))
        first = DestinationError("first")
        with pytest.raises(DestinationError) as caught:
            run_plan(PLAN, MemorySource(FILES), FlakySink(late, "write", path="*/short.npy", error=first))
        assert caught.value is first
        assert not sink.live


class _Late:
    """A sink that takes its time to open what is long."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.put, self.commit, self.close = sink.put, sink.commit, sink.close

    def open(self, path: str, size: int) -> Any:
        if path.endswith("long.npy"):
            time.sleep(0.1)
        return self._sink.open(path, size)


def test_what_ended_can_be_drained_again() -> None:
    """A worker whose file fails drains its part, and once more when it can't be made again: neither waits."""
    plan = plan_of(MemorySource(FILES))
    part = plan.parts[0]
    run = Streamed(part, plan.recipes[part.recipe].decoder, Witness())
    run.end()
    run.drain()
    run.drain()
    with pytest.raises(Stopped):
        next(run.pieces(Reader(MemorySource(FILES), Witness(), 1000, StopFlag(), print)))


@example(
    where="write",
    pattern="*",
    byte=0,
    times=2,
    transient=True,
    drops=2,
    path="m-0*",
    at=943,
    after=0,
    block=300,
    workers=1,
    lanes=1,
    shard_size=9000,
)
@settings(max_examples=120, deadline=None)
@given(
    where=st.sampled_from(["open", "write", "finish", "truncate"]),
    pattern=st.sampled_from(["*", "*/short.npy", "*/long*", "*/pair*"]),
    byte=st.integers(0, 40_000),
    times=st.integers(0, 5),
    transient=st.booleans(),
    drops=st.integers(0, 2),
    path=st.sampled_from(["m-0*", "m-1*"]),
    at=st.integers(0, 2300) | st.integers(0, 36_000),
    after=st.integers(0, 1),
    block=st.sampled_from([300, 1000, 5000, 1 << 20]),
    workers=st.integers(1, 4),
    lanes=st.integers(1, 2),
    shard_size=st.sampled_from([2000, 9000, 1 << 20]),
)
def test_any_faults_end_well(
    where: Where,
    pattern: str,
    byte: int,
    times: int,
    transient: bool,
    drops: int,
    path: str,
    at: int,
    after: int,
    block: int,
    workers: int,
    lanes: int,
    shard_size: int,
) -> None:
    """Whatever fails: right bytes and all receipts, or one error of ours; writers all end, nothing hangs."""
    plan = plan_of(MemorySource(FILES), shard_size=shard_size)
    source = FlakySource(MemorySource(FILES), "drop", path=path, at=at, times=drops, after=after)
    sink = MemorySink()
    flaky = FlakySink(sink, where, path=pattern, byte=byte, times=times, transient=transient)
    failure: TensorportError | None = None
    receipts: tuple[Receipt, ...] = ()
    try:
        receipts = run_plan(
            plan, source, flaky, allotment(block=block, workers=workers, lanes=lanes)
        ).receipts
    except TensorportError as error:
        failure = error
    assert not sink.live
    if failure is None:
        check_success(sink)
        assert [receipt.path for receipt in receipts] == [file.path for file in plan.outputs]
    else:
        assert re.search(r"broke off|failed at|expected \d+ bytes", failure.message)
        assert drops or times
