"""The recipes of `examples/README.md`, run as they stand there, by bash, against a devhub."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from tensorport_hub.devhub import DevHub
from tests.e2e.conftest import minilm as minilm
from tests.examples.conftest import EXAMPLES

SOURCE, MIRROR = "sentence-transformers/all-MiniLM-L6-v2", "me/all-MiniLM-L6-v2-npy"
RECIPES = dict(
    re.findall(
        r"<!-- run: (\w+) -->\n```sh\n(.*?)```", (EXAMPLES / "README.md").read_text("utf-8"), re.DOTALL
    )
)


@pytest.fixture
def hub(tmp_path: Path, minilm: Path) -> Iterator[DevHub]:
    """A devhub with the model of the recipe."""
    with DevHub(tmp_path / "hub") as running:
        running.add_repo(SOURCE, minilm)
        yield running


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of the repository, as far as the recipes look at it."""
    folder = tmp_path / "clone"
    folder.mkdir()
    (folder / "examples").symlink_to(EXAMPLES)
    remote = "https://example.invalid/tensorport-hub.git"
    subprocess.run(["git", "init", "-q", "."], cwd=folder, check=True)
    subprocess.run(["git", "remote", "add", "origin", remote], cwd=folder, check=True)
    return folder


def shell(recipe: str, hub: DevHub, clone: Path, **environment: str) -> str:
    """Run a recipe; what it printed. The reader's name, token and environment are put in."""
    text = RECIPES[recipe].replace("YOU", "me")
    text = text.replace("hf_...", hub.token)
    text = re.sub(r"^python3 -m venv .*\n", "", text, flags=re.MULTILINE)
    home = {"HF_HOME": str(clone / "home"), "HF_XET_CACHE": str(clone / "home" / "xet")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=clone,
        env={**os.environ, **home, "PATH": path, "HF_ENDPOINT": hub.endpoint, **environment},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_recipes_stand() -> None:
    """All that are run are found."""
    assert list(RECIPES) == ["list", "job", "space", "webhook"]


def test_every_recipe(hub: DevHub, clone: Path) -> None:
    """One after another: a mirror; a job and a scheduled one; a Space with what it needs, and the webhook
    that watches the list's model."""
    assert "1 mirror: 1 published" in shell("list", hub, clone)
    assert "manifest.json" in hub.files(MIRROR)

    said = shell("job", hub, clone, HF_TOKEN=hub.token)
    once, daily = hub.jobs
    assert f"/jobs/me/{once.id}" in said
    assert daily.id in said
    package = "tensorport-hub @ git+https://example.invalid/tensorport-hub.git"
    assert once.spec["environment"]["PACKAGE"] == daily.spec["environment"]["PACKAGE"] == package
    assert (once.schedule, daily.schedule) == (None, "@daily")

    shell("space", hub, clone, HF_TOKEN=hub.token)
    kept = hub.files("me/mirroring-bot", kind="space")
    assert set(kept) == {".gitattributes", "README.md", "app.py", "mirrors.toml", "requirements.txt"}
    assert hub.read("me/mirroring-bot", "app.py", kind="space") == (EXAMPLES / "webhook_bot.py").read_bytes()
    assert b"sdk: gradio" in hub.read("me/mirroring-bot", "README.md", kind="space")
    assert all(hub.token.encode() not in hub.read("me/mirroring-bot", p, kind="space") for p in kept)

    # A devhub's webhooks go to this machine alone.
    url = "http://127.0.0.1:9/webhooks/mirror"
    RECIPES["webhook"] = re.sub(r"https://\S+", url, RECIPES["webhook"])
    made = shell("webhook", hub, clone, HF_TOKEN=hub.token, WEBHOOK_SECRET="s3").strip()
    hook = HfApi(endpoint=hub.endpoint, token=hub.token).get_webhook(made)
    assert (hook.url, hook.secret) == (url, "s3")
    assert [(item.type, item.name) for item in hook.watched] == [("model", SOURCE)]
    assert hook.domains == ["repo"]
