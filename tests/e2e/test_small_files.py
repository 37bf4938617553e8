"""`--max-memory` and a source's small files, which nobody promised to be small; and what never travels."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from safetensors.numpy import save

from tensorport_hub import mirror, plan, verify
from tensorport_hub.devhub import DevHub
from tensorport_hub.errors import CheckpointError, LimitError, UseError
from tensorport_hub.ports import Warned
from tests.e2e.reading import contents

WEIGHTS = save({"w": np.zeros(4, np.float32)})
CAP = 300_000_000


def peak(code: str, *argv: str) -> int:
    """Peak memory, in bytes, of a process that runs `code` with the package's verbs."""
    begun = "import sys\nfrom tensorport_hub import *\nfrom tensorport_hub.meter import peak_memory\n"
    ended = subprocess.run(
        [sys.executable, "-c", f"{begun}{code}\nprint(peak_memory())", *argv],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return int(ended.stdout)


def folder(path: Path, files: dict[str, bytes]) -> Path:
    """A model with these files beside it."""
    path.mkdir()
    for name, data in {"model.safetensors": WEIGHTS, **files}.items():
        (path / name).write_bytes(data)
    return path


def tokenizers(count: int, size: int) -> dict[str, bytes]:
    """Files that are carried over, each with bytes of its own."""
    return {f"tokenizer_{i}.model": bytes([10, i]) + os.urandom(size) for i in range(count)}


@pytest.mark.parametrize("kind", ["card", "metadata"])
def test_what_a_plan_need_not_hold(tmp_path: Path, kind: str) -> None:
    """A card of 60 MB of lines, and ten headers of 40 MB of free text, leave a plan below the cap."""
    source = folder(
        tmp_path / "model", {"README.md": b"---\n" + b"\n" * 60_000_000} if kind == "card" else {}
    )
    for i in range(10 if kind == "metadata" else 0):
        data = save({f"w{i}": np.zeros(4, np.float32)}, metadata={"said": "x" * 40_000_000})
        (source / f"model-{i + 1:05d}-of-00010.safetensors").write_bytes(data)
    if kind == "metadata":
        (source / "model.safetensors").unlink()
    code = f"plan(sys.argv[1], sys.argv[2], max_memory={CAP})"
    assert peak(code, str(source), str(tmp_path / "out")) < CAP


def test_a_large_manifest_in_a_source(tmp_path: Path) -> None:
    """That a source is a mirror is seen where its manifest begins, however large and broken that is."""
    mirror_of_ours = b'{"schema":"tensorport.manifest/1","a":' + b"[]," * 20_000_000
    source = folder(tmp_path / "model", {"manifest.json": mirror_of_ours})
    with pytest.raises(UseError, match="is a mirror made by this tool already"):
        plan(str(source), str(tmp_path / "out"))
    stranger = folder(tmp_path / "other", {"manifest.json": b'{"a":[' + b"[]," * 20_000_000 + b"0]}"})
    code = f"plan(sys.argv[1], sys.argv[2], max_memory={CAP})"
    assert peak(code, str(stranger), str(tmp_path / "out")) < CAP


def test_an_absurd_configuration_is_refused(tmp_path: Path) -> None:
    """Configuration of megabytes is exit 3, with what was expected, before it is parsed."""
    text = b'{"a": [' + b"[]," * 10_000_000 + b"0]}"
    with pytest.raises(CheckpointError, match=rf"`config\.json` is .*at most 4194304 bytes, got {len(text)}"):
        plan(str(folder(tmp_path / "model", {"config.json": text})), str(tmp_path / "out"))


def test_large_tokenizers_pass_through(tmp_path: Path) -> None:
    """Fifteen carried files of 60 MB reach a folder within the cap, byte for byte; `verify` keeps it too."""
    source = folder(tmp_path / "model", tokenizers(15, 60_000_000))
    code = f"mirror(sys.argv[1], sys.argv[2], max_memory={CAP})"
    assert peak(code, str(source), str(tmp_path / "out")) < CAP
    for i in range(15):
        name = f"tokenizer_{i}.model"
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    code = f"assert verify(sys.argv[1], against_source=True, source=sys.argv[2], max_memory={CAP}).ok"
    assert peak(code, str(tmp_path / "out"), str(source)) < CAP


@pytest.mark.parametrize("transfer", ["lfs", "xet"])
def test_large_tokenizers_reach_the_hub(hub: DevHub, client: HfApi, transfer: str) -> None:
    """The same on the Hub, where they are LFS files, by either transfer."""
    cap = CAP if transfer == "lfs" else 500_000_000
    hub.add_repo("org/model", {"model.safetensors": WEIGHTS, **tokenizers(7, 60_000_000)})
    code = f"mirror('org/model', 'me/out', max_memory={cap}, transfer={transfer!r})"
    assert peak(code) < cap
    there, here = contents(hub, "me/out"), contents(hub, "org/model")
    assert all(there[name] == here[name] for name in here if name.startswith("tokenizer"))
    assert verify("me/out", deep=True, against_source=True).ok


def test_what_a_commit_holds_is_planned_with(hub: DevHub, tmp_path: Path) -> None:
    """Files that travel in the commit count at plan time: exit 7 says which cap is enough, and it is."""
    hub.add_repo("org/model", {"model.safetensors": WEIGHTS, **tokenizers(8, 9_900_000)})
    with pytest.raises(LimitError, match=r"small files .*expected at least (\d+)MB, got 300000000") as caught:
        plan("org/model", "me/out", max_memory=CAP, transfer="lfs")
    enough = int(caught.value.message.partition("at least ")[2].partition("MB")[0]) * 1_000_000
    assert peak(f"mirror('org/model', 'me/out', max_memory={enough}, transfer='lfs')") < enough
    assert peak(f"mirror('org/model', sys.argv[1], max_memory={CAP})", str(tmp_path / "out")) < CAP


def test_a_large_tokenizer_in_every_format(hub: DevHub) -> None:
    """A carried file that passes block by block lies in the folder of each format, and is listed as it is."""
    hub.add_repo("org/model", {"model.safetensors": WEIGHTS, **tokenizers(1, 11_000_000)})
    made = mirror("org/model", "me/out", format=["numpy-direct", "msgpack"])
    listed = [entry["path"] for entry in made.manifest["files"] if "tokenizer" in entry["path"]]
    assert listed == ["msgpack/tokenizer_0.model", "numpy-direct/tokenizer_0.model"]
    assert verify("me/out", against_source=True).ok


def test_a_pickle_never_travels(hub: DevHub) -> None:
    """What begins like a pickle or a program is left out whatever it is called, and warned of."""
    foreign = {
        "word2vec.model": pickle.dumps({"a": 1}),
        "tokenizer": b"\x7fELF\x02\x01\x01\0",
        "LICENSE.joblib": pickle.dumps([1], protocol=4),
    }
    kept = {"tokenizer.model": b"\n\x0e\n\x05<unk>", "tokenizer.json": b"{}", "LICENSE": b"MIT"}
    hub.add_repo("org/model", {"model.safetensors": WEIGHTS, **foreign, **kept})
    events: list[object] = []
    mirror("org/model", "me/out", on_event=events.append)
    there = contents(hub, "me/out")
    assert {name: there.get(name) for name in kept} == kept
    assert not foreign.keys() & there.keys()
    warned = [event.message for event in events if isinstance(event, Warned)]
    assert sorted(message.split("`")[1] for message in warned if "left out" in message) == sorted(foreign)
