"""`verify`: what is as it must be is proven, what was tampered with is found and named."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from tensorport_hub import mirror, verify
from tensorport_hub.cli import main
from tensorport_hub.core.digest import pointer
from tensorport_hub.devhub import DevHub
from tensorport_hub.errors import DestinationError, SourceError, UseError, VerificationError
from tests.e2e.reading import contents, folder_contents

SOURCE, TARGET = "openai/tiny", "me/tiny-npy"


@pytest.fixture
def hub_(hub: DevHub, gptoss: Path) -> DevHub:
    """A devhub with a mirror of a tiny gpt-oss."""
    hub.add_repo(SOURCE, gptoss)
    mirror(SOURCE, TARGET)
    return hub


@pytest.fixture
def folder(hub_: DevHub, tmp_path: Path) -> Path:
    """The same as a folder."""
    mirror(SOURCE, str(tmp_path / "out"))
    return tmp_path / "out"


def weight(files: Any) -> str:
    """A file of decoded experts."""
    return next(path for path in sorted(files) if "experts.down_proj.npy" in path)


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert isinstance(ended.value.code, int)
    return ended.value.code


DEPTHS: list[dict[str, Any]] = [{}, {"deep": True}, {"against_source": True}]


class TestProven:
    """Nothing is wrong."""

    @pytest.mark.parametrize("options", [*DEPTHS, {"deep": True, "against_source": True}])
    def test_a_mirror_on_the_hub(self, hub_: DevHub, options: dict[str, Any]) -> None:
        """At every depth; without one not a byte of weights is downloaded."""
        hub_.forget()
        result = verify(TARGET, **options)
        assert result.ok, result.faults
        assert result.destination == TARGET
        assert result.source == SOURCE
        downloaded = sum(s.bytes_out for s in hub_.seen if s.origin == "cdn")
        assert (downloaded > 0) == bool(options)
        if options.get("against_source"):
            assert result.again is not None
            assert len(result.again.tensors) == result.tensors

    @pytest.mark.parametrize("options", DEPTHS)
    def test_a_folder(self, folder: Path, options: dict[str, Any]) -> None:
        """The same of a folder."""
        assert verify(str(folder), **options).ok

    @pytest.mark.parametrize("options", DEPTHS)
    @pytest.mark.parametrize("linked", ["folder", "files"])
    def test_weights_on_another_disk(
        self, folder: Path, tmp_path: Path, linked: str, options: dict[str, Any]
    ) -> None:
        """Links are followed wherever they lead, as where the mirror is opened; faults are found there."""
        shard, disk = folder / "shard_000", tmp_path / "disk"
        shard.rename(disk)
        if linked == "folder":
            shard.symlink_to(disk)
        else:
            shard.mkdir()
            for file in disk.iterdir():
                (shard / file.name).symlink_to(file)
        (folder / "config.json").rename(tmp_path / "config.json")
        (folder / "config.json").symlink_to(tmp_path / "config.json")
        result = verify(str(folder), **options)
        assert result.ok, result.faults
        damaged = next(disk.glob("*down_proj.npy"))
        damaged.write_bytes(damaged.read_bytes()[:-1])
        assert [f.what for f in verify(str(folder)).faults] == [f"shard_000/{damaged.name}"]

    def test_a_mirror_of_a_folder(self, gptoss: Path, tmp_path: Path) -> None:
        """Where the source was a folder, `source` says where it is now."""
        mirror(str(gptoss), str(tmp_path / "out"))
        with pytest.raises(UseError, match="made from a folder"):
            verify(str(tmp_path / "out"), against_source=True)
        moved = gptoss.rename(tmp_path / "moved")
        assert verify(str(tmp_path / "out"), against_source=True, source=str(moved)).ok

    def test_a_pull_request(self, hub_: DevHub) -> None:
        """A revision may be a pull request's ref."""
        mirror(SOURCE, "me/other", create_pr=True)
        assert verify("me/other", revision="refs/pr/1").ok
        with pytest.raises(VerificationError, match=r"has no `manifest\.json`"):
            verify("me/other")

    @pytest.mark.parametrize(
        "options", [{"precision": "float16"}, {"quantized": "keep"}, {"shard_size": 40_000}]
    )
    def test_every_option(self, hub_: DevHub, options: dict[str, Any]) -> None:
        """What rounding, keeping and cutting made is made again."""
        mirror(SOURCE, "me/other", **options)
        result = verify("me/other", deep=True, against_source=True)
        assert result.ok, result.faults

    def test_a_git_clone(self, hub_: DevHub, tmp_path: Path) -> None:
        """Pulled files and git-LFS pointers both count; `deep` says of a pointer that it is one."""
        clone = tmp_path / "clone"
        for path, data in contents(hub_, TARGET).items():
            (clone / path).parent.mkdir(parents=True, exist_ok=True)
            (clone / path).write_bytes(data)
        (clone / ".git").mkdir()
        (clone / ".git" / "config").write_text("[core]\n")
        entry = next(
            e
            for e in json.loads((clone / "manifest.json").read_bytes())["files"]
            if "down_proj.npy" in e["path"]
        )
        (clone / entry["path"]).write_bytes(pointer(entry["sha256"], entry["size"]))
        assert verify(str(clone)).ok
        (fault,) = verify(str(clone), deep=True).faults
        assert fault.what == entry["path"]
        assert "pointer" in fault.message
        (clone / entry["path"]).write_bytes(pointer(entry["sha256"][::-1], entry["size"]))
        (fault,) = verify(str(clone)).faults
        assert "wrong sha256" in fault.message

    def test_a_sample_is_drawn_by_its_seed(self, hub_: DevHub) -> None:
        """As many tensors as asked for, the same ones for the same seed; the seed is told."""
        hub_.forget()
        one = verify(TARGET, against_source=True, sample=2)
        assert one.again is not None
        assert len(one.again.tensors) == 2
        assert one.again.seed is not None
        two = verify(TARGET, against_source=True, sample=2, seed=one.again.seed)
        assert two.again == one.again


def npy_flip(data: bytes) -> bytes:
    """One bit of the last value."""
    return data[:-1] + bytes([data[-1] ^ 1])


class TestTampered:
    """Something is wrong, and told by name."""

    def test_a_file_on_the_hub(self, hub_: DevHub) -> None:
        """One bit of one file: found without a download, by the digest that the Hub states itself."""
        path = weight(hub_.files(TARGET))
        hub_.add_repo(TARGET, {path: npy_flip(hub_.read(TARGET, path))}, message="tampered")
        hub_.forget()
        (fault,) = verify(TARGET).faults
        assert fault.what == path
        assert "sha256" in fault.message
        assert not [s for s in hub_.seen if s.origin == "cdn"]

    def test_a_file_of_a_folder(self, folder: Path) -> None:
        """Sizes alone don't show it; `deep` does."""
        path = folder / weight(folder_contents(folder))
        path.write_bytes(npy_flip(path.read_bytes()))
        assert verify(str(folder)).ok
        (fault,) = verify(str(folder), deep=True).faults
        assert fault.what == path.relative_to(folder).as_posix()

    def test_missing_and_unlisted_files(self, folder: Path) -> None:
        """Both are named; what is missing is not a crash of `deep`."""
        path = folder / weight(folder_contents(folder))
        path.unlink()
        (folder / "notes.txt").write_text("mine")
        found = verify(str(folder), deep=True).faults
        assert {fault.what for fault in found} == {path.relative_to(folder).as_posix(), "notes.txt"}

    def tampered(self, folder: Path, change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The manifest of a folder, changed."""
        value: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
        change(value)
        (folder / "manifest.json").write_text(json.dumps(value))
        return value

    def test_file_and_manifest_together(self, folder: Path) -> None:
        """Weights that were changed together with every digest of them: only the source tells."""
        import hashlib

        path = folder / weight(folder_contents(folder))
        path.write_bytes(npy_flip(path.read_bytes()))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        name = path.relative_to(folder).as_posix()

        def change(value: dict[str, Any]) -> None:
            for entry in value["files"]:
                if entry["path"] == name:
                    entry["sha256"] = digest
            for tensor in value["tensors"].values():
                for stored in tensor["stored"]:
                    if stored["file"] == name:
                        stored["sha256"] = digest

        self.tampered(folder, change)
        assert verify(str(folder), deep=True).ok
        (fault,) = verify(str(folder), against_source=True).faults
        assert fault.what.endswith("experts.down_proj")
        assert name in fault.message

    def test_a_range_of_another_tensor(self, folder: Path) -> None:
        """A manifest that points at other bytes of the source, which make other values."""

        def change(value: dict[str, Any]) -> None:
            tensors = value["tensors"]
            names = [n for n in sorted(tensors) if n.endswith(("k_proj.weight", "v_proj.weight"))]
            first, second = (tensors[name]["from"] for name in names[:2])
            first[0], second[0] = second[0], first[0]

        self.tampered(folder, change)
        faults = verify(str(folder), against_source=True).faults
        assert {fault.what for fault in faults if "not what the source makes" in fault.message}
        assert {fault.what for fault in faults if "stored tensors" in fault.message}

    def test_a_digest_of_the_source(self, folder: Path) -> None:
        """A manifest that claims another source."""
        self.tampered(folder, lambda v: v["source"]["files"][0].update(sha256="0" * 64))
        faults = verify(str(folder), against_source=True).faults
        assert any("of the source: expected sha256 0000" in fault.message for fault in faults)

    def test_a_source_that_changed(self, hub_: DevHub, gptoss: Path, tmp_path: Path) -> None:
        """Other weights under the same commit (a source that lies): its digests and the tensors say so."""
        mirror(SOURCE, str(tmp_path / "out"))
        data = bytearray((gptoss / "model.safetensors").read_bytes())
        data[-1] ^= 0x10
        (gptoss / "model.safetensors").write_bytes(data)
        faults = verify(str(tmp_path / "out"), against_source=True, source=str(gptoss)).faults
        assert any("not what the source makes" in fault.message for fault in faults)
        assert any("of the source holds other bytes" in fault.message for fault in faults)

    def test_a_manifest_without_sense(self, folder: Path) -> None:
        """A manifest that contradicts itself is an error that says where."""
        self.tampered(folder, lambda v: v["files"][0].update(size=-1))
        with pytest.raises(VerificationError, match=r"manifest\.json"):
            verify(str(folder))

    def test_wrong_totals(self, folder: Path) -> None:
        """A manifest that counts parameters wrongly."""
        self.tampered(folder, lambda v: v["totals"].update(parameters=1))
        (fault,) = verify(str(folder)).faults
        assert "parameters" in fault.message

    def test_the_dtype_of_a_file(self, folder: Path) -> None:
        """A file whose own header says another shape than the manifest, with digests that fit."""
        import hashlib

        path = folder / weight(folder_contents(folder))
        data = path.read_bytes()
        path.write_bytes(data[:20] + data[20:128].replace(b"<V2", b"<u2") + data[128:])
        name, digest = path.relative_to(folder).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()

        def change(value: dict[str, Any]) -> None:
            places = [*value["files"], *(s for t in value["tensors"].values() for s in t["stored"])]
            for place in places:
                if name in (place.get("path"), place.get("file")):
                    place["sha256"] = digest

        self.tampered(folder, change)
        (fault,) = verify(str(folder), deep=True).faults
        assert fault.what == name
        assert "dtypes and shapes" in fault.message


class TestCommand:
    """The command line."""

    def test_it_says_what_it_did(self, hub_: DevHub, capsys: pytest.CaptureFixture[str]) -> None:
        """Exit 0, what was compared, what was made again with which seed."""
        assert run("verify", TARGET, "--against-source", "--sample", "3", "--seed", "7") == 0
        said = capsys.readouterr().out
        assert "verified" in said.splitlines()[-1]
        assert "seed 7" in said

    def test_a_folder_states_no_digests(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """That only sizes were compared is said, until every byte is."""
        assert run("verify", str(folder)) == 0
        assert "compared: sizes only; `--deep` reads the bytes\n" in capsys.readouterr().out
        assert run("verify", str(folder), "--deep") == 0
        assert "compared: sizes, every byte\n" in capsys.readouterr().out
        assert run("verify", TARGET) == 0
        assert "compared: sizes and digests as the other side states them\n" in capsys.readouterr().out

    def test_faults_are_exit_6(self, hub_: DevHub, capsys: pytest.CaptureFixture[str]) -> None:
        """Each fault is a line; `--json` lists them."""
        path = weight(hub_.files(TARGET))
        hub_.add_repo(TARGET, {path: b"short", "stray": b"1"}, message="tampered")
        assert run("verify", TARGET) == 6
        said = capsys.readouterr().out
        assert f"FAULT {path}: has the wrong size" in said
        assert "FAULT stray" in said
        assert run("verify", TARGET, "--json") == 6
        told = json.loads(capsys.readouterr().out)
        assert not told["ok"]
        assert {fault["what"] for fault in told["faults"]} == {path, "stray"}

    @pytest.mark.parametrize(
        ("words", "code"),
        [
            (["me/absent"], 5),
            (["./absent"], 5),
            (["me/tiny-npy", "--sample", "0", "--against-source"], 2),
            (["me/tiny-npy", "--sample", "2"], 2),
            (["me/tiny-npy", "--seed", "2"], 2),
            (["openai/tiny"], 6),
        ],
    )
    def test_what_can_not_be_verified(
        self, hub_: DevHub, capsys: pytest.CaptureFixture[str], words: list[str], code: int
    ) -> None:
        """No such mirror, wrong use, no manifest: the documented exit codes, and no traceback."""
        assert run("verify", *words) == code
        said = capsys.readouterr().err
        assert "error: " in said
        assert "Traceback" not in said


def test_a_source_that_is_gone(hub_: DevHub, client: HfApi) -> None:
    """The source's fault, not the mirror's: exit 4."""
    client = HfApi(endpoint=hub_.endpoint, token=hub_.add_user("owner", orgs={"openai": "admin"}))
    client.delete_repo(SOURCE)
    assert verify(TARGET).ok
    with pytest.raises(SourceError):
        verify(TARGET, against_source=True)


def test_an_unreadable_mirror(hub_: DevHub, folder: Path) -> None:
    """The mirror's fault: exit 5."""
    with pytest.raises(DestinationError):
        verify(TARGET, revision="no-such-branch")
    with pytest.raises(UseError):
        verify(str(folder), revision="main")


def test_a_real_git_clone(hub_: DevHub, folder: Path, tmp_path: Path) -> None:
    """A repository made by git itself, cloned: its `.git` folder is no stranger."""
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost"]
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    for words in (["init", "-q", "."], ["add", "-A"], ["commit", "-qm", "mirror"]):
        subprocess.run([*git, *words], cwd=folder, env=environment, check=True)
    subprocess.run([*git, "clone", "-q", str(folder), str(tmp_path / "clone")], env=environment, check=True)
    assert verify(str(tmp_path / "clone"), deep=True, against_source=True).ok
