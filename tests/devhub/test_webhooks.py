"""Webhooks: made by the real client, and what they are sent when a ref moves."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, WebhookPayload
from huggingface_hub.errors import BadRequestError, HfHubHTTPError

from tensorport_hub.cli import main
from tensorport_hub.devhub import Delivery, DevHub, add, history
from tests.devhub.conftest import Fetch


@dataclass
class Ear:
    """A server that hears webhooks."""

    url: str
    heard: list[tuple[str | None, dict[str, Any]]] = field(default_factory=list)
    status: int = 200
    seconds: float = 0.0


@pytest.fixture
def ear() -> Iterator[Ear]:
    found = Ear("")

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.heard.append((self.headers["X-Webhook-Secret"], json.loads(body)))
            time.sleep(found.seconds)
            self.send_response(found.status)
            self.send_header("Location", found.url)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    found.url = f"http://127.0.0.1:{server.server_port}/hear"
    Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()


def sent(hub: DevHub, count: int) -> list[Delivery]:
    """The deliveries, once there are so many; a moment later there are no more."""
    deadline = time.monotonic() + 10
    while len(hub.deliveries) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    assert len(hub.deliveries) == count
    return hub.deliveries


def push(api: HfApi, repo: str, **options: Any) -> str:
    operations = [CommitOperationAdd("a.txt", str(time.monotonic()).encode())]
    return str(api.create_commit(repo, operations, commit_message="m", **options).oid)


def test_the_clients_own_calls(api: HfApi, ear: Ear) -> None:
    """Create, get, list, update, disable, enable, delete: each as the unmodified client reads it."""
    made = api.create_webhook(url=ear.url, watched=[{"type": "org", "name": "st"}], secret="s3")  # type: ignore[list-item]
    assert (made.url, made.secret, made.disabled, made.domains) == (
        ear.url,
        "s3",
        False,
        ["repo", "discussion"],
    )
    assert api.get_webhook(made.id) == made
    assert api.list_webhooks() == [made]
    changed = api.update_webhook(
        made.id,
        url=ear.url + "/b",
        watched=[{"type": "model", "name": "st/m"}],  # type: ignore[list-item]
        domains=["repo"],
    )
    assert (changed.url, changed.domains, changed.secret) == (ear.url + "/b", ["repo"], "s3")
    assert api.disable_webhook(made.id).disabled
    assert not api.enable_webhook(made.id).disabled
    api.delete_webhook(made.id)
    assert api.list_webhooks() == []


def test_whose_they_are(api: HfApi, stranger: HfApi, anonymous: HfApi, ear: Ear) -> None:
    """Nobody sees, changes or deletes another user's webhook; a token is needed."""
    made = api.create_webhook(url=ear.url, watched=[{"type": "org", "name": "st"}])  # type: ignore[list-item]
    assert stranger.list_webhooks() == []
    with pytest.raises(HfHubHTTPError, match="404"):
        stranger.delete_webhook(made.id)
    with pytest.raises(HfHubHTTPError, match="401"):
        anonymous.list_webhooks()


@pytest.mark.parametrize(
    "url",
    ["http://example.com/x", "https://127.0.0.1/x", "http://10.0.0.1/x", "http://localhost.evil.com", ""],
)
def test_it_sends_to_this_machine_alone(api: HfApi, url: str) -> None:
    """A URL elsewhere is refused when the webhook is made."""
    with pytest.raises((BadRequestError, ValueError)):
        api.create_webhook(url=url, watched=[{"type": "org", "name": "st"}])  # type: ignore[list-item]


def test_a_push_is_told(hub: DevHub, api: HfApi, ear: Ear) -> None:
    """The payload is version 3 as the client's own model parses it, with the secret in its header."""
    api.create_repo("me/m")
    sent(hub, 0)
    hook = api.create_webhook(url=ear.url, watched=[{"type": "model", "name": "me/M"}], secret="s3")  # type: ignore[list-item]
    before = str(api.model_info("me/m").sha)
    after = push(api, "me/m")
    [delivery] = sent(hub, 1)
    assert (delivery.webhook, delivery.status, delivery.error) == (hook.id, 200, "")
    [(secret, body)] = ear.heard
    assert secret == "s3"
    assert body == delivery.payload
    assert body["repo"]["headSha"] == after
    payload = WebhookPayload.model_validate(body)
    assert (payload.event.scope, payload.event.action) == ("repo.content", "update")
    assert (payload.repo.name, payload.repo.type, payload.repo.private) == ("me/m", "model", False)
    assert payload.repo.url.web == f"{hub.endpoint}/me/m"
    assert payload.webhook.version == 3
    assert payload.updatedRefs is not None
    [ref] = payload.updatedRefs
    assert (ref.ref, ref.oldSha, ref.newSha) == ("refs/heads/main", before, after)


def test_every_ref_is_told(hub: DevHub, api: HfApi, ear: Ear) -> None:
    """New repositories, branches made and deleted, tags, pull requests and their merge."""
    hub.add_webhook(ear.url, ["me"])
    api.create_repo("me/m")
    api.create_branch("me/m", branch="b")
    api.create_tag("me/m", tag="t")
    api.delete_branch("me/m", branch="b")
    push(api, "me/m", create_pr=True)
    api.merge_pull_request("me/m", 1)
    told = [delivery.payload for delivery in sent(hub, 7)]
    assert told[0]["event"] == {"action": "create", "scope": "repo"}
    assert [told["updatedRefs"][0]["ref"] for told in told[1:]] == [
        "refs/heads/b",
        "refs/tags/t",
        "refs/heads/b",
        "refs/pr/1",
        "refs/pr/1",
        "refs/heads/main",
    ]
    assert told[3]["updatedRefs"][0]["newSha"] is None


def test_who_is_told(hub: DevHub, api: HfApi, ear: Ear) -> None:
    """Whoever watches the repository or its namespace and may see it, while it is not disabled."""
    hub.add_user("other")
    for name in ("me/m", "me/n", "me/secret"):
        api.create_repo(name, private=name == "me/secret")
    api.create_repo("me/m", repo_type="dataset")
    sent(hub, 0)
    hub.add_webhook(ear.url + "?model", ["me/m"])
    hub.add_webhook(ear.url + "?all", ["me"])
    hub.add_webhook(ear.url + "?other", ["me"], owner="other")
    off = hub.add_webhook(ear.url + "?off", ["me"])
    api.disable_webhook(off)
    push(api, "me/m")
    push(api, "me/n")
    push(api, "me/secret")
    push(api, "me/m", repo_type="dataset")
    told = [(d.payload["repo"]["name"], d.url.rpartition("?")[2]) for d in sent(hub, 8)]
    assert told == [
        *(("me/m", who) for who in ("model", "all", "other")),
        *(("me/n", who) for who in ("all", "other")),
        ("me/secret", "all"),
        *(("me/m", who) for who in ("all", "other")),
    ]


def test_a_bad_ear_holds_nothing_up(
    hub: DevHub, api: HfApi, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silent, failing, redirecting and absent ones are noted, not tried again; pushes never wait for them."""
    monkeypatch.setattr("tensorport_hub.devhub.deliveries.SECONDS", 0.3)
    api.create_repo("me/m")
    sent(hub, 0)
    hub.add_webhook(ear.url, ["me"])
    hub.add_webhook("http://127.0.0.1:9/nobody", ["me"])
    for number, (status, seconds) in enumerate([(500, 0.0), (302, 0.0), (200, 1.0)], 1):
        ear.status, ear.seconds = status, seconds
        begun = time.monotonic()
        push(api, "me/m")
        assert time.monotonic() - begun < 5
        sent(hub, 2 * number)
    assert [delivery.status for delivery in hub.deliveries] == [500, 0, 302, 0, 0, 0]
    assert "Refused" in hub.deliveries[1].error
    assert "imeout" in hub.deliveries[4].error
    assert len(ear.heard) == 3


def test_the_queue_is_bounded(hub: DevHub, api: HfApi, ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more moves than it holds the oldest are dropped."""
    monkeypatch.setattr(history, "MOVES", 3)
    monkeypatch.setattr("tensorport_hub.devhub.deliveries.SECONDS", 1.5)
    api.create_repo("me/m")
    sent(hub, 0)
    hub.add_webhook(ear.url, ["me"])
    ear.seconds = 5
    push(api, "me/m")
    while not ear.heard:
        time.sleep(0.02)
    ear.seconds = 0
    pushed = [push(api, "me/m") for _ in range(6)]
    told = [delivery.payload["repo"]["headSha"] for delivery in sent(hub, 4)]
    assert told[1:] == pushed[3:]


def test_pushes_of_another_process(hub: DevHub, ear: Ear, tmp_path: Path) -> None:
    """`devhub webhook` and `devhub add` on a root that is served: the running devhub tells."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    add(hub.root, "st/m", tmp_path / "m")
    sent(hub, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEBHOOK_SECRET", "of the environment")
        with pytest.raises(SystemExit) as ended:
            main(["devhub", "webhook", ear.url, "--watch", "st/m", "--root", str(hub.root)])
    assert not ended.value.code
    (tmp_path / "m" / "config.json").write_text('{"a": 1}')
    commit = add(hub.root, "st/m", tmp_path / "m")
    [delivery] = sent(hub, 1)
    assert delivery.payload["repo"]["headSha"] == commit
    assert ear.heard[0][0] == "of the environment"


def test_pushes_while_it_was_down(hub: DevHub, ear: Ear, tmp_path: Path) -> None:
    """What happened to a root that nobody served is told to nobody, later either; webhooks stay."""
    hub.add_webhook(ear.url, ["st"])
    hub.stop()
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    add(hub.root, "st/m", tmp_path / "m")
    hub.start()
    sent(hub, 0)
    hub.add_repo("st/m", {"a.txt": b"a"})
    sent(hub, 1)


def test_the_cli_refuses_a_url_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, and why."""
    with pytest.raises(SystemExit) as ended:
        main(["devhub", "webhook", "http://example.com", "--watch", "st", "--root", str(tmp_path / "r")])
    assert ended.value.code == 2
    assert "is not on this machine" in capsys.readouterr().err


def test_malformed(fetch: Fetch) -> None:
    """Bodies that make no webhook: 400, whatever is wrong."""
    for body in (
        {"watched": "x", "url": "http://127.0.0.1/"},
        {"watched": [1], "url": "http://127.0.0.1/"},
        {"watched": [], "url": "http://127.0.0.1/"},
        {"watched": [{"type": "cat", "name": "x"}], "url": "http://127.0.0.1/"},
        {"watched": [{"type": "org", "name": "x"}], "url": 3},
        {"watched": [{"type": "org", "name": "x"}], "url": "http://127.0.0.1/", "domains": ["x"]},
        {"watched": [{"type": "org", "name": "x"}], "jobSourceId": "1"},
    ):
        assert fetch("POST", "/api/settings/webhooks", json=body).status == 400, body
