"""Shares: what is left, divided without loss, and never across an output file."""

from __future__ import annotations

import pytest

from tensorport_hub.core.plan import Plan
from tensorport_hub.core.progress import MadeFile, Progress, remaining
from tensorport_hub.core.shares import Share, share_out
from tests.cluster import models
from tests.engine.models import plan_of
from tests.fakes import MemorySource

MODELS = {"bf16": models.bf16(5), "mxfp4": models.mxfp4(), "mixtral": models.mixtral()}


def plan(name: str, **options: object) -> Plan:
    return plan_of(MemorySource(MODELS[name]), **options)


def shares_of(made: Plan, progress: Progress = Progress()) -> tuple[Share, ...]:  # noqa: B008 (frozen)
    return share_out(made, remaining(made, progress))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("experts", ["source", "stacked"])
@pytest.mark.parametrize("formats", [("numpy-direct",), ("numpy-direct", "msgpack"), ("msgpack",)])
def test_every_file_and_output_is_in_one_share(name: str, experts: str, formats: tuple[str, ...]) -> None:
    """Shares cover source files and outputs exactly once, in plan order."""
    made = plan(name, experts=experts, formats=formats, shard_size=100_000)
    shares = shares_of(made)
    files = [file for share in shares for file in share.files]
    assert sorted(files, key=made.files.index) == [*made.files]
    assert [share.files[0] for share in shares] == sorted(
        (share.files[0] for share in shares), key=made.files.index
    )
    outputs = [number for share in shares for number in share.outputs]
    assert sorted(outputs) == [file.index for file in made.outputs]


@pytest.mark.parametrize("name", MODELS)
def test_a_file_a_share(name: str) -> None:
    """Where each output file holds one tensor, nothing ties source files together: not even companions."""
    assert [share.files for share in shares_of(plan(name))] == [(file,) for file in plan(name).files]


def test_containers_tie_files_together() -> None:
    """Source files whose tensors share a file are one share; others are not."""
    whole = shares_of(plan("bf16", formats=("msgpack",)))
    assert len(whole) == 1
    assert whole[0].nbytes == sum(file.size for file in plan("bf16").files)
    each = plan("bf16", formats=("msgpack",), shard_size=320_000)
    assert 1 < len(shares_of(each)) <= len(each.files)


def test_what_is_finished_is_in_no_share() -> None:
    """A source file with nothing left is walked by nobody."""
    made = plan("bf16")
    first = made.files[0]
    done = {i: MadeFile(i, made.outputs[i].size, "0" * 64) for i in made.made_of[first.path]}
    left = shares_of(made, Progress(done, {first.path: "1" * 64}))
    assert [share.name for share in left] == [file.path for file in made.files[1:]]
    unproven = shares_of(made, Progress(done))
    assert [share.name for share in unproven] == [file.path for file in made.files]
    assert unproven[0].outputs == made.made_of[first.path]
