"""Readers of remote tensors, each for a process of its own: ours by HTTP and by Xet, and other packages'.

gguf's `SafetensorRemote` is what its converter reads a remote model with; it knows one Hub only, whose name
is put in its place here. `HfFileSystem` is the Hub client's file system: a file is opened once, without a
cache, so that each tensor is one request. Both are run as one would, and with four tensors at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from threading import Lock
from typing import Any

import numpy as np

SOURCE = "me/model"
AT_ONCE = 4


@dataclass
class Sum:
    """All bytes that were read, added up as words."""

    nbytes: int = 0
    total: int = 0
    _lock: Lock = field(default_factory=Lock)

    def add(self, data: Any) -> None:
        """A tensor that has come."""
        even = memoryview(data)[: len(data) // 8 * 8]
        words = int(np.frombuffer(even, np.uint64).sum()) + sum(memoryview(data)[len(even) :])
        with self._lock:
            self.nbytes += len(data)
            self.total = (self.total + words) % (1 << 64)


def ours(memory: str, *, by_xet: bool) -> Sum:
    """Tensors and blocks at once as a run under this cap."""
    from tensorport_hub.core.size import parse_size
    from tensorport_hub.core.tiles import Demand
    from tensorport_hub.edge.hub_client import HubClient
    from tensorport_hub.edge.hub_source import HubSource
    from tensorport_hub.edge.hub_xet_ranges import RANGES_NBYTES
    from tensorport_hub.engine.budget import allot
    from tensorport_hub.errors import SourceError
    from tensorport_hub.survey import read_header

    def report(event: object) -> None:
        pass

    client, found = HubClient(), Sum()
    state = client.repo_state(SOURCE, "main", SourceError)
    source = HubSource(client, state, read_seconds=10, report=report, xet=by_xet)
    files = [file for file in source.files if file.path.endswith(".safetensors")]
    tensors = [tensor for file in files for tensor in read_header(source, file).tensors]
    may = allot(
        parse_size(memory),
        workers=AT_ONCE,
        files=len(files),
        writer_nbytes=0,
        demand=Demand(max(tensor.nbytes for tensor in tensors), 0, 0, ""),
        reader_nbytes=RANGES_NBYTES if by_xet else 0,
    )
    with ThreadPoolExecutor(may.lanes) as lanes, ThreadPoolExecutor(may.lanes * may.depth) as fetches:

        def fetch(path: str, start: int, into: memoryview) -> None:
            source.read_into(path, start, into)

        def read(tensor: Any) -> None:
            data = memoryview(bytearray(tensor.nbytes))
            at = range(0, tensor.nbytes, may.block)
            blocks = [
                fetches.submit(fetch, tensor.file, tensor.start + i, data[i : i + may.block]) for i in at
            ]
            for block in blocks:
                block.result()
            found.add(data)

        list(lanes.map(read, tensors))
    source.close()
    return found


def _each(tensors: Iterable[Any], read: Callable[[Any], Any], at_once: int) -> Sum:
    found = Sum()
    with ThreadPoolExecutor(at_once) as threads:
        list(threads.map(lambda tensor: found.add(read(tensor)), tensors))
    return found


def gguf(at_once: int) -> Sum:
    """Its tensors, by name, each by one request."""
    from gguf.utility import SafetensorRemote

    SafetensorRemote.BASE_DOMAIN = os.environ["HF_ENDPOINT"]
    tensors = SafetensorRemote.get_list_tensors_hf_model(SOURCE)
    return _each(tensors.values(), lambda tensor: tensor.data(), at_once)


def file_system(at_once: int) -> Sum:
    """Where the tensors lie is asked of the client, too."""
    from huggingface_hub import HfApi, HfFileSystem

    endpoint, token = os.environ["HF_ENDPOINT"], os.environ["HF_TOKEN"]
    system = HfFileSystem(endpoint=endpoint, token=token)
    found = HfApi(endpoint, token).get_safetensors_metadata(SOURCE)
    ranges = []
    for name, file in found.files_metadata.items():
        path = f"{SOURCE}/{name}"
        with system.open(path, "rb", cache_type="none") as stream:
            begin = 8 + int.from_bytes(stream.read(8), "little")
        ranges += [(path, begin, tensor.data_offsets) for tensor in file.tensors.values()]

    def read(where: tuple[str, int, tuple[int, int]]) -> bytes:
        path, begin, (start, stop) = where
        with system.open(path, "rb", cache_type="none") as stream:
            stream.seek(begin + start)
            data: bytes = stream.read(stop - start)
            return data

    return _each(ranges, read, at_once)


PEERS: dict[str, Callable[[], Sum]] = {
    "gguf SafetensorRemote": lambda: gguf(1),
    f"gguf SafetensorRemote, {AT_ONCE}x": lambda: gguf(AT_ONCE),
    "HfFileSystem": lambda: file_system(1),
    f"HfFileSystem, {AT_ONCE}x": lambda: file_system(AT_ONCE),
}


def absent(peer: str) -> str | None:
    """Why a peer can't be run here."""
    package = "gguf" if peer.startswith("gguf") else "huggingface_hub"
    return None if find_spec(package) else f"skipped: `{package}` is not installed"
