"""The program with a git remote as DST."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tensorport_hub import plan
from tensorport_hub.devhub import DevHub
from tensorport_hub.errors import LimitError
from tests.git.conftest import Host, git
from tests.git.sizes import SOURCE


def tool(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the program."""
    command = [sys.executable, "-m", "tensorport_hub", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_the_verbs(hub: DevHub, host_of: Callable[[str], Host], tmp_path: Path) -> None:
    """`plan`, `mirror`, `mirror` again, `verify`: what each says, for people and as JSON."""
    host = host_of("giftless")
    shown = host.url.removeprefix("git+")
    planned = tool(tmp_path, "plan", SOURCE, host.url, "--max-disk", "1MB", "--rate", "1MB/s", "--strict")
    assert planned.returncode == 0, planned.stderr
    assert f"{shown} (new)" in planned.stdout
    assert "kB of staging" in planned.stdout
    options = ["--author", "Jo <jo@example.org>", "--report", "report.html", "--json"]
    made = tool(tmp_path, "mirror", SOURCE, host.url, *options)
    assert made.returncode == 0, made.stderr
    assert shown in (tmp_path / "report.html").read_text()
    said = json.loads(made.stdout)
    assert said["commit"] == host.branches()["main"]
    assert '"files"' in host.git("show", said["manifest"])
    assert host.git("log", "-1", "--format=%an", "main") == "Jo"
    again = tool(tmp_path, "mirror", SOURCE, host.url)
    assert f"unchanged: {shown}" in again.stdout
    proven = tool(tmp_path, "verify", host.url, "--deep")
    assert proven.returncode == 0, proven.stdout + proven.stderr
    assert f"{shown} at {host.branches()['main']}" in proven.stdout
    assert tool(tmp_path, "verify", host.url, "--revision", "nothing").returncode == 5


def test_a_list(hub: DevHub, host_of: Callable[[str], Host], tmp_path: Path) -> None:
    """`--from-file` with git remotes: each branch once, with its author; the same one twice is exit 2."""
    host = host_of("bare path")
    table = f'[[mirror]]\nsource = "{SOURCE}"\ndestination = "{host.url}"\nauthor = "Jo <jo@example.org>"\n'
    path = tmp_path / "list.toml"
    path.write_text(table + table)
    twice = tool(tmp_path, "mirror", "--from-file", str(path))
    assert twice.returncode == 2
    assert "is the destination of mirror 1" in twice.stderr
    path.write_text(f'{table}{table}branch = "half"\nprecision = "float16"\n')
    made = tool(tmp_path, "mirror", "--from-file", str(path))
    assert made.returncode == 0, made.stderr
    assert host.branches().keys() == {"main", "half"}
    assert host.git("log", "-1", "--format=%an", "half") == "Jo"


def test_a_password_in_the_url(hub: DevHub, tmp_path: Path) -> None:
    """Exit 2 with what to do instead; it is not repeated, in text or JSON."""
    for words in (["mirror", SOURCE], ["plan", SOURCE], ["verify"]):
        ended = tool(tmp_path, *words, "git+https://me:s3cret@example.org/x.git", "--json")
        assert ended.returncode == 2
        assert "hint: leave it out" in ended.stderr
        assert "s3cret" not in ended.stdout + ended.stderr


def test_objects_that_hosts_refuse(host_of: Callable[[str], Host], tmp_path: Path) -> None:
    """Files of 2 GB and more are warned of; what GitHub takes on no plan is exit 7, at plan time."""
    host = host_of("bare path")
    for name, rows in (("large", 600), ("larger", 1300)):
        folder = tmp_path / name
        folder.mkdir()
        size = rows * 4_000_000
        header = json.dumps({"w": {"dtype": "F32", "shape": [rows, 1_000_000], "data_offsets": [0, size]}})
        with (folder / "model.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header.encode())
            file.truncate(8 + len(header) + size)
        (folder / "config.json").write_text("{}")
    options = {"shard_size": "8GB", "allow_large_shards": True, "max_disk": "9GB"}
    assert plan(str(tmp_path / "large"), host.url).warnings == ()
    made = plan(str(tmp_path / "large"), host.url, **options)  # type: ignore[arg-type]
    assert any("below 2 GB" in text for text in made.warnings)
    github = "https://github.com/me/x.git"
    git(tmp_path, "config", "--global", f"url.{host.url.removeprefix('git+')}.insteadOf", github)
    plan(str(tmp_path / "large"), f"git+{github}", **options)  # type: ignore[arg-type]
    with pytest.raises(LimitError, match="5000000000 on GitHub") as caught:
        plan(str(tmp_path / "larger"), f"git+{github}", **options)  # type: ignore[arg-type]
    assert "--shard-size" in caught.value.hint
