"""The token: in no log, error, event, manifest, card, file, or request to another host."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tensorport_hub import mirror, verify
from tensorport_hub.cli import main
from tensorport_hub.devhub import DevHub, Fault
from tensorport_hub.edge import retry
from tensorport_hub.errors import TensorportError
from tensorport_hub.ports import Event
from tests.e2e.reading import contents
from tests.e2e.test_resume import MODEL, SOURCE, TARGET


@pytest.fixture
def seeded(hub: DevHub, monkeypatch: pytest.MonkeyPatch) -> DevHub:
    hub.add_repo(SOURCE, MODEL)
    monkeypatch.setattr(retry, "_FIRST", 0.01)
    return hub


@pytest.mark.parametrize("transfer", ["lfs", "xet"])
def test_it_leaves_no_trace(
    seeded: DevHub, tmp_path: Path, caplog: pytest.LogCaptureFixture, transfer: str
) -> None:
    """A run with checkpoints, retries and a failure, and what it leaves anywhere: logs of every library at
    the level that `-v` sets, events, files on the Hub and here, requests to the storage."""
    caplog.set_level(logging.INFO)
    said: list[str] = []

    def hear(event: Event) -> None:
        said.append(repr(event))

    options = {"checkpoint_every": 300_000, "transfer": transfer, "on_event": hear}
    seeded.faults.add(Fault("status", "POST", "hub", "*/commit/*", status=503, times=2))
    seeded.faults.add(Fault("status", "*", "cdn", status=403, after=25, times=8))
    try:
        mirror(SOURCE, TARGET, **options)  # type: ignore[arg-type]
    except TensorportError as error:
        said += [repr(error), error.message, error.hint]
    seeded.faults.clear()
    result = mirror(SOURCE, TARGET, **options)  # type: ignore[arg-type]
    said += [repr(result), repr(result.manifest), repr(verify(TARGET, deep=True))]
    assert seeded.token not in "".join(said) + caplog.text
    for data in contents(seeded, TARGET).values():
        assert seeded.token.encode() not in data
    for path in tmp_path.rglob("*"):
        if path.is_file() and "hub" not in path.relative_to(tmp_path).parts:
            assert seeded.token.encode() not in path.read_bytes(), path
    for seen in seeded.seen:
        text = repr(seen).replace(repr(seen.authorization), "") if seen.origin == "hub" else repr(seen)
        assert seeded.token not in text, seen


@pytest.mark.parametrize(
    "words",
    [
        ["mirror", SOURCE, TARGET],
        ["mirror", "st/absent", TARGET],
        ["mirror", SOURCE, "other/name"],
        ["plan", SOURCE],
        ["verify", TARGET],
        ["mirror", SOURCE, TARGET, "--transfer", "nonsense"],
    ],
)
def test_it_is_not_printed(seeded: DevHub, capfd: pytest.CaptureFixture[str], words: list[str]) -> None:
    """`-v` prints logs and tracebacks, but never the token, whether it is right, wrong, or malformed."""
    for token in (seeded.token, "hf_wrong", "hf_\nInjected: yes"):
        seeded.faults.clear()
        with pytest.raises(SystemExit):
            main([*words, "-v", "--no-progress", "--token", token])
        printed = capfd.readouterr()
        for part in token.split("\n"):
            assert part not in printed.out + printed.err, words
    assert not any("Injected" in repr(seen) for seen in seeded.seen)
