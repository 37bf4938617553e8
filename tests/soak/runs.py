"""Runs of the real program in processes of their own, against a devhub that is watched.

Processes are forked from one that has imported everything, so that a run costs a tenth of a second to start;
otherwise each is what a shell would start: its own environment, an empty temporary folder, the command line's
`main`. A killed one gets SIGKILL.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from huggingface_hub import HfApi
from safetensors.numpy import save

from tensorport_hub.devhub import DevHub

SOURCE = "st/model"
EVERY = "400kB"
SECONDS = 120
"""A run that takes longer hangs."""

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tensorport_hub.api", "tensorport_hub.cli.show", "hf_xet", "rich.progress"])

Files = dict[str, tuple[int, str | None, str]]
"""Path -> size, sha256 of an LFS file, git blob id."""


def model() -> dict[str, bytes]:
    """Three files: plain tensors, MXFP4 codes, and their scales in another file than they are."""
    rng = np.random.default_rng(3)
    codes = {f"layers.{i}.experts_blocks": rng.integers(0, 256, (4, 40, 5, 16), np.uint8) for i in range(4)}
    scales = {f"layers.{i}.experts_scales": rng.integers(118, 130, (4, 40, 5), np.uint8) for i in range(4)}
    dense = {f"layers.{i}.w": rng.standard_normal((150, 200), np.float32) for i in range(12)}
    names = [f"model-{i + 1:05d}-of-00003.safetensors" for i in range(3)]
    shards = [
        {name: array for name, array in dense.items() if int(name.split(".")[1]) < 6},
        {**codes},
        {**scales, **{name: array for name, array in dense.items() if int(name.split(".")[1]) >= 6}},
    ]
    weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
    return {
        **{file: save(shard) for file, shard in zip(names, shards, strict=True)},
        "model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": weight_map}).encode(),
        "config.json": b'{"quantization_config": {"quant_method": "mxfp4"}}\n',
        "README.md": b"---\nlicense: mit\n---\n\n# Model\n",
    }


def _main(words: Sequence[str], environment: dict[str, str], log: str) -> None:
    """The child: the program, with its output in a file."""
    os.environ.update(environment)
    os.setsid()
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from tensorport_hub.cli import main

    main(list(words))


@dataclass
class Counts:
    """What happened so far."""

    runs: int = 0
    kills: int = 0
    faults: int = 0
    trials: int = 0
    bytes_compared: int = 0
    bytes_lost: int = 0


@dataclass
class Range:
    """A devhub, a model, the mirror that an undisturbed run makes, and where trials are counted."""

    hub: DevHub
    scratch: Path
    transfer: str
    counts: Counts = field(default_factory=Counts)
    number: int = 0

    def __post_init__(self) -> None:
        self.token = self.hub.add_token("me")
        self.hub.add_repo(SOURCE, model())
        self.hub.forget()
        assert self.run("me/undisturbed") == 0, self.said()
        self.requests = len(self.hub.seen)
        self.expected = self.hub.files("me/undisturbed")
        self.client = HfApi(endpoint=self.hub.endpoint, token=self.hub.token)

    @property
    def log(self) -> Path:
        return self.scratch / "log.txt"

    def said(self) -> str:
        """What the last runs printed."""
        return self.log.read_text(errors="replace")[-3000:]

    def start(self, target: str) -> multiprocessing.process.BaseProcess:
        """A run with an empty work folder."""
        shutil.rmtree(self.scratch / "tmp", ignore_errors=True)
        (self.scratch / "tmp").mkdir(parents=True)
        environment = {
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_TOKEN": self.token,
            "HF_HOME": str(self.scratch / "tmp" / "home"),
            "TMPDIR": str(self.scratch / "tmp"),
            "HF_HUB_DOWNLOAD_TIMEOUT": "3",
        }
        words = ["mirror", SOURCE, target, "--checkpoint-every", EVERY, "--transfer", self.transfer]
        process = _CONTEXT.Process(target=_main, args=([*words, "--json"], environment, str(self.log)))
        process.start()
        self.counts.runs += 1
        return process

    def run(self, target: str) -> int:
        """A run to its end; its exit code."""
        return self.end(self.start(target))

    def end(self, process: multiprocessing.process.BaseProcess) -> int:
        """Wait for a run; its exit code, -9 where it was killed."""
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise AssertionError(f"a run hung for {SECONDS} s; it said:\n{self.said()}")
        return process.exitcode

    def target(self) -> str:
        """A repository of the next trial."""
        self.number += 1
        return f"me/trial-{self.number}"

    @contextmanager
    def watched(self, target: str) -> Iterator[None]:
        """Poll `main` all the time: it must hold nothing, or the complete mirror."""
        seen: list[Files] = []
        over = threading.Event()

        def poll() -> None:
            while not over.is_set():
                try:
                    state = self.hub.files(target)
                except (KeyError, LookupError, ValueError):
                    state = {}
                if not seen or seen[-1] != state:
                    seen.append(state)
                time.sleep(0.005)

        reader = threading.Thread(target=poll, daemon=True)
        reader.start()
        try:
            yield
        finally:
            over.set()
            reader.join()
        for state in seen:
            half = state.keys() - {".gitattributes"} and state != self.expected
            assert not half, f"readers of {target} saw half a mirror: {sorted(state)[:5]} ..."

    def check(self, target: str) -> None:
        """The mirror is the undisturbed one, by one pull request, and nothing is left over."""
        found = self.hub.files(target)
        lost = [path for path, what in self.expected.items() if found.get(path) != what]
        self.counts.bytes_lost += sum(self.expected[path][0] for path in lost)
        assert found == self.expected, (lost, sorted(found.keys() ^ self.expected.keys()))
        self.counts.bytes_compared += sum(size for size, _, _ in found.values())
        pulls = [d.status for d in self.client.get_repo_discussions(target, discussion_type="pull_request")]
        assert pulls.count("merged") == 1, pulls
        assert not {"open", "draft"} & set(pulls), pulls
        branches = [ref.name for ref in self.client.list_repo_refs(target).branches]
        assert branches == ["main"], branches
        assert len(self.hub.commits(target)) == 2
        self.counts.trials += 1


@contextmanager
def shooting_range(folder: Path, transfer: str) -> Iterator[Range]:
    """A devhub of one's own."""
    with DevHub(folder / "hub") as hub:
        yield Range(hub, folder / f"scratch-{transfer}", transfer)


def tell(counts: Counts, seconds: float) -> None:
    """One line of where it stands."""
    print(
        f"{counts.trials} trials, {counts.runs} runs, {counts.kills} kills, {counts.faults} faults in"
        f" {seconds:.0f} s: {counts.bytes_compared / 1e9:.2f} GB compared, {counts.bytes_lost} bytes lost",
        file=sys.stderr,
        flush=True,
    )
