"""`plan` for who runs it for others: what it says beforehand is what a run then does."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tensorport_hub import mirror, plan
from tensorport_hub.demo import tiny_gpt_oss
from tensorport_hub.devhub import DevHub
from tensorport_hub.devhub.limits import Limits
from tensorport_hub.errors import LimitError
from tests.e2e.test_cli import run

SOURCE = "openai/tiny"
MODEL = {**tiny_gpt_oss(), "LICENSE": b"words", "tokenizer.json": b"{}"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"transfer": "lfs"},
        {"checkpoint_every": "5MB"},
        {"transfer": "lfs", "checkpoint_every": "5MB"},
        {"create_pr": True},
    ],
)
def test_requests_are_those_of_a_run(hub: DevHub, options: dict[str, object]) -> None:
    """A run asks as often as was said, or somewhat less; files and commits are as many as were said.

    By LFS, files that end at the same time are asked for in one request.
    """
    hub.add_repo(SOURCE, MODEL)
    seen = plan(SOURCE, "me/tiny", **options).forecast
    assert seen is not None
    hub.forget()
    mirror(SOURCE, "me/tiny", **options)
    done = [request for request in hub.seen if request.origin == "hub"]
    counted = Counter(Limits.kind(request.path) for request in done)
    for kind in ("api", "resolvers"):
        assert 0.5 * seen.requests[kind] <= counted[kind] <= seen.requests[kind], (kind, counted)
    commits = sum(request.method == "POST" and "/commit/" in request.path for request in done)
    commits += sum(request.path.endswith("/merge") for request in done)
    assert 0.5 * seen.requests["commits"] <= commits <= seen.requests["commits"]
    revision = "refs/pr/1" if options.get("create_pr") else "main"
    assert seen.files == len([path for path in hub.files("me/tiny", revision) if path != ".gitattributes"])


def test_what_is_kept_costs_nothing(hub: DevHub) -> None:
    """After the source moved, only what is made anew is asked for, sent and waited for."""
    hub.add_repo(SOURCE, MODEL)
    first = plan(SOURCE, "me/tiny", transfer="lfs", rate="1MB/s").forecast
    mirror(SOURCE, "me/tiny", transfer="lfs")
    hub.add_repo(SOURCE, {"README.md": b"---\nlicense: mit\n---\n\n# other words\n"})
    again = plan(SOURCE, "me/tiny", transfer="lfs", rate="1MB/s").forecast
    assert first is not None
    assert again is not None
    assert (again.seconds, again.requests["commits"]) == ((0, 0), 1)
    assert again.requests["api"] < 20 < first.requests["api"]


def test_windows_are_the_accounts(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's own windows count, and what does not fit them is waited for in the forecast."""
    with DevHub(tmp_path / "small", rate_limits={"api": 60}, rate_window=5) as small:
        monkeypatch.setenv("HF_ENDPOINT", small.endpoint)
        monkeypatch.setenv("HF_TOKEN", small.token)
        small.add_repo(SOURCE, MODEL)
        seen = plan(SOURCE, "me/tiny", transfer="lfs", rate="1GB/s").forecast
    assert seen is not None
    (api, resolvers) = seen.windows
    assert (api.kind, api.most, api.seconds, api.stated) == ("api", 60, 5, True)
    assert api.left < 60
    assert resolvers.stated
    assert seen.requests["api"] > 60
    assert seen.waits in (5, 10)
    assert seen.seconds is not None
    assert seen.seconds[0] >= seen.waits


def test_the_time_is_stated_or_measured(hub: DevHub, capsys: pytest.CaptureFixture[str]) -> None:
    """Without being told, `plan` reads no weights and names no time; `--rate` states, `--probe` measures."""
    hub.add_repo(SOURCE, MODEL)
    hub.forget()
    assert run("plan", SOURCE, "me/tiny") == 0
    said = capsys.readouterr().out
    assert "`--probe` measures the source" in said
    assert sum(request.bytes_out for request in hub.seen if request.origin == "cdn") < 300_000
    assert run("plan", SOURCE, "me/tiny", "--rate", "1MB/s") == 0
    said = capsys.readouterr().out
    assert (
        "9.6 s (publishing keeps up) to 34 s (reading and publishing take turns) at 1.00 MB/s, as stated"
        in said
    )
    assert run("plan", SOURCE, "me/tiny", "--probe", "--json") == 0
    forecast = json.loads(capsys.readouterr().out)["forecast"]
    assert forecast["rate"]["how"].startswith("measured now: ")
    assert 0 < forecast["rate"]["low"] <= forecast["rate"]["high"]
    assert 0 < forecast["seconds"][0] <= forecast["seconds"][1]


def test_plan_is_a_gate(hub: DevHub, gptoss: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is what a run's would be; `--strict` refuses what is only warned of."""
    hub.add_repo(SOURCE, gptoss)
    assert run("plan", SOURCE, "me/tiny", "--strict") == 0
    assert "to the API; " in capsys.readouterr().out
    assert run("plan", "openai/nothing", "me/x") == 4
    assert run("plan", SOURCE, "me/tiny", "--max-memory", "1MB") == 7
    assert run("plan", SOURCE, "me/tiny", "--rate", "0") == 2
    assert run("plan", SOURCE, "me/tiny", "--transfer", "lfs", "--max-disk", "1kB") == 7
    mirror(SOURCE, "me/tiny")
    capsys.readouterr()
    assert run("plan", SOURCE, "me/tiny", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["standing"]
    assert again["forecast"]["requests"]["commits"] == 0


def test_strict_names_what_is_not_recommended(hub: DevHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each recommended limit that is crossed is named, with both numbers; without `--strict` it is said."""
    monkeypatch.setattr("tensorport_hub.core.forecast.LARGE_FILE_NBYTES", 1000)
    hub.add_repo(SOURCE, MODEL)
    with pytest.raises(LimitError, match=r"bytes of a file, as recommended: expected at most 1,000, got"):
        plan(SOURCE, "me/tiny", strict=True)
    seen = plan(SOURCE, "me/tiny").forecast
    assert seen is not None
    assert any(limit.crossed for limit in seen.limits)


def test_a_folder_has_no_windows(gptoss: Path, tmp_path: Path) -> None:
    """From folder to folder: no request, no limit of the Hub, no commit; a measured time all the same."""
    seen = plan(str(gptoss), str(tmp_path / "out"), probe=True).forecast
    assert seen is not None
    assert (seen.limits, seen.windows, sum(seen.requests.values())) == ((), (), 0)
    assert seen.rate is not None
