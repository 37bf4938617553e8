"""Runs that die at any step and are continued: the same bytes, nothing made twice that was kept.

A run is killed here by an error that no retry survives, at the n-th call that leaves the engine: a read, an
open, a write, a finish, a journal entry. What the sink holds and the journal knows then is what the next run
finds; a part may be held without being entered, as after a kill between the two.
"""

from __future__ import annotations

import hashlib
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.progress import Entry, MadeFile, Progress, ReadFile, gathered
from tensorport_hub.engine import Outcome
from tensorport_hub.errors import DestinationError, VerificationError
from tensorport_hub.ports import BytesRead, Event, PartDone, Receipt, Resumed, Sink, Source, Writer
from tests.engine.models import (
    Made,
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
from tests.fakes import MemoryJournal, MemorySink, MemorySource

PAIR = experts("pair", (8, 4, 4))
CODES, SCALES = stored([PAIR])
PLAIN = [plain(f"t{i}", "F32", (50, 30)) for i in range(6)]
MADE: Made = [*PLAIN, PAIR]
FILES = {
    "m-0.safetensors": write_in_order(PLAIN[:3]),
    "m-1.safetensors": write_in_order([PLAIN[3], CODES]),
    "m-2.safetensors": write_in_order([SCALES, *PLAIN[4:]]),
}
TOTAL = sum(map(len, FILES.values()))


class Killed(DestinationError):
    """The end of a run."""


class Fuse:
    """Counts calls; the one with number `at`, and every one after it, kills."""

    def __init__(self, at: float) -> None:
        self.at, self.calls = at, 0
        self.lock = threading.Lock()

    def burn(self) -> None:
        with self.lock:
            self.calls += 1
            if self.calls > self.at:
                raise Killed("killed")


class FusedSource(MemorySource):
    """A source whose reads burn the fuse."""

    fuse = Fuse(float("inf"))

    def read_into(self, path: str, start: int, buffer: memoryview) -> None:
        self.fuse.burn()
        super().read_into(path, start, buffer)


class FusedSink:
    """A sink whose calls burn the fuse, before and after `finish`."""

    def __init__(self, sink: MemorySink, fuse: Fuse) -> None:
        self.sink, self.fuse = sink, fuse

    def open(self, path: str, size: int) -> Writer:
        self.fuse.burn()
        return FusedWriter(self.sink.open(path, size), self.fuse)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sink, name)


class FusedWriter:
    """A writer of it."""

    def __init__(self, writer: Writer, fuse: Fuse) -> None:
        self.writer, self.fuse = writer, fuse

    def write(self, block: memoryview) -> None:
        self.fuse.burn()
        self.writer.write(block)

    def finish(self) -> Receipt:
        self.fuse.burn()
        receipt = self.writer.finish()
        self.fuse.burn()
        return receipt

    def abort(self) -> None:
        self.writer.abort()


class FusedJournal(MemoryJournal):
    """A journal whose entries burn the fuse."""

    def __init__(self, progress: Progress, fuse: Fuse) -> None:
        super().__init__(progress)
        self.fuse = fuse

    def add(self, entry: Entry) -> None:
        self.fuse.burn()
        super().add(entry)


def kept(entries: list[Entry]) -> set[int]:
    """The parts that a journal knows."""
    return {entry.index for entry in entries if isinstance(entry, MadeFile)}


def go(plan: Any, source: Source, sink: Sink, journal: MemoryJournal, **limits: Any) -> Outcome:
    """A run with small blocks."""
    return run_plan(plan, source, sink, allotment(block=500, **limits), journal=journal)


def check(sink: MemorySink, outcome: Outcome, undisturbed: Outcome) -> None:
    """The result is the undisturbed run's."""
    assert arrays(sink.held) == raw(expected(MADE))
    assert outcome == undisturbed


@pytest.mark.parametrize("verify", ["auto", "no"])
def test_killed_at_every_call(verify: str) -> None:
    """Wherever a run dies, the next one ends with the same receipts, digests and bytes; what the journal had
    kept is not opened again, and a file that was done is not read again."""
    plan = plan_of(MemorySource(FILES), verify_source=verify)
    undisturbed = go(plan, MemorySource(FILES), MemorySink(), MemoryJournal(), lanes=1, workers=1)
    at = calls = 0
    while at <= calls:
        sink, fuse = MemorySink(), Fuse(at)
        source = FusedSource(FILES)
        source.fuse = fuse
        first = FusedJournal(Progress(), fuse)
        try:
            outcome = go(plan, source, FusedSink(sink, fuse), first, lanes=1, workers=1, ending=1)
        except Killed:
            opened = sink.counted("open")
            second, again = first.next(), MemorySource(FILES)
            outcome = go(plan, again, sink, second, lanes=1, workers=1)
            once = {plan.outputs[index].path for index in kept(first.entries)}
            assert {path: sink.counted("open")[path] - opened[path] for path in once} == dict.fromkeys(
                once, 0
            )
            assert kept(first.entries) | kept(second.entries) == {part.index for part in plan.parts}
            check_reads(verify, source, again, first)
        check(sink, outcome, undisturbed)
        calls, at = max(calls, fuse.calls), at + 1
    assert at > 80


def check_reads(verify: str, source: MemorySource, again: MemorySource, first: MemoryJournal) -> None:
    """At most what was in flight is read again: with proof whole files; without it parts, one that is read,
    one that is written and one that is finished."""
    largest = max(map(len, FILES.values())) if verify == "auto" else PLAIN[0].values.nbytes + 3000
    most = TOTAL + (2 if verify == "auto" else 3) * largest + len(SCALES.values.tobytes())
    assert source.bytes_read + again.bytes_read <= most


@settings(max_examples=60, deadline=None)
@given(
    kills=st.lists(st.integers(0, 60), max_size=6),
    workers=st.integers(1, 4),
    lanes=st.integers(1, 3),
    keep=st.sampled_from([0, 100, 1 << 20]),
    verify=st.sampled_from(["auto", "no", "whole"]),
)
def test_killed_again_and_again(kills: list[int], workers: int, lanes: int, keep: int, verify: str) -> None:
    """Any number of kills, with other workers and limits each time, come to the same end."""
    plan = plan_of(MemorySource(FILES), verify_source=verify)
    undisturbed = go(plan, MemorySource(FILES), MemorySink(), MemoryJournal())
    sink, entries = MemorySink(), list[Entry]()
    for at in [*kills, float("inf")]:
        fuse, source = Fuse(at), FusedSource(FILES)
        source.fuse = fuse
        journal = FusedJournal(gathered(entries), fuse)
        journal.entries = list(entries)
        try:
            outcome = go(
                plan, source, FusedSink(sink, fuse), journal, workers=workers, lanes=lanes, keep=keep
            )
        except Killed:
            entries = journal.entries
            continue
        check(sink, outcome, undisturbed)
        break


def finished(verify: str = "auto") -> tuple[Any, MemorySink, MemoryJournal]:
    """A plan, and what a complete run of it left."""
    plan = plan_of(MemorySource(FILES), verify_source=verify)
    sink, journal = MemorySink(), MemoryJournal()
    go(plan, MemorySource(FILES), sink, journal)
    return plan, sink, journal


def test_a_finished_run_reads_nothing() -> None:
    """All parts are there and all files proven: not a byte is read, not a file opened."""
    plan, sink, journal = finished()
    before = len(sink.events)
    source, second = MemorySource(FILES), journal.next()
    go(plan, source, sink, second)
    assert source.bytes_read == 0
    assert sink.events[before:] == []
    assert second.entries == []


def test_what_the_sink_lost_is_made_again() -> None:
    """The journal is a hint: a part that is gone or damaged in the sink is made again, alone."""
    plan, sink, journal = finished("no")
    gone, damaged = plan.outputs[1].path, plan.outputs[4].path
    del sink.held[gone]
    sink.held[damaged] = sink.held[damaged][:-1] + b"\0"
    before = len(sink.events)
    go(plan, MemorySource(FILES), sink, journal.next())
    assert sorted(path for kind, path in sink.events[before:] if kind == "open") == sorted([gone, damaged])
    assert arrays(sink.held) == raw(expected(MADE))


def test_a_part_of_another_size_is_not_believed() -> None:
    """An entry whose size is not the plan's counts for nothing."""
    plan, sink, journal = finished("no")
    entries = dict(journal.next().progress.made)
    entries[0] = MadeFile(0, entries[0].size - 1, entries[0].sha256)
    before = len(sink.events)
    go(plan, MemorySource(FILES), sink, MemoryJournal(Progress(entries)))
    assert [path for kind, path in sink.events[before:] if kind == "open"] == [plan.outputs[0].path]


def test_parts_of_an_unproven_file_are_proven() -> None:
    """A part that an earlier run made of bytes that are not what the source gives now is never published."""
    plan, sink, journal = finished()
    path = plan.outputs[0].path
    wrong = sink.held[path][:-1] + b"\xff"
    sink.held[path] = wrong
    entries = dict(journal.next().progress.made)
    entries[0] = MadeFile(0, len(wrong), hashlib.sha256(wrong).hexdigest())
    files = {p: sha for p, sha in journal.next().progress.files.items() if p != "m-0.safetensors"}
    with pytest.raises(VerificationError, match="left by an earlier run") as caught:
        go(plan, MemorySource(FILES), sink, MemoryJournal(Progress(entries, files)))
    assert "made anew" in caught.value.hint


def test_losses_are_those_of_one_run() -> None:
    """What rounding cost is counted once, in whichever run a part was made."""
    made = [plain("a", "F32", (100,)), plain("b", "F32", (100,))]
    for tensor in made:
        tensor.values[3:7] = 1e-30
    files = {"m.safetensors": write_in_order(made)}
    plan = plan_of(MemorySource(files), precision="float16")
    sink, journal = MemorySink(), MemoryJournal()
    undisturbed = run_plan(plan, MemorySource(files), sink, journal=journal)
    assert {i: lost.underflow for i, lost in undisturbed.losses.items()} == {0: 4, 1: 4}
    first = [entry for entry in journal.entries if isinstance(entry, MadeFile) and entry.index == 0]
    half = MemoryJournal(Progress({0: first[0]}))
    assert run_plan(plan, MemorySource(files), sink, journal=half) == undisturbed


def test_events_of_a_continued_run() -> None:
    """`Resumed` says what is there; parts that are only proven are neither written nor done again."""
    plan, sink, journal = finished()
    entries = journal.next().progress.made
    events: list[Event] = []
    run_plan(plan, MemorySource(FILES), sink, None, events.append, MemoryJournal(Progress(entries)))
    resumed = [event for event in events if isinstance(event, Resumed)]
    assert resumed == [Resumed(len(plan.parts), plan.bytes_out)]
    assert not any(isinstance(event, PartDone) for event in events)
    assert sum(event.nbytes for event in events if isinstance(event, BytesRead)) >= TOTAL


def test_a_journal_that_fails_stops_the_run() -> None:
    """A disk that is full, or another run that took over: its error is the run's."""
    plan = plan_of(MemorySource(FILES))
    failing = MemoryJournal(failing=DestinationError("journal is full"))
    with pytest.raises(DestinationError, match="journal is full"):
        go(plan, MemorySource(FILES), MemorySink(), failing)


def test_files_are_entered_once_they_are_proven() -> None:
    """Each whole file's digest is in the journal; files of which only ranges are read are not."""
    _, _, journal = finished()
    assert {e.path for e in journal.entries if isinstance(e, ReadFile)} == set(FILES)
    _, _, journal = finished("no")
    assert not any(isinstance(entry, ReadFile) for entry in journal.entries)
