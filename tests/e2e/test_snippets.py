"""What README and model card tell a reader to type, typed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tensorport_hub import batch, mirror
from tensorport_hub.cli import cli
from tensorport_hub.demo import tiny_gpt_oss
from tensorport_hub.devhub import DevHub

ROOT = Path(__file__).parents[2]
PUBLISHED = "me/gpt-oss-20b-npy"


@pytest.fixture
def published(hub: DevHub) -> DevHub:
    """A tiny gpt-oss, mirrored under the name that the README uses."""
    hub.add_repo("openai/gpt-oss-20b", tiny_gpt_oss())
    mirror("openai/gpt-oss-20b", PUBLISHED)
    return hub


def typed(code: str, home: Path) -> str:
    """What a fresh interpreter says to code."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=home.parent,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_readme(published: DevHub, home: Path) -> None:
    """Loading, loading over devices, and rows of a lazy array, as they stand there."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Load it in JAX\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 3
    code = "\n".join(blocks)
    said = typed(f"{code}\nprint(rows.shape, len(params['model']['layers']), type(config).__name__)", home)
    assert said.strip() == "(64, 320) 4 bytes"


def test_the_options() -> None:
    """The README's table has every option of `mirror`, and what is said of `plan`'s and a list's is so."""

    def options(command: str) -> set[str]:
        found = {word for each in cli.commands[command].params for word in (*each.opts, *each.secondary_opts)}
        return {word.removeprefix("--") for word in found if word.startswith("--")}

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("| option of `mirror` |")[2].partition("\n\n")[0]
    named = set(re.findall(r"--([a-z][a-z-]+)", "".join(row.split(" | ")[0] for row in table.splitlines())))
    assert options("mirror") - {"quiet", "verbose"} == named
    alone = re.search(r"`plan` takes all of them but (.*?);", text)
    assert alone is not None
    assert options("mirror") - options("plan") == set(re.findall(r"`--([a-z-]+)`", alone[1]))
    asked = text.partition("by the names of the options below:")[2].partition("How the run goes")[0]
    listed = set(re.findall(r"`([a-z-]+)`", asked))
    ordered = re.findall(r"--([a-z-]+)", table)
    first, last = ordered.index("revision"), ordered.index("shard-size")
    assert listed | set(ordered[first:last]) == set(batch.keys())


def test_the_card(published: DevHub, home: Path) -> None:
    """Both ways to load, with this repository's id put in: they give the same parameters."""
    card = published.read(PUBLISHED, "README.md").decode()
    ours, plain = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    both = f"{ours}\ntree = params\n{plain}\n".replace("OWNER/NAME", PUBLISHED)
    check = (
        "print(len(params), bool((tree['lm_head']['weight'] == params['lm_head.weight']).all()), len(rows))"
    )
    assert typed(both + check, home).strip() == "71 True 8"
