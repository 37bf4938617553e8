"""Many mirrors of one list, one after another: `mirror --from-file` and `mirror_all`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from safetensors.numpy import save

import tensorport_hub
from tensorport_hub import Order, batch, mirror, mirror_all, read_orders
from tensorport_hub.cli import main
from tensorport_hub.core.safetensors import FIRST_READ
from tensorport_hub.devhub import DevHub, Fault
from tensorport_hub.edge import hub_work
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.errors import DestinationError, SourceError, UseError
from tensorport_hub.ports import Begun, Event, Failed, Saved
from tests.e2e.interrupted import EVERY, MODEL, SOURCE, read_bytes
from tests.e2e.reading import contents

LIST = """
[[mirror]]
source = "st/one"

[[mirror]]
source = "st/two"
destination = "me/half"
precision = "float16"
on-overflow = "saturate"
commit-message = "Half of it"
"""


def tiny(seed: float) -> dict[str, bytes]:
    return {"model.safetensors": save({"w": np.full((10, 10), seed, np.float32)}), "config.json": b"{}\n"}


@pytest.fixture
def seeded(hub: DevHub) -> DevHub:
    hub.add_repo("st/one", tiny(1))
    hub.add_repo("st/two", tiny(2))
    return hub


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    """Writes a list; its path."""

    def to(text: str) -> str:
        (tmp_path / "mirrors.toml").write_text(text)
        return str(tmp_path / "mirrors.toml")

    return to


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return int(ended.value.code or 0)


def test_a_list_is_what_single_runs_are(
    seeded: DevHub, write: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each mirror is byte for byte what its own command makes, options and message included; run again,
    nothing changes."""
    path = write(LIST)
    assert run("mirror", "--from-file", path) == 0
    said = capsys.readouterr()
    assert "published st/one -> me/one-npy\n" in said.out
    assert said.out.endswith("2 mirrors: 2 published\n")
    assert "rounding" not in said.out
    assert "[2/2] st/two" in said.err
    mirror("st/one", "me/single")
    assert contents(seeded, "me/one-npy").keys() == contents(seeded, "me/single").keys()
    half = json.loads(seeded.read("me/half", "manifest.json"))["options"]
    assert (half["precision"], half["on_overflow"]) == ("float16", "saturate")
    assert seeded.commits("me/half")[0].title == "Half of it"
    commits = len(seeded.commits("me/half"))
    assert run("mirror", "--from-file", path, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["exit_code"]) == (True, 0)
    assert [one["result"]["changed"] for one in told["mirrors"]] == [False, False]
    assert [one["destination"] for one in told["mirrors"]] == ["me/one-npy", "me/half"]
    assert len(seeded.commits("me/half")) == commits


def test_losses_are_told(
    hub: DevHub,
    write: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What rounding cost a mirror of a list is said as of a single one, in text and step summary."""
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    hub.add_repo("st/two", {"model.safetensors": save({"w": np.array([1e9, 1e-9, 1e9, 1], np.float32)})})
    assert run("mirror", "--from-file", write(LIST.replace("st/one", "st/two"))) == 0
    assert (
        "rounding: 2 values overflowed, 1 became 0; per tensor in its manifest.json"
        in capsys.readouterr().out
    )
    assert "| 2 values overflowed, 1 became 0 |" in (tmp_path / "summary.md").read_text()


def test_one_that_fails_does_not_stop_the_others(
    seeded: DevHub,
    write: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The others are published; the exit code is that of the first failure; text, JSON and step summary
    tell of all."""
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    seeded.add_repo("other/theirs", {"a.txt": b"a"})
    path = write(
        '[[mirror]]\nsource = "st/absent"\n[[mirror]]\nsource = "st/one"\n'
        '[[mirror]]\nsource = "st/two"\ndestination = "other/theirs"\n'
    )
    assert run("mirror", "--from-file", path, "--json") == SourceError.exit_code
    told = json.loads(capsys.readouterr().out)
    assert [(one["error"] or {}).get("exit_code") for one in told["mirrors"]] == [4, None, 5]
    assert told["mirrors"][0]["error"]["hint"]
    assert (told["ok"], told["exit_code"]) == (False, 4)
    assert "w.npy" in "".join(seeded.files("me/one-npy"))
    summary = (tmp_path / "summary.md").read_text()
    assert "3 mirrors: 2 failed, 1 published" in summary
    assert summary.count("**failed**") == 2
    assert run("mirror", "--from-file", path) == 4
    said = capsys.readouterr()
    assert "failed    st/absent" in said.out
    assert "hint: " in said.out
    assert "unchanged st/one" in said.out
    assert "Traceback" not in said.err
    assert run("mirror", "--from-file", path, "-q") == 4
    said = capsys.readouterr()
    assert said.out == ""
    assert [line.split()[:2] for line in said.err.splitlines()] == [
        ["failed:", "st/absent:"],
        ["failed:", "st/two:"],
    ]


def test_a_wrong_list_runs_nothing(
    seeded: DevHub, write: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every problem is told, exit 2, and no request was made."""
    path = write(
        '[[mirror]]\nsource = "st/one"\nprecisoin = "float16"\n'
        '[[mirror]]\nsource = "st/one"\nprecision = "half"\non-overflow = "wrap"\nbranch = "b"\npr = true\n'
        '[[mirror]]\nsource = "not a name"\n'
        '[[mirror]]\nsource = "st/two"\ndestination = "ST/Two"\n'
        '[[mirror]]\nsource = "st/two"\ndestination = "me/x"\n'
        '[[mirror]]\nsource = "a/b"\ndestination = "me/X"\n'
        '[[mirror]]\nsource = "a/c"\n[[mirror]]\nsource = "b/c"\n'
        '[[mirror]]\nsource = "a/d"\nworkers = 2\npublic = true\n'
    )
    seeded.forget()
    assert run("mirror", "--from-file", path) == 2
    said = capsys.readouterr().err
    for words in (
        "mirror 1 (`st/one`): unknown key `precisoin`: did you mean `precision`",
        "`half` is no precision",
        "`wrap` is no on-overflow",
        "mirror 2 (`st/one`): `--pr` and `--branch` exclude each other",
        "mirror 3 (`not a name`): `not a name` is no repository",
        "mirror 4 (`st/two`): destination and source are the same",
        "mirror 6 (`a/b`): `me/X` is the destination of mirror 5 (`st/two`) already",
        "mirror 8 (`b/c`): `<you>/c-npy` is the destination of mirror 7 (`a/c`) already: give one of them"
        " another `destination = `",
        "mirror 9 (`a/d`): `workers` is an option of the command line, not of a list",
        "mirror 9 (`a/d`): unknown key `public`: did you mean `private`?",
    ):
        assert words in said
    assert seeded.seen == []


@pytest.mark.parametrize(
    "words", [["mirror"], ["mirror", "st/one", "--from-file", "x.toml"], ["mirror", "--from-file", "absent"]]
)
def test_wrong_use(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """No source at all, two of them, or a list that isn't there: exit 2, and what was expected."""
    assert run(*words) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_options_of_the_command_line_are_defaults(
    seeded: DevHub, write: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They count where a table says nothing; the list may come by standard input."""
    with open(write(LIST), encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert run("mirror", "--from-file", "-", "--precision", "bfloat16", "-q") == 0
    for repo, precision in (("me/one-npy", "bfloat16"), ("me/half", "float16")):
        assert json.loads(seeded.read(repo, "manifest.json"))["options"]["precision"] == precision


def test_every_option_of_mirror_is_a_key(write: Callable[[str], str]) -> None:
    """The keys of a table are the command line's options of content and publication, all of them."""
    command = {
        option.lstrip("-")
        for parameter in tensorport_hub.cli.cli.commands["mirror"].params
        for option in parameter.opts
        if option.startswith("--")
    }
    process = {"from-file", "workers", "max-memory", "max-disk", "cluster", "restart", "token", "json"}
    process |= {"quiet", "verbose", "no-progress", "report"}
    assert set(batch.keys()) == command - process
    for option in process:
        with pytest.raises(UseError, match=f"`{option}` is an option of the command line, not of a list"):
            batch.parse_orders(f'[[mirror]]\nsource = "a/b"\n{option} = 1\n', name="it")


def test_the_api(seeded: DevHub, write: Callable[[str], str]) -> None:
    """`mirror_all` takes orders or a file; events say whose they are; results are frozen."""
    events: list[Event] = []
    orders = [*read_orders(write(LIST)), Order("st/absent", "me/absent")]
    result = mirror_all(orders, on_event=events.append, workers=1)
    assert [e.source for e in events if isinstance(e, Begun)] == ["st/one", "st/two", "st/absent"]
    assert [e.source for e in events if isinstance(e, Failed)] == ["st/absent"]
    assert [a.destination for a in result.attempts] == ["me/one-npy", "me/half", "me/absent"]
    assert (result.ok, result.exit_code) == (False, 4)
    with pytest.raises(AttributeError):
        result.attempts = ()  # type: ignore[misc]
    with pytest.raises(UseError, match="unexpected keyword argument 'presicion'"):
        mirror_all([Order("st/one", options={"presicion": "float16"})])
    with pytest.raises(UseError, match="is the destination of"):
        mirror_all([Order("st/one"), Order("st/two", "me/one-npy")])


def test_without_a_token(seeded: DevHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes to the Hub fails, each by itself; what goes to a folder is made."""
    monkeypatch.delenv("HF_TOKEN")
    result = mirror_all([Order("st/one"), Order("st/two", str(tmp_path / "out"))])
    assert isinstance(result.attempts[0].error, DestinationError)
    assert result.attempts[1].error is None
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_one_rate_budget(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the account's window the runs of a list wait together: one refusal a window, and all succeed."""
    with DevHub(tmp_path / "limited", rate_limits={"api": 25}, rate_window=3) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        for name in "abc":
            hub.add_repo(f"st/{name}", tiny(ord(name)))
        begun = time.monotonic()
        orders = [Order(f"st/{name}") for name in "abc"]
        assert mirror_all(orders, workers=1, transfer="lfs").ok
        windows = (time.monotonic() - begun) // 3 + 1
        refused = [seen for seen in hub.seen if seen.status == 429]
        assert 1 <= len(refused) <= windows


def test_one_hours_commits(hub: DevHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of a list count together against the commits of an hour: later ones make fewer checkpoints."""

    def checkpoints(*names: str) -> int:
        events: list[Event] = []
        orders = [Order(SOURCE, f"me/{name}") for name in names]
        assert mirror_all(orders, on_event=events.append, checkpoint_every=EVERY, transfer="lfs").ok
        return sum(isinstance(event, Saved) for event in events)

    hub.add_repo(SOURCE, MODEL)
    alone = checkpoints("a")
    assert alone >= 4
    made = HubClient().pace.commits()
    monkeypatch.setattr(hub_work, "CHECKPOINTS_AN_HOUR", made + 4)
    assert checkpoints("b", "c") <= 4


def test_killed_and_run_again(hub: DevHub, tmp_path: Path, client: HfApi) -> None:
    """SIGKILL in the middle of the second: run again, the first is a no-op, the second is continued, the
    third is made."""
    hub.add_repo("st/one", tiny(1))
    hub.add_repo(SOURCE, MODEL)
    hub.add_repo("st/two", tiny(2))
    (tmp_path / "mirrors.toml").write_text(
        f'[[mirror]]\nsource = "st/one"\n[[mirror]]\nsource = "{SOURCE}"\n'
        f'transfer = "lfs"\ncheckpoint-every = {EVERY}\n[[mirror]]\nsource = "st/two"\n'
    )
    words = [sys.executable, "-m", "tensorport_hub", "mirror", "--from-file", "mirrors.toml", "--json"]
    hub.faults.add(Fault("stall", "PUT", "cdn", f"*{SOURCE.replace('st/', '')}-npy*", seconds=60, after=14))
    first = subprocess.Popen(words, cwd=tmp_path, env=dict(os.environ), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not hub.faults.fired:
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    first.wait()
    hub.faults.clear()
    hub.forget()
    again = subprocess.run(words, cwd=tmp_path, env=dict(os.environ), capture_output=True, timeout=120)
    assert again.returncode == 0, again.stderr
    one, model, two = (attempt["result"] for attempt in json.loads(again.stdout)["mirrors"])
    assert (one["changed"], model["changed"], two["changed"]) == (False, True, True)
    assert model["stats"]["parts_resumed"] >= 1
    # in flight may have been all that is small; headers are read again
    headers = sum(min(len(data), FIRST_READ) for path, data in MODEL.items() if path.endswith(".safetensors"))
    assert read_bytes(hub) < sum(len(data) for data in MODEL.values()) * 1.1 + headers
    mirror(SOURCE, "me/fresh", transfer="lfs")
    made = contents(hub, "me/model-npy")
    fresh = contents(hub, "me/fresh")
    assert {p: d for p, d in made.items() if p.endswith(".npy")} == {
        p: d for p, d in fresh.items() if p.endswith(".npy")
    }
