"""Shares of a plan, carried out one by one: together they make and prove what one run does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from tensorport_hub.core.plan import Plan
from tensorport_hub.core.progress import Entry, MadeFile, Progress, ReadFile, remaining
from tensorport_hub.core.shares import share_out
from tensorport_hub.core.strips import Strip
from tensorport_hub.core.tensor import TensorSpec
from tensorport_hub.engine.blocks import StopFlag
from tensorport_hub.engine.ledger import Ledger
from tensorport_hub.engine.run import Work, carry_out
from tensorport_hub.engine.witness import Witness
from tensorport_hub.errors import SourceError, VerificationError
from tensorport_hub.ports import Source
from tests.cluster import models
from tests.engine.models import allotment, plan_of, run_plan
from tests.fakes import FlakySource, MemoryJournal, MemorySink, MemorySource

MODELS = {"bf16": models.bf16(3), "mxfp4": models.mxfp4(), "mixtral": models.mixtral()}
Readings = Sequence[tuple[str, Strip, int]]


def share(
    plan: Plan, paths: Sequence[str], source: Source, sink: MemorySink, made: Mapping[int, MadeFile]
) -> tuple[list[Entry], Readings]:
    """One share: what it enters, and what it saw of what one share reads of another one's files."""
    left = remaining(plan, Progress(made))
    work = Work(plan, left, [file for file in left.files if file.path in paths], made, allotment())
    entries: list[Entry] = []
    witness = Witness()
    carry_out(work, source, sink, entries.append, witness, StopFlag(), lambda event: None)
    return entries, witness.seen(work.schedule.from_elsewhere)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", [{}, {"formats": ("numpy-direct", "msgpack"), "shard_size": 60_000}])
def test_together_they_are_one_run(name: str, options: dict[str, object]) -> None:
    """The same files, receipts, digests and losses, in whatever order the shares are carried out."""
    source = MemorySource(MODELS[name])
    plan = plan_of(source, precision="float16", on_overflow="inf", **options)
    alone = MemorySink()
    expected = run_plan(plan, source, alone)
    together = MemorySink()
    ledger = Ledger(plan, together, MemoryJournal(), Progress())
    for one in reversed(share_out(plan, ledger.left)):
        entries, _ = share(plan, [file.path for file in one.files], source, together, {})
        assert {entry.index for entry in entries if isinstance(entry, MadeFile)} == one.outputs
        assert [entry.path for entry in entries if isinstance(entry, ReadFile)] == [f.path for f in one.files]
        for entry in entries:
            ledger.enter(entry)
    assert ledger.outcome() == expected
    assert together.held == alone.held


def test_what_is_there_is_compared_and_not_written() -> None:
    """A share that is begun again writes only what is missing, and proves the rest."""
    source = MemorySource(MODELS["bf16"])
    plan = plan_of(source)
    [path, *_] = [file.path for file in plan.files]
    entries, _ = share(plan, [path], source, MemorySink(), {})
    first, second, *_ = [entry for entry in entries if isinstance(entry, MadeFile)]
    sink = MemorySink()
    again, _ = share(plan, [path], source, sink, {first.index: first, second.index: second})
    assert not {entry.index for entry in again if isinstance(entry, MadeFile)} & {first.index, second.index}
    assert set(sink.held) == {plan.outputs[i].path for i in plan.made_of[path] - {first.index, second.index}}
    wrong = MadeFile(first.index, first.size, second.sha256)
    with pytest.raises(VerificationError, match="left by an earlier run"):
        share(plan, [path], source, MemorySink(), {first.index: wrong})


def test_readings_of_two_shares_agree() -> None:
    """Scales that one share reads are what the other one's walk has hashed."""
    source = MemorySource(MODELS["mxfp4"])
    plan = plan_of(source)
    together = Witness()
    seen = 0
    for one in share_out(plan, remaining(plan, Progress())):
        _, readings = share(plan, [file.path for file in one.files], source, MemorySink(), {})
        compare(together, readings)
        seen += len(readings)
    assert seen >= 2 * len(scales(plan)) > 0


def compare(witness: Witness, readings: Readings) -> None:
    """As the coordinator does."""
    for file, strip, crc in readings:
        witness.passed(file, strip, crc)


def scales(plan: Plan) -> list[TensorSpec]:
    """Stored tensors that lie in another file than the one whose walk decodes them."""
    return [
        tensor
        for recipe in plan.recipes
        for tensor in recipe.decoder.inputs[1:]
        if tensor.file != recipe.decoder.inputs[0].file
    ]


def test_a_reading_that_is_not_what_the_walk_hashed() -> None:
    """A wrong byte that one share got of another one's file is found when the two are compared."""
    good = MemorySource(MODELS["mxfp4"])
    plan = plan_of(good)
    first = scales(plan)[0]
    reader, owner = plan.recipes[0].decoder.inputs[0].file, first.file
    bad = FlakySource(good, "wrong", path=owner, at=first.start, times=1e9)
    _, read = share(plan, [reader], bad, MemorySink(), {})
    _, hashed = share(plan, [owner], good, MemorySink(), {})
    assert bad.struck
    together = Witness()
    with pytest.raises(VerificationError, match="read otherwise before"):
        compare(together, [*read, *hashed])


def test_a_share_can_be_stopped_from_outside() -> None:
    """Who sets the flag ends it, with his reason."""
    plan = plan_of(MemorySource(MODELS["bf16"]))
    left = remaining(plan, Progress())
    work = Work(plan, left, left.files, {}, allotment())
    stop = StopFlag()
    stop.fail(SourceError("enough"))
    sink = MemorySink()
    with pytest.raises(SourceError, match="enough"):
        carry_out(work, MemorySource(MODELS["bf16"]), sink, print, Witness(), stop, lambda event: None)
    assert not sink.held
    assert not sink.live
