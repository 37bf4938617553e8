"""The rules of .gitattributes, against git's own answers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tensorport_hub.devhub import gitattributes

PATHS = [
    "a.npy",
    "deep/down/a.npy",
    "model.safetensors",
    "saved_model/x",
    "saved_model/a/b",
    "x/saved_model/y",
    "events.out.tfevents",
    "tfevents.1",
    "a.tar.gz",
    "b.tar.x",
    "x.lfs.y",
    "README.md",
    "data/one.csv",
    "data/deep/one.csv",
    "logs/a.txt",
    "x/logs/a.txt",
    "with blank.dat",
    "brackets[1].dat",
    "q1.dat",
]
RULES = [
    gitattributes.DEFAULT,
    "data/*.csv filter=lfs\n# a comment\n\n*.txt text\n",
    "data/** filter=lfs\n**/logs/* filter=lfs\n",
    "*.npy filter=lfs\ndeep/down/a.npy -filter\n",
    "*.npy filter=lfs\na.npy !filter\n",
    "/a.npy filter=lfs\nq[0-9].dat filter=lfs\nq?.csv filter=lfs\n",
    gitattributes.with_rule(gitattributes.with_rule("", "with blank.dat"), "brackets[1].dat"),
]


@pytest.mark.parametrize("text", RULES)
def test_rules_match_what_git_matches(tmp_path: Path, text: str) -> None:
    """`git check-attr filter` says lfs for the same paths."""
    subprocess.run(["git", "-C", str(tmp_path), "init", "-q"], check=True)
    (tmp_path / ".gitattributes").write_text(text)
    command = ["git", "-C", str(tmp_path), "check-attr", "-z", "filter", *PATHS]
    fields = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")[:-1]
    expected = {path for path, value in zip(fields[::3], fields[2::3], strict=True) if value == "lfs"}
    rules = gitattributes.Rules(text)
    assert {path for path in PATHS if rules.lfs(path)} == expected


def test_the_default_file_is_the_hubs() -> None:
    """1,519 bytes, as in every new repository of the Hub."""
    assert len(gitattributes.DEFAULT) == 1519


def test_text_is_told_from_binary() -> None:
    """NUL bytes and invalid UTF-8 are binary; a character cut off at the end is not."""
    assert gitattributes.is_binary(b"a\0b")
    assert gitattributes.is_binary(b"\xff\xfe text that goes on")
    assert not gitattributes.is_binary("grün".encode())
    assert not gitattributes.is_binary(("x" * 511 + "ü").encode()[:512])
    assert gitattributes.is_binary(b"\xff\xfe")
    assert gitattributes.is_binary(b"cut \xc3")
    assert not gitattributes.is_binary(b"")


@pytest.mark.parametrize(
    ("gitignore", "hidden"),
    [
        ("*.log", {"a.log", "d/a.log", "d/b.log"}),
        ("*.log\n!a.log", {"d/b.log"}),
        ("build/", {"build/x", "d/build/y"}),
        ("/build", {"build/x"}),
        ("d/*.log", {"d/a.log", "d/b.log"}),
        ("# build/\n", set()),
    ],
)
def test_gitignore_hides(gitignore: str, hidden: set[str]) -> None:
    """Patterns, folders, anchors, exceptions and comments."""
    paths = {"a.log", "d/a.log", "d/b.log", "build/x", "d/build/y", "x.txt"}
    assert {path for path in paths if gitattributes.ignored(gitignore, path)} == hidden
