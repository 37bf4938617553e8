"""The unmodified hf_xet against the CAS: up by every way it has, back whole and by ranges."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import hf_xet
import pytest

from tests.devhub.xet.conftest import (
    GOOD_TOKEN,
    Client,
    Server,
    bf16_bytes,
    random_bytes,
    sha256_of,
)

CONTENTS = {
    "one byte": b"x",
    "100 kB": random_bytes(100_000),
    "5 MB of text": b"all work and no play\n" * 250_000,
    "5 MB of bf16": bf16_bytes(5_000_001),
    "70 MB": bf16_bytes(70_000_003),
}


def whole(server: Server, data: bytes) -> bytes:
    """What the CAS reads back for the bytes of this sha256."""
    blob = server.cas.find(sha256_of(data))
    assert blob is not None
    assert blob.sha256 == sha256_of(data)
    return b"".join(blob.read(0, blob.size))


@pytest.mark.parametrize("name", CONTENTS)
def test_stream(server: Server, client: Client, name: str) -> None:
    """A streamed upload is found by its sha256 and downloads as the same bytes."""
    data = CONTENTS[name]
    (info,) = client.upload(data)
    blob = server.cas.find(info.sha256)
    assert info.sha256 == sha256_of(data)
    assert blob is not None
    assert (blob.size, blob.xet_hash, blob.path) == (len(data), info.hash, None)
    assert client.download(info) == data
    assert whole(server, data) == data


def test_download_ranges(client: Client) -> None:
    """Ranges of a file that spans xorbs are exactly those bytes, at any bounds."""
    data = CONTENTS["70 MB"]
    (info,) = client.upload(data)
    rng = random.Random(1)
    for _ in range(10):
        start = rng.randrange(len(data))
        stop = min(len(data), start + rng.choice([1, 1000, 200_000, 20_000_000]))
        assert client.download(info, start, stop) == data[start:stop]
    assert client.download(info, len(data) - 1) == data[-1:]
    assert client.download(info, None, 10) == data[:10]


def test_bytes_and_files(server: Server, client: Client, tmp_path: Path) -> None:
    """`start_upload_bytes` and `start_upload_file` are found by sha256 as streams are."""
    in_memory, on_disk = random_bytes(300_000, 1), bf16_bytes(3_000_000, 2)
    path = tmp_path / "weights.bin"
    path.write_bytes(on_disk)
    commit = client.commit()
    commit.start_upload_bytes(in_memory, name="in memory")
    commit.start_upload_file(str(path))
    commit.wait_to_finish()
    assert whole(server, in_memory) == in_memory
    assert whole(server, on_disk) == on_disk


def test_empty_file(server: Server, client: Client) -> None:
    """An empty file has no terms and is found by the sha256 of nothing, though hf_xet sends zeros."""
    (info,) = client.upload(b"")
    assert info.sha256 == "0" * 64
    assert whole(server, b"") == b""
    assert client.download(info) == b""


def test_download_to_file(client: Client, tmp_path: Path) -> None:
    """The way huggingface_hub downloads, straight to a path, gives the same bytes."""
    data = bf16_bytes(8_000_000, 3)
    (info,) = client.upload(data)
    with client.session.new_file_download_group(**client.endpoint) as group:
        group.start_download_file(hf_xet.XetFileInfo(info.hash, info.file_size), str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == data


def test_repeats_inside_a_file(server: Server, client: Client) -> None:
    """A file that repeats itself is stored once and read back whole, by range too."""
    part = random_bytes(3_000_000, 4)
    data = part + b"-" * 100_000 + part + part[:1_000_000]
    (info,) = client.upload(data)
    stored = sum(path.stat().st_size for path in server.root.glob("xorbs/*/*"))
    assert stored < 1.2 * len(part)
    assert whole(server, data) == data
    assert client.download(info, 2_999_000, 6_200_000) == data[2_999_000:6_200_000]


def test_repeats_across_files(server: Server, client: Client) -> None:
    """The same bytes again send no xorb, and a file made of another's parts is read back whole."""
    first = random_bytes(4_000_000, 5)
    second = first[1_000_000:3_000_000] + random_bytes(500_000, 6) + first[:2_000_000]
    client.upload(first)
    xorbs = sum(path.startswith("/cas/v1/xorbs/") for _, path in server.requests)
    client.upload(first)
    assert sum(path.startswith("/cas/v1/xorbs/") for _, path in server.requests) == xorbs
    (info,) = client.upload(second)
    assert whole(server, second) == second
    assert client.download(info) == second


def test_many_files_in_a_commit(server: Server, client: Client) -> None:
    """Small files that share a xorb are each found and read back."""
    contents = [random_bytes(20_000 + i, 100 + i) for i in range(20)]
    client.upload(*contents)
    assert all(whole(server, content) == content for content in contents)


def test_commits_open_at_once(server: Server, client: Client) -> None:
    """Commits of one session do not touch each other: one aborted, the others are there."""
    contents = [bf16_bytes(2_000_000, 200 + i) for i in range(4)]
    commits = [client.commit() for _ in contents]
    streams = [commit.start_upload_stream(name="weights") for commit in commits]
    for stream, content in zip(streams, contents, strict=True):
        stream.write(content)
    streams[1].abort()
    commits[1].abort()
    for i in (0, 2, 3):
        streams[i].finish()
        commits[i].wait_to_finish()
    found = [server.cas.find(sha256_of(content)) is not None for content in contents]
    assert found == [True, False, True, True]


def test_two_processes(server: Server, tmp_path: Path) -> None:
    """Two processes that upload overlapping bytes at once both end with their file in the CAS."""
    script = (
        "import sys, hf_xet\n"
        "data = open(sys.argv[2], 'rb').read()\n"
        "commit = hf_xet.XetSession().new_upload_commit(token_refresh_url=sys.argv[1])\n"
        "stream = commit.start_upload_stream(name='weights')\n"
        "for start in range(0, len(data), 1 << 20):\n"
        "    stream.write(data[start:start + (1 << 20)])\n"
        "stream.finish()\n"
        "commit.wait_to_finish()\n"
    )
    shared = bf16_bytes(20_000_000, 7)
    contents = [shared, shared[:15_000_000] + random_bytes(5_000_000, 8)]
    running = []
    for i, content in enumerate(contents):
        path = tmp_path / f"content-{i}"
        path.write_bytes(content)
        arguments = [sys.executable, "-c", script, f"{server.url}/token/{GOOD_TOKEN}", str(path)]
        running.append(subprocess.Popen(arguments))
    assert [process.wait(60) for process in running] == [0, 0]
    assert all(whole(server, content) == content for content in contents)


def test_sha256_skipped(server: Server, client: Client) -> None:
    """A file uploaded without its sha256 is found by it all the same."""
    data = random_bytes(200_000, 9)
    commit = client.commit()
    stream = commit.start_upload_stream(name="weights", sha256=hf_xet.SKIP_SHA256)
    stream.write(data)
    stream.finish()
    commit.wait_to_finish()
    assert whole(server, data) == data


def test_wrong_sha256(server: Server, client: Client) -> None:
    """A sha256 that is not that of the bytes fails the commit, and nothing is published."""
    data = random_bytes(200_000, 10)
    commit = client.commit()
    stream = commit.start_upload_stream(name="weights", sha256=sha256_of(b"other bytes"))
    stream.write(data)
    stream.finish()
    with pytest.raises(ConnectionError, match="400"):
        commit.wait_to_finish()
    assert server.cas.find(sha256_of(data)) is None
    assert server.cas.find(sha256_of(b"other bytes")) is None


def test_refused_token(server: Server) -> None:
    """A token that `check_token` refuses fails the upload with a 401, not after minutes."""
    stranger = Client({"token_refresh_url": f"{server.url}/token/bad-token"})
    with pytest.raises((ConnectionError, PermissionError), match=r"401|[Aa]uthenti"):
        stranger.upload(random_bytes(100_000, 11))


def test_restart(server: Server, client: Client) -> None:
    """What was uploaded is there after the server starts again over the same directory."""
    data = random_bytes(500_000, 12)
    client.upload(data)
    again = Server(server.root)
    again.start()
    try:
        assert whole(again, data) == data
    finally:
        again.stop()
