"""Who waits for whom: sinks with little room, slow sides, interruptions. Nothing may wait in a circle."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.schedule import Schedule
from tensorport_hub.core.walk import Piece, Walk
from tensorport_hub.engine import part
from tensorport_hub.engine.blocks import BlockPool, StopFlag
from tensorport_hub.engine.budget import Allotment
from tensorport_hub.engine.feed import PartRun, Streamed
from tensorport_hub.engine.outputs import Outputs
from tensorport_hub.engine.part import PartWriter
from tensorport_hub.engine.reader import Reader
from tensorport_hub.engine.witness import Witness
from tensorport_hub.errors import DestinationError, SourceError
from tensorport_hub.ports import Published, Receipt, Sink, Writer
from tests.engine.models import (
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
from tests.fakes import BoundedSink, FlakySink, FlakySource, MemorySink, MemorySource

pytestmark = pytest.mark.timeout(60)


def source_of(*tensors: Tensor) -> MemorySource:
    """One file for each tensor name's first letter."""
    letters = sorted({tensor.name[0] for tensor in tensors})
    return MemorySource(
        {f"{n}.safetensors": write_in_order([t for t in tensors if t.name[0] == n]) for n in letters}
    )


class HookedSink:
    """Another sink; `hook(step, path)` is called before each `open`, `write` and `finish`."""

    def __init__(self, sink: Sink, hook: Callable[[str, str], None]) -> None:
        self.sink, self.hook = sink, hook
        self.put, self.close = sink.put, sink.close

    def open(self, path: str, size: int) -> Writer:
        self.hook("open", path)
        return _Hooked(self, self.sink.open(path, size), path)

    def commit(self, receipts: Sequence[Receipt]) -> Published:
        return self.sink.commit(receipts)


class _Hooked:
    def __init__(self, hooked: HookedSink, writer: Writer, path: str) -> None:
        self._hook, self._writer, self._path = hooked.hook, writer, path
        self.abort = writer.abort

    def write(self, block: memoryview) -> None:
        self._hook("write", self._path)
        self._writer.write(block)

    def finish(self) -> Receipt:
        self._hook("finish", self._path)
        return self._writer.finish()


class TestLittleRoom:
    """Sinks whose `open` waits for room that other writers hold."""

    def test_small_part_does_not_overtake(self) -> None:
        """A later part that would fit waits for an earlier one that does not yet.

        `q` needs more room than `r` leaves, and holds two of the lane's four blocks; `s`, behind it, fits
        at once, and would then wait for a block that the lane can't hand on before `q` lets go.
        """
        sizes = {"ar": 1000, "aq": 6000, "as": 5000, "at": 5000, "au": 5000, "av": 5000}
        tensors = [plain(name, "F32", (size,)) for name, size in sizes.items()]
        source, sink = source_of(*tensors), MemorySink()
        overtaken = threading.Event()

        def hook(step: str, path: str) -> None:
            if (step, path) == ("write", "shard_000/as.npy"):
                overtaken.set()
            if (step, path) == ("finish", "shard_000/ar.npy"):
                overtaken.wait(0.3)

        bounded = BoundedSink(HookedSink(sink, hook), staging=24_300)
        run_plan(plan_of(source), source, bounded, allotment(block=16_384, workers=3))
        assert arrays(sink.held) == raw(expected(tensors))
        opened = [path for event, path in sink.events if event == "open"]
        assert opened == [f"shard_000/{name}.npy" for name in sizes]

    @settings(max_examples=40, deadline=None)
    @given(
        sizes=st.lists(st.sampled_from([1, 100, 1000, 3000]), min_size=1, max_size=14),
        letters=st.text("abc", min_size=14, max_size=14),
        room=st.floats(0, 1),
        writers=st.integers(1, 3),
        workers=st.integers(1, 8),
        block=st.sampled_from([400, 2000, 5000]),
        fault=st.sampled_from(["none", "write", "finish"]),
    )
    def test_any_room(
        self, sizes: list[int], letters: str, room: float, writers: int, workers: int, block: int, fault: str
    ) -> None:
        """Room for the largest part alone, or for one writer, is enough for any workers and lanes."""
        tensors = [plain(f"{letters[i]}{i:02d}", "F32", (size,)) for i, size in enumerate(sizes)]
        source, sink = source_of(*tensors), MemorySink()
        plan = plan_of(source)
        staging = max(file.size for file in plan.outputs)
        staging += int(room * sum(file.size for file in plan.outputs))
        bounded: Sink = BoundedSink(sink, staging=staging, writers=writers)
        if fault == "write":
            bounded = FlakySink(bounded, "write", byte=500)
        elif fault == "finish":
            bounded = FlakySink(bounded, "finish", times=2)
        run_plan(plan, source, bounded, allotment(block=block, workers=workers, lanes=min(3, workers)))
        assert arrays(sink.held) == raw(expected(tensors))

    def test_failure_wakes_those_who_wait(self) -> None:
        """A part that fails for good gives its room back, and the run ends with its error."""
        tensors = [plain(f"a{i}", "F32", (1000,)) for i in range(6)]
        source, sink = source_of(*tensors), MemorySink()
        flaky = FlakySink(BoundedSink(sink, staging=5000), "write", path="*a0*", byte=200, transient=False)
        with pytest.raises(DestinationError, match="a0"):
            run_plan(plan_of(source), source, flaky, allotment(workers=4))
        assert not sink.live


class TestSmallFiles:
    """Many small files end at a time, whatever the number of workers."""

    def test_they_end_together(self) -> None:
        """With one worker, twelve files wait for each other in `finish`, and all come through."""
        tensors = [plain(f"a{i}", "F32", (10,)) for i in range(24)]
        source, sink, together = source_of(*tensors), MemorySink(), threading.Barrier(12, timeout=20)

        def hook(step: str, path: str) -> None:
            if step == "finish":
                together.wait()

        run_plan(plan_of(source), source, HookedSink(sink, hook), allotment(workers=1))
        assert arrays(sink.held) == raw(expected(tensors))

    def test_a_large_file_ends_with_its_worker(self) -> None:
        """One worker finishes one large file after another, so no two are open in the sink."""
        tensors = [plain(f"a{i}", "F32", (300_000,)) for i in range(3)]
        source, sink = source_of(*tensors), MemorySink()
        open_now: list[int] = []

        def hook(step: str, path: str) -> None:
            if step == "open":
                open_now.append(len(sink.live))

        run_plan(plan_of(source), source, HookedSink(sink, hook), allotment(workers=1))
        assert open_now == [0, 0, 0]

    def test_one_that_is_made_again_waits_for_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It waits for the next file's room in the sink, and that one for its place: the worker ends it."""
        monkeypatch.setattr(sys.modules["tensorport_hub.engine.run"], "_PATIENCE", 0.1)
        tensors = [plain(f"a{i}", "F32", (10,)) for i in range(8)]
        source, sink = source_of(*tensors), MemorySink()
        flaky = FlakySink(BoundedSink(sink, staging=200), "finish", path="*/a0.npy")
        run_plan(plan_of(source), source, flaky, allotment(workers=1, ending=1))
        assert arrays(sink.held) == raw(expected(tensors))

    @pytest.mark.parametrize("transient", [False, True])
    def test_one_that_fails(self, transient: bool) -> None:
        """For good: the run ends with its error, and nothing stays open. In passing: it is made again."""
        tensors = [plain(f"a{i}", "F32", (10,)) for i in range(40)]
        source, sink = source_of(*tensors), MemorySink()
        failed: list[str] = []

        def hook(step: str, path: str) -> None:
            if step == "finish" and path.endswith("a7.npy") and not failed:
                failed.append(path)
                raise DestinationError("refused", transient=transient)

        hooked = HookedSink(sink, hook)
        if transient:
            run_plan(plan_of(source), source, hooked)
            assert arrays(sink.held) == raw(expected(tensors))
        else:
            with pytest.raises(DestinationError, match="refused"):
                run_plan(plan_of(source), source, hooked)
        assert failed
        assert not sink.live


class TestStopping:
    """An error ends what others are doing."""

    def test_replay_ends(self) -> None:
        """A part that is being written again, slowly, gives up when another one fails for good."""
        tensors = [plain("a", "F32", (100_000,)), plain("b", "F32", (10,))]
        source, sink = source_of(*tensors), MemorySink()
        again = threading.Event()
        attempts: list[int] = []

        def hook(step: str, path: str) -> None:
            if path.endswith("b.npy"):
                if step == "write":
                    again.wait(20)
                    raise DestinationError("refused")
            elif step == "open":
                attempts.append(0)
            elif len(attempts) > 1:
                attempts[-1] += 1
                again.set()
                time.sleep(0.005)

        flaky = FlakySink(HookedSink(sink, hook), "finish", path="*/a.npy")
        with pytest.raises(DestinationError, match="refused"):
            run_plan(plan_of(source), source, flaky, allotment(block=1000))
        assert 1 <= attempts[1] < 200
        assert not sink.live

    def test_a_walk_that_never_begins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What fails before the first byte of a file, such as for want of memory, is what the run raises."""
        source = source_of(*(plain(letter, "F32", (10,)) for letter in "abc"))
        plan, walk = plan_of(source), Schedule.walk

        def fail(self: Schedule, file: SourceFile) -> Walk:
            if file.path.startswith("b"):
                raise MemoryError("no room for a walk")
            return walk(self, file)

        monkeypatch.setattr(Schedule, "walk", fail)
        with pytest.raises(MemoryError, match="no room for a walk"):
            run_plan(plan, source, MemorySink())

    def test_files_not_begun_are_not_read(self) -> None:
        """With one lane, a file behind one that failed is never touched."""
        source = source_of(*(plain(letter, "F32", (1000,)) for letter in "abcdef"))
        plan = plan_of(source)
        source.reads.clear()
        flaky = FlakySource(source, "drop", path="b.*", at=1000)
        with pytest.raises(SourceError, match="broke off"):
            run_plan(plan, flaky, MemorySink(), allotment(block=500, lanes=1))
        assert {read.path for read in source.reads} == {"a.safetensors", "b.safetensors"}


@contextmanager
def held_back(source: MemorySource, sink: Sink, chosen: Allotment) -> Iterator[int]:
    """A run whose sink lets no byte pass until this ends; the bytes that it has read by then."""
    go_on = threading.Event()

    def hook(step: str, path: str) -> None:
        if step == "write":
            go_on.wait(20)

    plan = plan_of(source)
    source.reads.clear()
    thread = threading.Thread(target=run_plan, args=(plan, source, HookedSink(sink, hook), chosen))
    thread.start()
    try:
        _settle(lambda: source.bytes_read)
        yield source.bytes_read
    finally:
        go_on.set()
        thread.join()


def _parts_alive() -> list[PartRun]:
    return [thing for thing in gc.get_objects() if isinstance(thing, PartRun)]


class TestReadAhead:
    """A slow sink holds the reading back."""

    @pytest.mark.parametrize("lanes", [1, 3])
    @pytest.mark.parametrize("block", [1000, 8000])
    def test_is_bounded(self, lanes: int, block: int) -> None:
        """While no byte is written, each lane reads as many blocks as it has buffers, and no more."""
        tensors = [plain(f"{letter}x", "F32", (60_000,)) for letter in "abc"]
        source, sink = source_of(*tensors), MemorySink()
        chosen = allotment(block=block, lanes=lanes, workers=3)
        with held_back(source, sink, chosen) as ahead:
            assert lanes * block <= ahead <= lanes * chosen.buffers * block
        assert arrays(sink.held) == raw(expected(tensors))

    @pytest.mark.parametrize("lanes", [1, 3])
    def test_of_short_files_is_bounded(self, lanes: int) -> None:
        """The same where one file after another would fit the buffers of a lane."""
        tensors = [plain(f"{letter}x", "F32", (450,)) for letter in "abcdefghijklmnopqrstuvwxyz"]
        source, sink = source_of(*tensors), MemorySink()
        chosen = allotment(block=1000, lanes=lanes)
        with held_back(source, sink, chosen) as ahead:
            assert lanes * 1800 <= ahead <= lanes * chosen.buffers * 1000
        assert arrays(sink.held) == raw(expected(tensors))

    def test_of_small_parts_is_bounded(self) -> None:
        """A block holds hundreds of them: few are given to the workers before those take some."""
        tensors = [plain(f"a{i:04}", "F32", (8,)) for i in range(900)]
        source, sink = source_of(*tensors), MemorySink()
        chosen = allotment(block=8000)
        others = _parts_alive()  # of runs before, kept so that none of them gives way meanwhile
        with held_back(source, sink, chosen):
            waiting = len(_parts_alive()) - len(others)
            assert chosen.workers < waiting <= part._MOST_GIVEN + chosen.workers + chosen.lanes
        assert arrays(sink.held) == raw(expected(tensors))

    def test_of_companions_is_bounded(self) -> None:
        """Many parts with scales far ahead: what is kept stays within the allotment."""
        pairs = [experts(f"a{i:02d}", (64, 16, 64)) for i in range(12)]
        tensors = stored(pairs)
        scales = tensors[1::2]
        source = MemorySource({"m.safetensors": write_in_order([*tensors[::2], *scales])})
        plan = plan_of(source)
        chosen = allotment(block=100_000, keep=200_000, lanes=1, workers=1)
        run_plan(plan, source, Discard(), chosen)
        tracemalloc.start()
        run_plan(plan, source, Discard(), chosen)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        scratch = 6_000_000  # one tile: indices, table words, values
        assert sum(scale.values.nbytes for scale in scales) > 3 * chosen.keep
        assert peak < chosen.buffers * chosen.block + chosen.keep + 4 * scales[0].values.nbytes + scratch


class TestMemory:
    """Memory does not grow with the weights."""

    @pytest.mark.parametrize("precision", ["keep", "bfloat16"])
    def test_peak(self, precision: str) -> None:
        """A file of 24 MB passes through a few blocks of 64 KiB."""
        source = source_of(*(plain(f"a{i}", "F32", (1_500_000,)) for i in range(4)))
        plan = plan_of(source, precision=precision)
        chosen = allotment(block=65_536, workers=2)
        run_plan(plan, source, Discard(), chosen)
        tracemalloc.start()
        run_plan(plan, source, Discard(), chosen)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 3_000_000


class Discard:
    """A sink that keeps nothing."""

    def open(self, path: str, size: int) -> Writer:
        return _Discarded(path, size)

    def put(self, path: str, content: bytes) -> Receipt:
        return Receipt(path, len(content), "")

    def commit(self, receipts: Sequence[Receipt]) -> Published:
        return Published("", None, None, True)

    def close(self) -> None: ...


class _Discarded:
    def __init__(self, path: str, size: int) -> None:
        self._receipt = Receipt(path, size, "")

    def write(self, block: memoryview) -> None: ...

    def finish(self) -> Receipt:
        return self._receipt

    def abort(self) -> None: ...


class TestBlocksComeBack:
    """A part that fails holds no block of its lane."""

    def test_while_it_is_written_again(self) -> None:
        """The block at which a writer failed is free before the part's second attempt."""
        source = source_of(plain("a", "F32", (300,)))
        plan = plan_of(source)
        stop = StopFlag()
        pool = BlockPool(1, 1200, stop)
        taken: list[bool] = []

        class Watching(MemorySource):
            def read_into(self, path: str, start: int, buffer: memoryview) -> None:
                pool.take(1200).release()
                taken.append(True)
                super().read_into(path, start, buffer)

        watching = Watching(source.contents)
        sink = MemorySink()
        witness = Witness()
        reader = Reader(watching, witness, 600, stop, lambda event: None)
        outputs = Outputs(plan, FlakySink(sink, "write", byte=600), frozenset([0]), {}, lambda event: None)
        decoder = plan.recipes[0].decoder
        writer = PartWriter(
            plan,
            reader,
            outputs,
            lambda part: Streamed(part, decoder, witness, pulls=True),
            lambda output, run: writer.finish(output),
            lambda file, receipt, lost: None,
            stop,
            lambda event: None,
        )
        run = Streamed(plan.parts[0], decoder, witness)
        block = pool.take(1200)
        tensor = plan.recipes[0].decoder.inputs[0]
        MemorySource.read_into(watching, tensor.file, tensor.start, block.data.data)
        run.feed(Piece(plan.parts[0], 0, 0, 400, 0), dict, block)
        run.feed(Piece(plan.parts[0], 0, 400, 1200, 400), dict, block)
        block.release()
        writer.give(run)
        timer = threading.Timer(10, stop.fail, [TimeoutError("the block did not come back")])
        timer.start()
        writer.write(*writer.take())
        timer.cancel()
        timer.join()
        assert taken == [True, True]
        assert arrays(sink.held)["a"][2] == source.contents["a.safetensors"][-1200:]


class TestInterruption:
    """`KeyboardInterrupt` in the main thread, as Ctrl-C raises it."""

    def interrupt_when(self, ready: Callable[[], bool]) -> threading.Thread:
        """A thread that sends SIGINT to the main thread once `ready`."""
        main = threading.main_thread().ident
        assert main is not None

        def send() -> None:
            deadline = time.monotonic() + 20
            while not ready() and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(0.02)
            signal.pthread_kill(main, signal.SIGINT)

        thread = threading.Thread(target=send)
        thread.start()
        return thread

    def test_while_all_is_moving(self) -> None:
        """It ends the run within seconds, every writer was given up, and nothing was committed."""
        source = source_of(plain("a", "F32", (200_000,)), plain("b", "F32", (200_000,)))
        sink = MemorySink()
        slow = HookedSink(sink, lambda step, path: time.sleep(0.01) if step == "write" else None)
        plan = plan_of(source)
        source.reads.clear()
        sender = self.interrupt_when(lambda: sink.bytes_written > 10_000)
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            run_plan(plan, source, slow, allotment(block=1000))
        assert time.monotonic() - begun < 5
        sender.join()
        assert not sink.live
        assert source.bytes_read < 400_000

    def test_after_the_last_byte_was_read(self) -> None:
        """While only writers are busy, it waits for them to let go before it is raised."""
        source = source_of(plain("a", "F32", (1000,)))
        sink = MemorySink()
        writing = threading.Event()

        def hook(step: str, path: str) -> None:
            if step == "finish":
                writing.set()
                time.sleep(0.5)

        sender = self.interrupt_when(writing.is_set)
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            run_plan(plan_of(source), source, HookedSink(sink, hook))
        assert time.monotonic() - begun < 5
        assert not sink.live
        sender.join()

    @pytest.mark.parametrize(("side", "grace"), [("source", 0.3), ("sink", None)])
    def test_while_one_side_hangs(
        self, side: str, grace: float | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A read or a write that never returns does not hold it up for more than a few seconds."""
        if grace is not None:
            monkeypatch.setattr(sys.modules["tensorport_hub.engine.run"], "_GRACE", grace)
        hung, release = threading.Event(), threading.Event()

        class Hanging(MemorySource):
            def read_into(self, path: str, start: int, buffer: memoryview) -> None:
                if side == "source" and start > 2000:
                    hung.set()
                    release.wait(30)
                super().read_into(path, start, buffer)

        def hook(step: str, path: str) -> None:
            if side == "sink" and step == "write":
                hung.set()
                release.wait(30)

        source = Hanging(source_of(plain("a", "F32", (5000,))).contents)
        plan = plan_of(source, verify_source="no") if side == "sink" else plan_of(source)
        sender = self.interrupt_when(hung.is_set)
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            run_plan(plan, source, HookedSink(MemorySink(), hook), allotment(block=1000))
        assert time.monotonic() - begun < 5
        release.set()
        sender.join()

    def test_nobody_waits_for_ever_to_finish_a_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Workers that waited for others to finish theirs end once the sink lets go, late as that may be."""
        for seconds in ("_GRACE", "_PATIENCE"):
            monkeypatch.setattr(sys.modules["tensorport_hub.engine.run"], seconds, 0.3)
        hung, release = threading.Event(), threading.Event()

        def hook(step: str, path: str) -> None:
            if step == "finish":
                hung.set()
                release.wait(30)

        others = {*threading.enumerate()}
        source = source_of(*(plain(f"{letter}{i}", "F32", (10,)) for letter in "abc" for i in range(6)))
        sink, chosen = MemorySink(), allotment(workers=3, lanes=3, ending=1)
        sender = self.interrupt_when(hung.is_set)
        with pytest.raises(KeyboardInterrupt):
            run_plan(plan_of(source), source, HookedSink(sink, hook), chosen)
        release.set()
        for thread in {*threading.enumerate()} - others:
            thread.join(10)
        assert {*threading.enumerate()} <= others
        assert not sink.live
        sender.join()


def _settle(value: Callable[[], int]) -> None:
    """Wait until a number stays what it is."""
    last, since = -1, time.monotonic()
    while time.monotonic() - since < 0.3:
        now = value()
        if now != last:
            last, since = now, time.monotonic()
        time.sleep(0.01)
    assert last > 0


def test_arrays_of_the_tests_are_not_empty() -> None:
    """The comparison above compares something: another array is told apart."""
    tensors = [plain("a", "F32", (10,))]
    other = [Tensor("a", "F32", np.zeros(10, np.float32))]
    assert raw(expected(tensors)) != raw(expected(other))
