"""What may be the name of a branch: git's own rules, before anything is sent."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.branch import branch_name
from tensorport_hub.errors import UseError


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("main", "main"),
        ("npy/v1.0", "npy/v1.0"),
        ("refs/heads/main", "main"),
        ("refs/heads/a/b", "a/b"),
        ("référence", "référence"),
        ("a@b", "a@b"),
    ],
)
def test_names(text: str, name: str) -> None:
    """A name is taken as it is, a whole ref of a branch by its name."""
    assert branch_name(text) == name


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "a b", "x..y", "x.lock", "x.lock/y", "x~1", "x^", "a:b", "a?", "a*", "a[", "a\\b", "-x"),
        *("/a", "a/", "a//b", ".a", "a/.b", "a.", "a@{b", "@", "HEAD", "a\n", "a\x7f", "refs/heads/"),
        *("refs/pr/7", "refs/tags/v1", "refs", "refs/heads/refs/heads/z", "refs/heads/-x", "\ud800"),
    ],
)
def test_what_is_no_branch(text: str) -> None:
    """What git refuses, and refs of anything but branches, are use errors."""
    with pytest.raises(UseError, match="is no branch") as caught:
        branch_name(text)
    assert caught.value.exit_code == 2


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("ab/.@{}~^:?*[\\- lock"), min_size=1, max_size=6))
def test_git_agrees(text: str) -> None:
    """`git check-ref-format --branch` takes the same names; what it looks up (`@`, `@{-1}`) is none here."""
    git = shutil.which("git")
    assert git is not None
    ended = subprocess.run([git, "check-ref-format", "--branch", text], capture_output=True, check=False)
    try:
        assert branch_name(text) == text
    except UseError:
        assert ended.returncode != 0 or text == "@" or text.startswith(("@{", "-"))
    else:
        assert ended.returncode == 0
