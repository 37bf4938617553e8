"""Files of this machine as memory: views that live as long as they must, and handles that are left."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tensorport_hub.edge import mapped
from tensorport_hub.edge.mapped import map_file, read_into
from tensorport_hub.errors import SourceError

DATA = bytes(range(256)) * 40


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.npy"
    path.write_bytes(DATA)
    return path


def test_the_bytes_are_the_files(file: Path) -> None:
    """Mapped and read they are the same; the mapping can't be written to, and outlives the file's name."""
    mapping = map_file(file, len(DATA))
    assert mapping is not None
    file.unlink()
    assert mapping[:] == DATA
    with pytest.raises(TypeError):
        mapping[0] = 1


@pytest.mark.parametrize(("start", "stop"), [(0, len(DATA)), (0, 0), (17, 400), (len(DATA) - 1, len(DATA))])
def test_a_range(file: Path, start: int, stop: int) -> None:
    """Exactly the range."""
    buffer = bytearray(stop - start)
    read_into(file, len(DATA), start, memoryview(buffer))
    assert buffer == DATA[start:stop]


@pytest.mark.parametrize("read", [map_file, lambda path, size: read_into(path, size, 0, memoryview(b""))])
def test_another_size_is_another_file(file: Path, read: object) -> None:
    """A file that is not there, or not of the size that it must have, is an error that says both sizes."""
    assert callable(read)
    with pytest.raises(SourceError, match=f"expected 7 bytes, got {len(DATA)}"):
        read(file, 7)
    with pytest.raises(SourceError, match="No such file"):
        read(file.with_name("absent"), 7)


def test_past_the_end(file: Path) -> None:
    """A range that the file does not have is an error, never a short one."""
    with pytest.raises(SourceError, match="ended at byte"):
        read_into(file, len(DATA), len(DATA) - 3, memoryview(bytearray(4)))


def test_handles_are_left(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most half of the handles are used, and a mapping that nobody holds gives its own back."""
    if sys.version_info >= (3, 13):
        monkeypatch.setattr(mapped, "_most", lambda: 0)
        assert map_file(file, len(DATA)) is not None  # holds none
        return
    held = [map_file(file, len(DATA))]
    taken = mapped._HANDLES._held
    monkeypatch.setattr(mapped, "_most", lambda: taken + 1)
    held.append(map_file(file, len(DATA)))
    assert None not in held
    assert map_file(file, len(DATA)) is None
    held.pop()
    gc.collect()
    assert map_file(file, len(DATA)) is not None


FEW_HANDLES = """
import os, resource, sys
from pathlib import Path
from tensorport_hub.edge.mapped import map_file
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
found = [map_file(Path(sys.argv[1]), int(sys.argv[2])) for _ in range(200)]
open(os.devnull).close()
print(sum(one is not None for one in found))
"""


def test_more_files_than_handles(file: Path) -> None:
    """With 64 handles two hundred files are no trouble: some are mapped, and the program can open more."""
    words = [sys.executable, "-c", FEW_HANDLES, str(file), str(len(DATA))]
    root = Path(__file__).parents[2]
    run = subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert int(run.stdout) >= 32
