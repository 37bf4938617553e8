"""Reading by range, from the CAS's own store and from hf_xet's `local://` store."""

from __future__ import annotations

import gc
import random
from pathlib import Path

import pytest

from tensorport_hub.devhub.xet import LocalCas, XetBlob
from tests.devhub.xet.conftest import Client, Server, bf16_bytes, random_bytes, sha256_of


def pieces() -> bytes:
    """A file whose terms jump between xorbs: parts of it repeat."""
    base = random_bytes(2_000_000, 20)
    return base + bf16_bytes(1_500_001, 21) + base[500_000:1_700_000] + b"z" * 300_000 + base[:700_000]


def check_ranges(blob: XetBlob, data: bytes, count: int) -> None:
    """Random ranges, each end at and around each end of a term, and the trivial ones."""
    rng = random.Random(3)
    edges = [0, len(data)]
    for term in blob.terms:
        edges.append(edges[-1] + term.nbytes if len(edges) > 2 else term.nbytes)
    cases = [(0, 0), (0, 1), (len(data), len(data)), (len(data) - 1, len(data)), (0, len(data))]
    for edge in edges:
        start = min(max(edge - 1, 0), len(data))
        cases.append((start, min(edge + 1, len(data))) if start <= edge else (0, 1))
    for _ in range(count):
        start = rng.randrange(len(data))
        cases.append((start, min(len(data), start + rng.choice([0, 1, 65_536, 100_001, 3_000_000]))))
    for start, stop in cases:
        assert b"".join(blob.read(start, stop)) == data[start:stop], (start, stop)


def test_read_ranges(server: Server, client: Client) -> None:
    """`read` gives exactly the bytes of any range, within and across terms."""
    data = pieces()
    client.upload(data[:2_500_000])
    client.upload(data)
    blob = server.cas.find(sha256_of(data))
    assert blob is not None
    assert len(blob.terms) > 2
    check_ranges(blob, data, 150)


def test_read_is_bounded(server: Server, client: Client) -> None:
    """Blocks are about 1 MiB, never the whole range, and never empty."""
    data = bf16_bytes(20_000_000, 22)
    client.upload(data)
    blob = server.cas.find(sha256_of(data))
    assert blob is not None
    sizes = [len(block) for block in blob.read(0, blob.size)]
    assert max(sizes) <= 1_200_000
    assert min(sizes) > 0


def test_read_outside(server: Server, client: Client) -> None:
    """A range outside the file is an error, not a short read."""
    client.upload(b"x" * 1000)
    blob = server.cas.find(sha256_of(b"x" * 1000))
    assert blob is not None
    for start, stop in ((0, 1001), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="outside"):
            list(blob.read(start, stop))


def test_read_truncated_store(server: Server, client: Client) -> None:
    """A xorb file that lost its end is an error, not a short read."""
    data = random_bytes(1_000_000, 23)
    client.upload(data)
    blob = server.cas.find(sha256_of(data))
    assert blob is not None
    (xorb,) = server.root.glob("xorbs/*/*")
    with xorb.open("r+b") as file:
        file.truncate(500_000)
    with pytest.raises(OSError, match="ends before"):
        list(blob.read(0, blob.size))


def test_unknown_sha256(server: Server, tmp_path: Path) -> None:
    """A sha256 that nobody uploaded is None, in both stores, also when the directory is not there."""
    assert server.cas.find(sha256_of(b"nothing")) is None
    assert LocalCas(tmp_path / "absent").find(sha256_of(b"nothing")) is None


def test_local_store(tmp_path: Path) -> None:
    """`LocalCas` reads what a `local://` upload wrote while hf_xet holds the store open."""
    root = tmp_path / "store"
    root.mkdir()
    local = LocalCas(root)
    client = Client({"endpoint": f"local://{root}"})
    first, second = pieces(), bf16_bytes(70_000_000, 24)
    (info,) = client.upload(first)
    blob = local.find(sha256_of(first))
    assert blob is not None
    assert (blob.sha256, blob.size, blob.xet_hash) == (info.sha256, len(first), info.hash)
    check_ranges(blob, first, 60)
    gc.collect()
    assert local.find(sha256_of(second)) is None
    client.upload(second, first, b"")
    empty = local.find(sha256_of(b""))
    assert empty is not None
    assert list(empty.read(0, 0)) == []
    blob = local.find(sha256_of(second))
    assert blob is not None
    check_ranges(blob, second, 10)
