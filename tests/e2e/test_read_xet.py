"""`--read xet`: the same mirror from the Hub's Xet storage, within the same cap, and what it refuses."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from tensorport_hub import convert, mirror, plan, verify
from tensorport_hub.devhub import DevHub, Fault
from tensorport_hub.devhub.limits import Limits
from tensorport_hub.edge import retry
from tensorport_hub.engine import part
from tensorport_hub.errors import LimitError, TensorportError, UseError
from tensorport_hub.ports import Event, Warned
from tests.bench.ways import make_model
from tests.e2e.reading import contents, folder_contents
from tests.e2e.test_cli import run
from tests.e2e.test_damaged_answers import Proxy, check_words
from tests.pushed import push

SOURCE = "me/tiny"


@pytest.fixture
def pushed(hub: DevHub, gptoss: Path) -> DevHub:
    """A devhub that has the tiny gpt-oss in its Xet storage."""
    push(hub, SOURCE, gptoss)
    hub.forget()
    return hub


def by_storage(hub: DevHub) -> dict[str, int]:
    """Requests for bytes by Xet and over HTTP."""
    paths = [seen.path for seen in hub.seen if seen.origin == "cdn"]
    return {
        "xet": sum(path.startswith("/cas/xorbs/") for path in paths),
        "http": sum(path.startswith("/lfs/") for path in paths),
    }


@pytest.mark.parametrize("transfer", ["xet", "lfs"])
def test_the_mirror_is_the_same(pushed: DevHub, transfer: str) -> None:
    """Every file is, card and manifest included; the weights came by Xet, and every source file is proven."""
    mirror(SOURCE, "me/out", transfer=transfer)
    expected = contents(pushed, "me/out")
    assert by_storage(pushed)["xet"] == 0
    pushed.forget()
    events: list[Event] = []
    result = mirror(SOURCE, "me/out", transfer=transfer, read="xet", restart=True, on_event=events.append)
    found = by_storage(pushed)
    assert found["xet"] > 0
    assert found["http"] == 0
    assert result.stats.files_verified == 1
    assert not [event for event in events if isinstance(event, Warned)]
    assert contents(pushed, "me/out") == expected
    assert verify("me/out", deep=True).ok


def test_a_source_that_is_not_in_xet(hub: DevHub, gptoss: Path, tmp_path: Path) -> None:
    """It is read by HTTP, with a warning that names a file; the result is the same."""
    hub.add_repo("openai/tiny", gptoss)
    result = convert("openai/tiny", str(tmp_path / "a" / "out"), read="xet")
    convert("openai/tiny", str(tmp_path / "b" / "out"))
    assert folder_contents(tmp_path / "a" / "out") == folder_contents(tmp_path / "b" / "out")
    (warning,) = result.warnings
    assert "model.safetensors" in warning
    assert by_storage(hub)["xet"] == 0


def test_the_command_line_has_it(
    pushed: DevHub, gptoss: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`convert --read xet` does; a list may say it; a folder and another word are errors of use."""
    out = ["--output", str(tmp_path / "out")]
    assert run("convert", "--input", SOURCE, *out, "--read", "xet") == 0
    assert by_storage(pushed)["xet"] > 0
    listed = tmp_path / "mirrors.toml"
    listed.write_text(f'[[mirror]]\nsource = "{SOURCE}"\ndestination = "me/listed"\nread = "xet"\n')
    pushed.forget()
    assert run("mirror", "--from-file", str(listed)) == 0
    assert by_storage(pushed) == {"xet": by_storage(pushed)["xet"], "http": 0}
    listed.write_text(listed.read_text().replace('"xet"', '"ftp"'))
    assert run("mirror", "--from-file", str(listed)) == 2
    assert "`ftp` is no way to read" in capsys.readouterr().err
    assert run("plan", str(gptoss), str(tmp_path / "b"), "--read", "xet") == 2
    assert "--read xet" in capsys.readouterr().err
    with pytest.raises(UseError, match="`http`, `xet`"):
        mirror(SOURCE, "me/out", read="ftp")


def test_wrong_bytes_are_never_published(pushed: DevHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte that the storage gets wrong is found by the file's sha256: an error, and no mirror."""
    monkeypatch.setattr(retry, "_FIRST", 0.01)
    monkeypatch.setattr(part, "_PAUSE", 0.01)
    pushed.faults.add(Fault("wrong_bytes", path="/cas/xorbs/*", at=3_000, times=None))
    with pytest.raises(TensorportError):
        mirror(SOURCE, "me/out", read="xet", transfer="lfs")
    assert not any("shard_000" in path for path in _published(pushed, "me/out"))


def _published(hub: DevHub, repo_id: str) -> dict[str, bytes]:
    try:
        return contents(hub, repo_id)
    except LookupError:
        return {}


def test_damaged_answers(pushed: DevHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's answers are damaged, tokens for the storage too: an error of ours, or the right files."""
    monkeypatch.setattr(retry, "_FIRST", 0.001)
    monkeypatch.setattr(part, "_PAUSE", 0.001)
    convert(SOURCE, str(tmp_path / "right" / "out"))
    expected = folder_contents(tmp_path / "right" / "out")
    proxy = Proxy(pushed.endpoint, random.Random(2))
    proxy.share = 0.3
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", proxy.endpoint)
    ends = {"done": 0, "error": 0}
    for number in range(24):
        out = tmp_path / str(number) / "out"
        try:
            convert(SOURCE, str(out), read="xet")
            ends["done"] += 1
            assert folder_contents(out) == expected
        except TensorportError as error:
            ends["error"] += 1
            check_words(error)
            assert not out.exists()
    proxy.shutdown()
    proxy.server_close()
    assert min(ends.values()) > 2, ends


def test_a_storage_that_fails_says_what_else_there_is(
    pushed: DevHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 4, with the range, and the way that needs no Xet; that one works."""
    monkeypatch.setattr(retry, "_FIRST", 0.01)
    monkeypatch.setattr(part, "_PAUSE", 0.01)
    pushed.faults.add(Fault("status", path="/cas/v1/reconstructions/*", status=503, times=None))
    with pytest.raises(TensorportError, match=r"`model\.safetensors` by Xet") as caught:
        mirror(SOURCE, "me/out", read="xet", transfer="lfs")
    assert caught.value.exit_code == 4
    assert "--read http" in caught.value.hint
    assert mirror(SOURCE, "me/out", transfer="lfs").changed


def test_requests_are_those_of_a_run(pushed: DevHub) -> None:
    """A run asks the Hub as often as `plan` says, its token for the storage included, or somewhat less."""
    seen = plan(SOURCE, "me/out", read="xet").forecast
    assert seen is not None
    pushed.forget()
    mirror(SOURCE, "me/out", read="xet")
    counted = Counter(Limits.kind(done.path) for done in pushed.seen if done.origin == "hub")
    for kind in ("api", "resolvers"):
        assert 0.8 * seen.requests[kind] <= counted[kind] <= seen.requests[kind], (kind, counted)


def test_what_it_buffers_is_in_the_cap(pushed: DevHub, tmp_path: Path) -> None:
    """A cap that is enough to read by HTTP is refused for Xet, with one that is enough; 1 MB less is not."""

    def try_with(cap: str, read: str) -> None:
        plan(SOURCE, str(tmp_path / "out"), max_memory=cap, read=read)

    try_with("150MB", "http")
    with pytest.raises(LimitError, match=r"at least \d+MB") as caught:
        try_with("150MB", "xet")
    enough = int(caught.value.message.partition("at least ")[2].partition("MB")[0])
    try_with(f"{enough}MB", "xet")
    with pytest.raises(LimitError):
        try_with(f"{enough - 1}MB", "xet")


@pytest.mark.slow
@pytest.mark.parametrize("cap", ["250MB", "400MB"])
def test_the_cap_holds(hub: DevHub, tmp_path: Path, cap: str) -> None:
    """300 MB read by Xet in a process of its own: its peak, hf_xet's buffers included, is below the cap."""
    make_model(tmp_path / "model", "bf16", 300_000_000)
    push(hub, "me/model", tmp_path / "model")
    words = ["convert", "--input", "me/model", "--output", str(tmp_path / "out"), "--json"]
    words += ["--read", "xet", "--max-memory", cap, "--workers", "4"]
    hub.forget()
    ended = subprocess.run(
        [sys.executable, "-m", "tensorport_hub", *words], capture_output=True, text=True, check=True
    )
    stats = json.loads(ended.stdout)["stats"]
    assert stats["bytes_read"] > 300_000_000
    assert stats["files_verified"] == 4
    assert stats["peak_memory"] < int(cap.removesuffix("MB")) * 1_000_000
    assert by_storage(hub)["http"] == 0
