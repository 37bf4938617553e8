"""The mirroring bot, from a push to the mirror, the comment and the restart.

A devhub, the bot in a process of its own, and the real client between them.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.community import DiscussionComment
from safetensors.numpy import save

from tensorport_hub import mirror
from tensorport_hub.devhub import DevHub, Fault
from tests.e2e.interrupted import EVERY, MODEL
from tests.e2e.reading import contents
from tests.examples.conftest import EXAMPLES

SECRET = "tell nobody"
SECONDS = 60


def tiny(value: float) -> bytes:
    return save({"w": np.full((10, 10), value, np.float32), "same": np.ones((50, 50), np.float32)})


def wait_for(met: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not met():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DevHub]:
    """A devhub that holds a small model and one of many tensors."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "home" / "xet"))
    with DevHub(tmp_path / "hub") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        monkeypatch.setenv("HF_TOKEN", running.token)
        running.add_repo("st/small", {"model.safetensors": tiny(1), "config.json": b"{}\n"})
        running.add_repo("st/large", MODEL)
        running.add_repo("st/other", {"a.txt": b"a"})
        yield running


@pytest.fixture
def api(hub: DevHub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.add_user("pusher", orgs={"st": "write"}))


@dataclass
class Bot:
    """The bot in a process of its own."""

    hub: DevHub
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/webhooks/mirror"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace") if (self.folder / "log").exists() else ""

    def start(self, *, listening: bool = True, **environment: str) -> Bot:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(EXAMPLES / "webhook_bot.py")],
                cwd=self.folder,
                env={
                    **os.environ,
                    "WEBHOOK_SECRET": SECRET,
                    "GRADIO_SERVER_PORT": str(self.port),
                    "GRADIO_ANALYTICS_ENABLED": "False",
                    "RETRY_SECONDS": "0.2",
                    **environment,
                },
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if listening:
            wait_for(lambda: self.post(None) == 401, "the bot")
        return self

    def post(self, secret: str | None, body: Any = None) -> int:
        """The status of a webhook that somebody sends."""
        headers = {"X-Webhook-Secret": secret} if secret is not None else {}
        with urllib3.PoolManager(retries=False, timeout=10) as pool:
            try:
                return pool.request(
                    "POST", self.url, json=body or payload("st/small"), headers=headers
                ).status
            except urllib3.exceptions.HTTPError:
                assert self.process is not None
                assert self.process.poll() is None, self.log
                return 0

    def runs(self, repo: str) -> int:
        return self.log.count(f"mirroring {repo}\n")

    def idle(self) -> bool:
        """Nothing waits and nothing runs."""
        return json.loads((self.folder / "queue.json").read_text()) == []

    def stop(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(40)


def payload(name: str, ref: str = "refs/heads/main", kind: str = "model") -> dict[str, Any]:
    """What the Hub sends of a push."""
    return {
        "event": {"action": "update", "scope": "repo.content"},
        "repo": {
            "type": kind,
            "name": name,
            "id": "1",
            "private": False,
            "url": {"web": f"http://127.0.0.1/{name}"},
            "owner": {"id": "2"},
        },
        "webhook": {"id": "3", "version": 3},
        "updatedRefs": [{"ref": ref, "oldSha": "0" * 40, "newSha": "1" * 40}],
    }


@pytest.fixture
def bot(hub: DevHub, tmp_path: Path) -> Iterator[Bot]:
    """A bot that is not started yet, its list, and the webhook that tells it."""
    folder = tmp_path / "bot"
    folder.mkdir()
    (folder / "mirrors.toml").write_text(
        '[[mirror]]\nsource = "st/small"\n'
        f'[[mirror]]\nsource = "st/large"\ntransfer = "lfs"\ncheckpoint-every = {EVERY}\n'
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        made = Bot(hub, folder, free.getsockname()[1])
    hub.add_webhook(made.url, ["st"], SECRET)
    yield made
    if made.process is not None:
        made.process.kill()
        made.process.wait()


def push(api: HfApi, repo: str, path: str, data: bytes, **options: Any) -> str:
    made = api.create_commit(repo, [CommitOperationAdd(path, data)], commit_message="Push", **options)
    return str(made.oid)


def comments(hub: DevHub, repo: str) -> list[str]:
    """What the bot's one discussion says."""
    client = HfApi(endpoint=hub.endpoint, token=hub.token)
    found = list(client.get_repo_discussions(repo, discussion_type="discussion"))
    assert len(found) <= 1
    if not found:
        return []
    events = client.get_discussion_details(repo, found[0].num).events
    return [event.content for event in events if isinstance(event, DiscussionComment)]


def revision(hub: DevHub, repo: str) -> str:
    return str(json.loads(hub.read(repo, "manifest.json"))["source"]["revision"])


def test_from_push_to_mirror(hub: DevHub, api: HfApi, bot: Bot) -> None:
    """It mirrors all at its start; a push is delivered, the mirror follows and is what a fresh one is, and
    the discussion says so; what does not concern it is ignored, strangers are refused; SIGTERM ends it."""
    bot.start()
    wait_for(bot.idle, "the first round")
    assert len(comments(hub, "me/small-npy")) == 1
    assert len(comments(hub, "me/large-npy")) == 1

    commit = push(api, "st/small", "model.safetensors", tiny(2))
    wait_for(lambda: revision(hub, "me/small-npy") == commit, "the mirror of the push")
    wait_for(lambda: len(comments(hub, "me/small-npy")) == 2, "the comment")
    assert f"`{commit[:12]}`" in comments(hub, "me/small-npy")[-1]
    mirror("st/small", "me/small-fresh")
    assert contents(hub, "me/small-npy") == contents(hub, "me/small-fresh")
    assert hub.deliveries[-1].status == 200

    runs = bot.log.count("mirroring st/")
    assert bot.post(None) == 401
    assert bot.post("wrong") == 403
    delivered = len(hub.deliveries)
    push(api, "st/other", "a.txt", b"b")
    api.create_branch("st/small", branch="dev")
    push(api, "st/small", "b.txt", b"b", revision="dev")
    push(api, "st/small", "c.txt", b"c", create_pr=True)
    wait_for(lambda: len(hub.deliveries) >= delivered + 5, "deliveries")
    for body in (
        payload("st/small", kind="dataset"),
        payload("st/small", "refs/tags/v1"),
        payload("me/small-npy"),
    ):
        assert bot.post(SECRET, body) == 200
    time.sleep(0.5)
    assert bot.idle()
    assert bot.log.count("mirroring st/") == runs
    assert bot.stop(signal.SIGTERM) == 0
    assert "Traceback" not in bot.log
    for secret in (SECRET, hub.token):
        assert secret not in bot.log + (bot.folder / "queue.json").read_text()


def test_a_storm_is_few_runs(hub: DevHub, api: HfApi, bot: Bot) -> None:
    """Of twenty pushes while it is at work one more run comes, which has the last of them."""
    bot.start()
    wait_for(bot.idle, "the first round")
    hub.faults.add(Fault("stall", "GET", "hub", "/api/models/st/small*", seconds=8, times=1))
    push(api, "st/small", "config.json", b'{"push": 0}\n')
    wait_for(lambda: bool(hub.faults.fired), "the run that the first push started")
    for number in range(1, 20):
        last = push(api, "st/small", "config.json", b'{"push": %d}\n' % number)
    wait_for(
        lambda: len([d for d in hub.deliveries if d.payload["repo"]["name"] == "st/small"]) >= 20, "posts"
    )
    wait_for(bot.idle, "the end of the storm")
    assert revision(hub, "me/small-npy") == last
    assert bot.runs("st/small") <= 4
    assert len(comments(hub, "me/small-npy")) <= 4


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_and_started_again(hub: DevHub, api: HfApi, bot: Bot, number: signal.Signals) -> None:
    """Killed, or asked to stop, in the middle of a run: the next start continues that run first."""
    hub.faults.add(Fault("stall", "PUT", "cdn", "*large-npy*", seconds=60, after=12))
    bot.start()
    wait_for(lambda: bool(hub.faults.fired), "the middle of a run")
    assert json.loads((bot.folder / "queue.json").read_text()) == ["st/large"]
    assert bot.stop(number) == (0 if number == signal.SIGTERM else -number)
    assert "manifest.json" not in hub.files("me/large-npy")
    hub.faults.clear()
    hub.forget()
    bot.start()
    wait_for(bot.idle, "the second start")
    mirror("st/large", "me/large-fresh", transfer="lfs")
    assert contents(hub, "me/large-npy") == contents(hub, "me/large-fresh")
    sent = sum(s.bytes_in for s in hub.seen if s.method == "PUT" and "large-npy" in s.path)
    assert 0 < sent < 18 * 101_000
    pulls = api.get_repo_discussions("me/large-npy", discussion_type="pull_request")
    assert [pull.status for pull in pulls] == ["merged"]
    assert len(comments(hub, "me/large-npy")) == 1


def test_failures(hub: DevHub, api: HfApi, bot: Bot) -> None:
    """What may pass is tried again and then works; what can't is said once in the discussion, and the bot
    lives on."""
    bot.start()
    wait_for(bot.idle, "the first round")
    hub.faults.add(Fault("status", "GET", "hub", "/api/models/st/small*", status=404, times=2))
    commit = push(api, "st/small", "config.json", b'{"push": 1}\n')
    wait_for(lambda: revision(hub, "me/small-npy") == commit, "the third attempt")
    wait_for(bot.idle, "rest")
    said = len(comments(hub, "me/small-npy"))
    for number in range(2):
        push(api, "st/small", "model.safetensors", b"no safetensors %d" % number)
        wait_for(lambda n=number: bot.log.count("st/small failed") == 3 + n, "the failure")  # type: ignore[misc]
        wait_for(bot.idle, "rest")
    assert len(comments(hub, "me/small-npy")) == said + 1
    assert "could not be mirrored" in comments(hub, "me/small-npy")[-1]
    commit = push(api, "st/small", "model.safetensors", tiny(3))
    wait_for(lambda: revision(hub, "me/small-npy") == commit, "the repaired model")


@pytest.mark.parametrize(
    ("environment", "said"),
    [({"WEBHOOK_SECRET": " "}, "WEBHOOK_SECRET is not set"), ({"MIRRORS": "absent"}, "can't be read")],
)
def test_it_refuses_to_start(bot: Bot, environment: dict[str, str], said: str) -> None:
    """Without a secret, or without a list: at once, and it says why."""
    bot.start(listening=False, **environment)
    assert bot.process is not None
    assert bot.process.wait(30) == 1
    assert said in bot.log
    assert "Traceback" not in bot.log
