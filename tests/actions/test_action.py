"""The composite action, run: its steps by bash, its inputs as strangers may send them, against a devhub."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from huggingface_hub import HfApi

from tensorport_hub.devhub import DevHub, Fault
from tests.actions.expressions import evaluate
from tests.actions.runner import ACTION, Runner, assignments

TINY = {"source": "openai/tiny", "destination": "me/tiny"}


def test_it_installs_mirrors_and_says_where(machine: Runner, hub: DevHub, client: HfApi) -> None:
    """All steps on a fresh machine: the mirror is published, and outputs and summary lead to it."""
    ran = machine.action({**TINY, "token": hub.token})
    assert ran.code == 0, ran.log
    commit = client.model_info("me/tiny").sha
    assert ran.outputs == {
        "state": "done",
        "commit-url": f"{hub.endpoint}/me/tiny/commit/{commit}",
        "pr-url": "",
        "manifest": f"{hub.endpoint}/me/tiny/resolve/{commit}/manifest.json",
        "changed": "true",
    }
    manifest = json.loads(hub.read("me/tiny", "manifest.json"))
    assert manifest["totals"]["parameters"] == 58_372
    assert set(hub.files("me/tiny")) >= {entry["path"] for entry in manifest["files"]}
    assert f"[me/tiny]({ran.outputs['commit-url']})" in ran.summary
    assert "| 20 | 58,372 | 20 |" in ran.summary
    assert "1 of 1 source files whole" in ran.summary
    again = machine.action({**TINY, "token": hub.token}, only="Mirror")
    assert again.outputs == {**ran.outputs, "changed": "false"}
    assert "Unchanged" in again.summary
    assert hub.token not in ran.log + ran.summary + again.log
    assert not list(machine.workspace.iterdir())


def test_options_are_words(machine: Runner, hub: DevHub, client: HfApi) -> None:
    """A line of `options` is one word, whatever it holds; the pull request of `--pr` is an output."""
    title = 'It\'s "mine"; $(touch pwned) * `touch pwned`'
    options = f"--precision=float32\r\n\n--commit-message\n{title}\n--pr\n"
    ran = machine.action({**TINY, "options": options, "token": hub.token}, only="Mirror")
    assert ran.code == 0, ran.log
    assert ran.outputs["pr-url"] == f"{hub.endpoint}/me/tiny/discussions/1"
    assert "Offered as a pull request" in ran.summary
    assert client.get_discussion_details("me/tiny", 1).title == title
    assert json.loads(hub.read("me/tiny", "manifest.json", "refs/pr/1"))["options"]["precision"] == "float32"
    assert not list(machine.workspace.iterdir())
    line = {**TINY, "options": " --precision float32  --include=*.weight", "token": hub.token}
    done = machine.action({**line, "destination": "me/one-line"}, only="Mirror")
    assert done.code == 0, done.log
    options = json.loads(hub.read("me/one-line", "manifest.json"))["options"]
    assert (options["precision"], options["include"]) == ("float32", ["*.weight"])


HOSTILE = [
    '"; touch pwned; "',
    "'; touch pwned; '",
    "$(touch pwned)",
    "`touch pwned`",
    "a[$(touch pwned)]",
    "a/b\ntouch pwned\n",
    "a/b\n::add-path::pwned",
    "-- ; touch pwned",
    "--help",
    "a/b && touch pwned",
]


@pytest.mark.parametrize(
    "name", ["source", "destination", "options", "minutes", "when-unfinished", "trusted-publishing", "token"]
)
def test_hostile_inputs_are_data(machine: Runner, hub: DevHub, name: str) -> None:
    """Quotes, substitutions, line breaks and options in any input run nothing and reach nothing."""
    for text in HOSTILE:
        ran = machine.action({**TINY, "token": hub.token, name: text}, only="Mirror")
        assert not list(machine.workspace.iterdir()), text
        log, silent = ran.log, ran.log
        if "::stop-commands::" in log:  # what the program prints stands between this and its word
            before, _, rest = log.partition("::stop-commands::")
            word, _, inner = rest.partition("\n")
            silent = before + inner.partition(f"::{word}::")[2]
        assert "::add-path::" not in silent, text
        assert "Traceback" not in ran.log
        ignored = name == "trusted-publishing" or (name == "options" and text == "--help")
        assert ran.code == 0 if ignored else ran.code != 0, (text, ran.log)
        assert ran.outputs["state"] == ("done" if ignored else "")


def test_errors_end_the_step_and_stand_in_the_summary(machine: Runner, hub: DevHub) -> None:
    """The program's exit code is the step's; the summary says what, and what to do."""
    ran = machine.action({"source": "openai/nothing", "token": hub.token}, only="Mirror")
    assert ran.code == 4
    assert "### Not done" in ran.summary
    assert "    error: repository `openai/nothing` " in ran.summary
    assert "    hint: " in ran.summary
    assert machine.action({"source": ""}, only="Mirror").code == 2
    assert machine.action({**TINY, "minutes": "soon"}, only="Mirror").code == 2
    assert machine.action({**TINY, "trusted-publishing": "true", "destination": ""}, only="Mirror").code == 2


def test_when_the_minutes_are_over_it_stops_and_a_next_run_continues(
    machine: Runner, hub: DevHub, client: HfApi
) -> None:
    """`unfinished`, failed or passed as asked; what is finished is kept, the next run makes only the rest."""
    kept = {**TINY, "token": hub.token, "options": "--checkpoint-every=1B\n--transfer=lfs\n--restart"}
    hub.faults.add(Fault("stall", method="PUT", origin="cdn", at=64, times=None, seconds=60, after=9))
    ran = machine.action({**kept, "minutes": "0.15"}, only="Mirror")
    assert ran.code == 1
    assert ran.outputs["state"] == "unfinished"
    assert "To be continued" in ran.summary
    assert "manifest.json" not in hub.files("me/tiny")
    passed = machine.action({**kept, "minutes": "0.15", "when-unfinished": "pass"}, only="Mirror")
    assert (passed.code, passed.outputs["state"]) == (0, "unfinished")
    hub.faults.clear()
    done = machine.action({**kept, "continues": "true"}, only="Mirror")
    assert (done.code, done.outputs["state"]) == (0, "done"), done.log
    assert "continuing: " in done.log
    assert client.file_exists("me/tiny", "manifest.json")


def test_a_cancelled_workflow_stops_the_program(machine: Runner, hub: DevHub) -> None:
    """GitHub interrupts the script alone: the program is told, ends by itself, and nothing runs on."""
    hub.faults.add(Fault("stall", origin="cdn", at=64, times=None, seconds=60, after=1))
    given = {
        "SOURCE": "openai/tiny",
        "DESTINATION": "me/tiny",
        "OPTIONS": "",
        "TOKEN": hub.token,
        "TRUSTED_PUBLISHING": "false",
        "MINUTES": "5",
        "WHEN_UNFINISHED": "fail",
        "CONTINUES": "false",
        **{name: str(machine.workspace / name) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")},
    }
    running = subprocess.Popen(
        [str(ACTION / "mirror.sh")],
        env={**machine.env, **given, "RUNNER_TEMP": str(machine.temp)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not hub.faults.fired:
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGINT)
    log, _ = running.communicate(timeout=20)  # ends once nobody holds the pipe any more
    assert running.returncode == 143
    assert "interrupted: readers see nothing of it" in log
    assert not Path(given["GITHUB_OUTPUT"]).exists()


def test_what_our_reading_of_expressions_refuses() -> None:
    """An expression that the tests can't evaluate fails them; the ones they can are GitHub's."""
    contexts = {"inputs": {"source": "", "flag": False}, "vars": {"X": "a"}}
    assert evaluate("inputs.source == '' && vars.X || inputs.flag", contexts) == "a"
    assert evaluate(" vars.Y || 'it''s' ", contexts) == "it's"
    assert evaluate("inputs.nothing == ''", contexts) is True
    for text in ("format('{0}', inputs.source)", "!inputs.flag", "inputs['source']", "inputs.source =="):
        with pytest.raises(ValueError):
            evaluate(text, contexts)
    with pytest.raises(KeyError):
        evaluate("secrets.TOKEN", contexts)
    assert assignments("a=1=2\nb<<end\n1\nc=3\nend\n") == {"a": "1=2", "b": "1\nc=3"}


CLAIMS = {"repository": "me/bot", "workflow": "mirror", "ref": "refs/heads/main"}


@pytest.fixture
def identity(hub: DevHub) -> Iterator[dict[str, str]]:
    """What a runner offers to a job with `id-token: write`: a server that signs what the job is."""
    hub.add_repo("me/tiny", {})
    hub.trust("me/tiny", {"repository": "me/bot", "workflow": "mirror"})

    class Issuer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            (audience,) = parse_qs(urlsplit(self.path).query)["audience"]
            allowed = self.headers["Authorization"] == "Bearer of this job"
            self.send_response(200 if allowed else 401)
            self.end_headers()
            self.wfile.write(json.dumps({"value": hub.id_token(CLAIMS, audience)}).encode())

        def log_message(self, format: str, *args: object) -> None:
            return None

    with ThreadingHTTPServer(("127.0.0.1", 0), Issuer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"http://127.0.0.1:{server.server_port}/token?api-version=2.0",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "of this job",
        }
        server.shutdown()


def test_trusted_publishing_needs_no_secret(machine: Runner, hub: DevHub, identity: dict[str, str]) -> None:
    """The job's identity is exchanged for a token of the destination, and again whenever a token is old."""
    machine.env = {**machine.env, **identity, "TENSORPORT_TOKEN_SECONDS": "6"}
    hub.faults.add(Fault("stall", origin="cdn", at=64, times=1, seconds=60, after=1))
    options = "--checkpoint-every=1B"
    ran = machine.action({**TINY, "trusted-publishing": "true", "options": options}, only="Mirror")
    assert (ran.code, ran.outputs["state"]) == (0, "done"), ran.log
    exchanges = [seen for seen in hub.seen if seen.path == "/oauth/token"]
    assert len(exchanges) == 2
    assert hub.commits("me/tiny")[0].author == "[OIDC]"
    assert "hf_jwt_" not in ran.log + ran.summary


def test_trusted_publishing_is_refused_in_words(
    machine: Runner, hub: DevHub, identity: dict[str, str]
) -> None:
    """Without the permission, or for a repository that does not trust the job: exit 5, and what to do."""
    given = {**TINY, "trusted-publishing": "true"}
    ran = machine.action(given, only="Mirror")
    assert ran.code == 5
    assert "hint: the job needs `id-token: write`" in ran.log
    machine.env = {**machine.env, **identity}
    ran = machine.action({**given, "destination": "me/elsewhere"}, only="Mirror")
    assert ran.code == 5
    assert "trusted publishing for `me/elsewhere` failed" in ran.log
    assert "Traceback" not in ran.log
