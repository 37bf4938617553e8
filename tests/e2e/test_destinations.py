"""Where a mirror may go, and what stands there: nothing is replaced that was not asked for."""

from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import HfApi
from safetensors.numpy import save

from tensorport_hub import convert, mirror, mirror_all, open_checkpoint, plan, verify
from tensorport_hub.core import manifest
from tensorport_hub.core.orders import Order
from tensorport_hub.devhub import DevHub, Fault
from tensorport_hub.errors import DestinationError, SourceError, UseError, VerificationError
from tests.e2e.interrupted import EVERY, MODEL, SOURCE
from tests.e2e.test_cli import run


def model(seed: float) -> dict[str, bytes]:
    """A model of two tensors, in two files."""
    tensors = [{"a": np.full((10, 10), seed, np.float32)}, {"b": np.full((10, 10), -seed, np.float32)}]
    index = b'{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}'
    files = {f"{number}.safetensors": save(one) for number, one in enumerate(tensors, 1)}
    return {**files, "model.safetensors.index.json": index, "config.json": b"{}\n"}


@pytest.fixture
def models(hub: DevHub) -> DevHub:
    """Two models of one name, and one of another."""
    for number, repo in enumerate(("org/small", "org2/small", "org/over"), 1):
        hub.add_repo(repo, model(number))
    return hub


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A model on this machine."""
    (tmp_path / "small").mkdir()
    for path, data in model(4).items():
        (tmp_path / "small" / path).write_bytes(data)
    return str(tmp_path / "small")


def refused(source: str, destination: str | None, holds: str, **options: str | bool) -> None:
    """Neither `plan` nor `mirror` replaces it: both say whose mirror stands there."""
    for verb in (plan, mirror):
        with pytest.raises(DestinationError, match=f"holds the mirror of {holds}, not of ") as caught:
            verb(source, destination, **options)
        assert caught.value.exit_code == 5
        assert "`--restart` to replace it" in caught.value.hint


class TestAnotherModel:
    """The mirror of another source is replaced by `--restart` alone."""

    @pytest.mark.parametrize("options", [{}, {"format": "msgpack"}])
    def test_in_a_folder(self, models: DevHub, tmp_path: Path, options: dict[str, str]) -> None:
        """A folder keeps it, in any format; a newer revision of the same repository is an ordinary run."""
        out = tmp_path / "out"
        mirror("org/over", str(out), **options)
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        refused("org/small", str(out), "`org/over`")
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
        models.add_repo("org/over", model(5))
        assert mirror("Org/Over", str(out), **options).changed
        assert convert("org/small", str(out), restart=True).manifest["source"]["repo"] == "org/small"

    def test_a_manifest_that_is_too_large(
        self, models: DevHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is not read; so nothing tells what it does not list, and `--restart` replaces nothing either."""
        out = tmp_path / "out"
        mirror("org/over", str(out))
        monkeypatch.setattr(manifest, "LARGEST", 100)
        monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"`{path}` is read"))
        for call in (plan, mirror, partial(mirror, restart=True)):
            with pytest.raises(
                VerificationError, match=r"`manifest\.json` is too large: .* at most 100 bytes"
            ):
                call("org/small", str(out))

    def test_on_the_hub(self, models: DevHub) -> None:
        """Two models of one name have the same destination by default: the second does not take it."""
        mirror("org/small")
        commits = len(models.commits("me/small-npy"))
        refused("org2/small", None, "`org/small`")
        made = mirror_all([Order("org2/small"), Order("org/over")])
        assert [attempt.error is None for attempt in made.attempts] == [False, True]
        assert len(models.commits("me/small-npy")) == commits
        mirror("org2/small", restart=True)
        assert b"org2/small" in models.read("me/small-npy", "manifest.json")

    def test_on_a_branch(self, models: DevHub) -> None:
        """A branch that is there counts by itself; a new one replaces nothing."""
        mirror("org/over", "me/x")
        mirror("org/small", "me/x", branch="small")
        refused("org2/small", "me/x", "`org/small`", branch="small")
        refused("org/small", "me/x", "`org/over`")
        assert b"org/over" in models.read("me/x", "manifest.json")

    def test_a_folder_and_a_repository(self, models: DevHub, folder: str, tmp_path: Path) -> None:
        """Of a folder and of a repository is another, either way; of two folders nothing can tell."""
        mirror("org/small", "me/small-npy")
        refused(folder, "me/small-npy", "`org/small`")
        mirror(folder, str(tmp_path / "out"))
        refused("org/small", str(tmp_path / "out"), "a local folder")
        config = Path(folder, "config.json")
        other = Path(folder).rename(tmp_path / "other")
        (other / config.name).write_bytes(b'{"other": 1}')
        assert mirror(str(other), str(tmp_path / "out")).changed

    def test_with_a_manifest_of_another_version(self, models: DevHub, tmp_path: Path) -> None:
        """One that this version can't read says all the same whose mirror it is."""
        out = tmp_path / "out"
        mirror("org/over", str(out))
        text = (out / "manifest.json").read_text()
        (out / "manifest.json").write_text(text.replace("tensorport.manifest/1", "tensorport.manifest/2"))
        refused("org/small", str(out), "`org/over`")

    @pytest.mark.parametrize("kind", ["folder", "hub"])
    def test_that_was_begun_to_be_replaced(self, models: DevHub, tmp_path: Path, kind: str) -> None:
        """An interrupted `--restart` is continued without it, as the program itself proposes."""
        there = str(tmp_path / "out") if kind == "folder" else "me/x"
        mirror("org/over", there)
        models.add_repo(SOURCE, MODEL)
        options: dict[str, Any] = {"checkpoint_every": EVERY, "transfer": "lfs", "workers": 1}
        models.faults.add(Fault("status", "GET", "cdn", status=404, after=6, times=None))
        with pytest.raises(SourceError):
            mirror(SOURCE, there, restart=True, **options)
        models.faults.clear()
        assert mirror(SOURCE, there, **options).stats.parts_resumed > 0

    def test_that_came_meanwhile(self, models: DevHub, tmp_path: Path) -> None:
        """A run that was planned before another one ended does not replace what that one made."""
        out = str(tmp_path / "out")

        def meanwhile(event: object) -> None:
            if type(event).__name__ == "Planned":
                mirror("org/over", out)

        with pytest.raises(DestinationError, match="holds the mirror of `org/over`"):
            mirror("org/small", out, on_event=meanwhile)
        assert not list(tmp_path.glob(".out.tensorport"))


class TestWhoMayWrite:
    """`plan` ends as `mirror` does, where that is certain beforehand."""

    @pytest.mark.parametrize("verb", [plan, mirror])
    def test_without_a_token(self, models: DevHub, monkeypatch: pytest.MonkeyPatch, verb: Any) -> None:
        """Nothing can be written, whether the repository is there or not."""
        mirror("org/small", "me/there")
        monkeypatch.delenv("HF_TOKEN")
        for destination in ("me/x", "me/there"):
            with pytest.raises(DestinationError, match="needs a token") as caught:
                verb("org/small", destination)
            assert "hf auth login" in caught.value.hint

    @pytest.mark.parametrize("verb", [plan, mirror])
    def test_in_a_namespace_of_others(self, models: DevHub, verb: Any) -> None:
        """A new repository goes to one's own namespace and to organizations that one may write to."""
        token = models.add_user("jo", orgs={"readers": "read", "writers": "write"})
        for owner in ("other", "readers"):
            with pytest.raises(DestinationError, match=f"`{owner}/x` is forbidden") as caught:
                verb("org/small", f"{owner}/x", token=token)
            assert caught.value.exit_code == 5
        for owner in ("jo", "writers"):
            assert verb("org/small", f"{owner}/x", token=token).destination == f"{owner}/x"

    @pytest.mark.parametrize("verb", [plan, mirror])
    def test_with_a_token_that_only_reads(self, models: DevHub, verb: Any) -> None:
        """A read token makes no repository."""
        with pytest.raises(DestinationError, match="is forbidden"):
            verb("org/small", "me/x", token=models.add_token("me", role="read"))


class TestVisibility:
    """`--private` and `--public` of a repository that is there."""

    @pytest.mark.parametrize("verb", [plan, mirror])
    @pytest.mark.parametrize("private", [True, False])
    def test_other_than_asked_for(self, models: DevHub, client: HfApi, verb: Any, private: bool) -> None:
        """What was asked for is refused, not ignored, and the hint says how to get it."""
        client.create_repo("me/x", private=not private)
        wanted, found = ("private", "public") if private else ("public", "private")
        words = f"`me/x` exists and is {found}: expected {wanted}, because of `--{wanted}`"
        with pytest.raises(DestinationError, match=words) as caught:
            verb("org/small", "me/x", private=private)
        assert f"make it {wanted} in its settings" in caught.value.hint
        assert f"leave out `--{wanted}`" in caught.value.hint
        assert verb("org/small", "me/x").destination == "me/x"

    def test_hints_nothing_that_was_given(self, models: DevHub, client: HfApi) -> None:
        """A closed source and an open repository: `--private` is no way out."""
        models.add_repo("me/priv", model(6), private=True)
        client.create_repo("me/x", private=False)
        with pytest.raises(DestinationError, match="would be open") as caught:
            mirror("me/priv", "me/x")
        assert "--private" not in caught.value.hint
        with pytest.raises(DestinationError, match="expected private") as caught:
            mirror("me/priv", "me/x", private=True)
        assert "make it private in its settings" in caught.value.hint


class TestNames:
    """What a destination is called, and what is none."""

    def test_of_nothing(self, models: DevHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An unset variable is exit 2, in every verb and in a list; the current folder is not meant."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "model.safetensors").write_bytes(save({"a": np.ones((2, 2), np.float32)}))
        for words in (
            ["mirror", "", "me/oops"],
            ["plan", "", "me/oops"],
            ["inspect", ""],
            ["mirror", "org/small", ""],
            ["plan", "org/small", ""],
            ["convert", "--input", "org/small", "--output", ""],
            ["verify", ""],
        ):
            assert run(*words) == 2, words
        for order in (Order("", "me/oops"), Order("org/small", "")):
            with pytest.raises(UseError, match="is empty"):
                mirror_all([order])
        with pytest.raises(UseError, match="is empty"):
            open_checkpoint("")
        assert "oops" not in str(models.seen)

    def test_of_a_bare_repository(self, models: DevHub, tmp_path: Path) -> None:
        """A folder that is a git repository: the hint says how it is named as one."""
        bare = tmp_path / "model.git"
        subprocess.run(["git", "init", "-q", "--bare", str(bare)], check=True, timeout=60)
        with pytest.raises(DestinationError, match="is not empty") as caught:
            plan("org/small", str(bare))
        assert f"`git+file://{bare}`" in caught.value.hint

    def test_of_a_mirror_that_is_verified(
        self, models: DevHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A folder that is there is meant by its bare name; one that is not is no destination."""
        monkeypatch.chdir(tmp_path)
        convert("org/small", "kept")
        for name in ("kept", "kept/"):
            assert verify(name, deep=True).ok
        with pytest.raises(DestinationError, match=r"destination `.*nothing` is no folder"):
            verify("./nothing")
        with pytest.raises(UseError, match="has no owner"):
            verify("nothing")

    def test_of_a_source_as_a_browser_shows_it(self, models: DevHub) -> None:
        """The address of a model's page on the Hub in use, and a slash at the end, name the model."""
        for source in (f"{models.endpoint}/org/small", "https://huggingface.co/org/small", "org/small/"):
            planned = plan(source)
            assert (planned.source, planned.destination) == ("org/small", "me/small-npy")
        commit = models.commits("org/small")[0].oid
        models.add_repo("org/small", model(7))
        assert plan(f"{models.endpoint}/org/small/tree/{commit}").plan.commit == commit
