"""Foreign checkpoints with damaged headers, configurations, facts and weights, through the whole engine."""

from __future__ import annotations

import json
import os
from functools import cache
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensorport_hub.core.layout import lay_out
from tensorport_hub.core.plan import Options, Plan
from tensorport_hub.core.recipe import recipes
from tensorport_hub.errors import TensorportError
from tensorport_hub.survey import survey
from tests.engine.models import allotment, run_plan
from tests.fakes import MemorySink, MemorySource
from tests.foreign import CHECKPOINTS
from tests.hostile.damage import damaged

NAMES = sorted(path.name for path in CHECKPOINTS.iterdir())
MODEL = "model.safetensors"


@cache
def files(name: str) -> dict[str, bytes]:
    """What a repository would hold."""
    folder = CHECKPOINTS / name
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".safetensors", ".json")
    }


def convert(held: dict[str, bytes]) -> MemorySink:
    """Survey, plan and run, in memory.

    Raises:
        TensorportError: the damage was found.
    """
    source = MemorySource(held)
    seen = survey(
        source, subfolder=None, allow_patterns=(), include=(), exclude=(), report=lambda event: None
    )
    found = recipes(seen.checkpoint)
    options = Options()
    parts = lay_out(found.made, shard_size=options.shard_size)
    skipped = {**seen.skipped, **found.left_out}
    plan = Plan(seen.repo, seen.revision, seen.files, found.made, parts, options, skipped, seen.partial)
    sink = MemorySink()
    run_plan(plan, source, sink, allotment(lanes=1, workers=1, block=1 << 20))
    return sink


def survives(held: dict[str, bytes]) -> None:
    """The result has the sizes that the plan says, or an error says what is wrong, in a few words."""
    failure = None
    try:
        convert(held)
    except TensorportError as error:
        failure = error
    if failure is not None:
        assert failure.exit_code in (2, 3, 6, 7), failure
        assert 0 < len(failure.message) < 6000
        assert all(line.isprintable() for line in failure.message.splitlines())


EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", "250"))
"""Damaged checkpoints that each test tries."""

SETTINGS = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


@SETTINGS
@given(st.data())
def test_damaged_configurations(data: st.DataObject) -> None:
    """Any value of `config.json` wrong, missing or of another type."""
    held = dict(files(data.draw(st.sampled_from(NAMES))))
    config = data.draw(damaged(json.loads(held["config.json"])))
    held["config.json"] = json.dumps(config).encode()
    survives(held)


def header_of(model: bytes) -> tuple[Any, bytes]:
    """The header's JSON, and the data behind it."""
    stop = 8 + int.from_bytes(model[:8], "little")
    return json.loads(model[8:stop]), model[stop:]


def joined(header: Any, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


@SETTINGS
@given(st.data())
def test_damaged_headers(data: st.DataObject) -> None:
    """Any name, dtype, shape or offset of the safetensors header."""
    held = dict(files(data.draw(st.sampled_from(NAMES))))
    header, body = header_of(held[MODEL])
    held[MODEL] = joined(data.draw(damaged(header)), body)
    survives(held)


@SETTINGS
@given(st.data())
def test_consistently_wrong_tensors(data: st.DataObject) -> None:
    """Headers that are valid, but a companion has another shape or dtype, another name, or is gone."""
    held = dict(files(data.draw(st.sampled_from(NAMES))))
    header, body = header_of(held[MODEL])
    names = sorted(set(header) - {"__metadata__"})
    name = data.draw(st.sampled_from(names))
    tensor = header[name]
    kind = data.draw(
        st.sampled_from(["flat", "turned", "longer axis", "renamed", "gone", "dtype", "swapped"])
    )
    shape = tensor["shape"]
    match kind:
        case "flat":
            tensor["shape"] = [_product(shape)]
        case "turned":
            tensor["shape"] = shape[::-1]
        case "longer axis":
            tensor["shape"] = [1, *shape] if data.draw(st.booleans()) else [*shape, 1]
        case "renamed":
            header[data.draw(st.sampled_from([name + "x", name.upper(), f"other.{name}"]))] = header.pop(name)
        case "dtype":
            same_size = {
                "U8": "I8",
                "I8": "F8_E4M3",
                "F16": "BF16",
                "BF16": "F16",
                "F32": "I32",
                "I32": "F32",
            }
            tensor["dtype"] = same_size.get(tensor["dtype"], tensor["dtype"])
        case "gone":
            held[MODEL] = _without(header, body, name)
            survives(held)
            return
        case _:
            other = data.draw(st.sampled_from(names))
            header[name], header[other] = header[other], header[name]
    held[MODEL] = joined(header, body)
    survives(held)


def _product(shape: list[int]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product


def _without(header: dict[str, Any], body: bytes, name: str) -> bytes:
    """The same file without one tensor."""
    kept, at, pieces = {}, 0, []
    for key, tensor in header.items():
        if key == "__metadata__":
            kept[key] = tensor
        elif key != name:
            start, stop = tensor["data_offsets"]
            pieces.append(body[start:stop])
            kept[key] = {**tensor, "data_offsets": [at, at + stop - start]}
            at += stop - start
    return joined(kept, b"".join(pieces))


@SETTINGS
@given(st.data())
def test_damaged_bytes(data: st.DataObject) -> None:
    """Bytes of scales, zero points, indices, tables and blobs: values are wrong, or refused, nothing else."""
    held = dict(files(data.draw(st.sampled_from(NAMES))))
    header, body = header_of(held[MODEL])
    names = sorted(set(header) - {"__metadata__"})
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(1, 3))):
        start, stop = header[data.draw(st.sampled_from(names))]["data_offsets"]
        if start < stop:
            at = data.draw(st.integers(start, stop - 1))
            new = data.draw(
                st.sampled_from([b"\0", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\x7f", b"\0\0\xc0\x7f"])
            )
            changed[at : at + len(new)] = new[: stop - at]
    held[MODEL] = joined(header, bytes(changed[: len(body)]))
    survives(held)
