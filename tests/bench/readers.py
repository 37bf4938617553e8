"""Readers of remote tensors, each for a process of its own: ours by HTTP and by Xet, and other packages'.

Ours hands out blocks, as it does to a decoder; theirs whole tensors. gguf's `SafetensorRemote` is what its
converter reads a remote model with; it knows one Hub only, whose name is put in its place here.
`HfFileSystem` is the Hub client's file system, without a cache, so that each tensor is one request. Both are
run as one would, and with four tensors at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from threading import Lock, local
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
        """A tensor, or a block of one, has come."""
        even = memoryview(data)[: len(data) // 8 * 8]
        words = int(np.frombuffer(even, np.uint64).sum()) + sum(memoryview(data)[len(even) :])
        with self._lock:
            self.nbytes += len(data)
            self.total = (self.total + words) % (1 << 64)


def ours(memory: str, *, by_xet: bool) -> Sum:
    """Blocks of tensors into buffers that are reused, as many at once as a run under this cap fetches."""
    from tensorport_hub.core.demand import Demand
    from tensorport_hub.edge.hub_client import HubClient
    from tensorport_hub.edge.hub_source import HubSource
    from tensorport_hub.edge.hub_xet_ranges import RANGES_NBYTES
    from tensorport_hub.engine.budget import allot
    from tensorport_hub.errors import SourceError
    from tensorport_hub.limits import Limits
    from tensorport_hub.survey import read_header

    def report(event: object) -> None:
        pass

    client, found, limits = HubClient(), Sum(), Limits.of(None, memory)
    state = client.repo_state(SOURCE, "main", SourceError)
    source = HubSource(client, state, read_seconds=10, report=report, xet=by_xet)
    files = [file for file in source.files if file.path.endswith(".safetensors")]
    tensors = [tensor for file in files for tensor in read_header(source, file).tensors]
    may = allot(
        limits.max_memory,
        workers=limits.workers,
        files=len(files),
        writer_nbytes=2 << 20,
        demand=Demand(),
        beside_nbytes=RANGES_NBYTES if by_xet else 0,
    )
    own = local()

    def read(block: tuple[str, int, int]) -> None:
        path, start, stop = block
        if not hasattr(own, "buffer"):
            own.buffer = memoryview(bytearray(may.block))
        data = own.buffer[: stop - start]
        source.read_into(path, start, data)
        found.add(data)

    blocks = [
        (tensor.file, start, min(start + may.block, tensor.stop))
        for tensor in tensors
        for start in range(tensor.start, tensor.stop, may.block)
    ]
    with ThreadPoolExecutor(may.lanes * may.depth) as fetches:
        list(fetches.map(read, blocks))
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
