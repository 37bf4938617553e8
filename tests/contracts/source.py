"""The duties of a `Source`, as tests.

Subclass, and give a fixture `source_of`: a function from files (path -> content) to an open source of exactly
these, and of others only below the names in `extra`.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Mapping

import pytest

from tensorport_hub.errors import SourceError
from tensorport_hub.ports import Source

SourceOf = Callable[[Mapping[str, bytes]], Source]

_RANDOM = random.Random(20)
FILES: dict[str, bytes] = {
    "model-00002-of-00002.safetensors": _RANDOM.randbytes(300_000),
    "model-00001-of-00002.safetensors": _RANDOM.randbytes(70_001),
    "config.json": b'{"model_type": "tiny"}\n',
    "sub/tokenizer.json": b"{}",
    "merges.txt": b"",
    "README.md": "größer – 模型\n".encode(),
}
LARGE = "model-00002-of-00002.safetensors"


class SourceContract:
    """What every source does."""

    extra: frozenset[str] = frozenset({".gitattributes"})

    @pytest.fixture
    def source_of(self) -> SourceOf:
        raise NotImplementedError

    @pytest.fixture
    def source(self, source_of: SourceOf) -> Source:
        return source_of(FILES)

    def test_lists_all_files_sorted_with_sizes(self, source: Source) -> None:
        """`files` has every file once, by path, with its exact size."""
        listed = [(f.path, f.size) for f in source.files if f.path not in self.extra]
        assert listed == [(path, len(FILES[path])) for path in sorted(FILES)]
        assert [f.path for f in source.files] == sorted(f.path for f in source.files)

    def test_states_only_true_digests(self, source: Source) -> None:
        """A sha256 or git blob id that a source states is that of the content."""
        for file in source.files:
            if file.path not in FILES:
                continue
            data = FILES[file.path]
            blob = b"blob " + str(len(data)).encode() + b"\0" + data
            assert file.sha256 in (None, hashlib.sha256(data).hexdigest())
            assert file.sha256 or file.git_oid in (None, hashlib.sha1(blob).hexdigest())

    def test_names_its_state(self, source: Source) -> None:
        """`commit` is a text, and `repo` a text or None."""
        assert isinstance(source.commit, str)
        assert source.repo is None or source.repo

    @pytest.mark.parametrize("path", sorted(path for path in FILES if FILES[path]))
    def test_reads_whole_files(self, source: Source, path: str) -> None:
        """A range of the whole file gives its content."""
        assert _read(source, path, 0, len(FILES[path])) == FILES[path]

    @pytest.mark.parametrize(
        ("start", "stop"),
        [(0, 1), (0, 8), (1, 2), (299_999, 300_000), (1, 299_999), (65_535, 65_537), (131_072, 262_144)],
    )
    def test_reads_exact_ranges(self, source: Source, start: int, stop: int) -> None:
        """A range gives exactly its bytes."""
        assert _read(source, LARGE, start, stop) == FILES[LARGE][start:stop]

    def test_fills_nothing_beside_the_buffer(self, source: Source) -> None:
        """A buffer inside a larger one is filled, its neighbours stay."""
        around = bytearray(b"\xaa" * 120)
        source.read_into(LARGE, 1000, memoryview(around)[10:110])
        assert bytes(around) == b"\xaa" * 10 + FILES[LARGE][1000:1100] + b"\xaa" * 10

    @pytest.mark.parametrize("path", [LARGE, "merges.txt"])
    def test_reads_nothing_into_an_empty_buffer(self, source: Source, path: str) -> None:
        """An empty range inside the file, or an empty file, is no error."""
        source.read_into(path, 0, memoryview(bytearray()))
        assert _read(source, LARGE, 5, 9) == FILES[LARGE][5:9]

    @pytest.mark.parametrize(
        ("path", "start", "nbytes"),
        [
            (LARGE, 300_000, 1),
            (LARGE, 299_999, 2),
            (LARGE, 10**12, 10),
            (LARGE, -1, 10),
            ("config.json", 0, 24),
            ("merges.txt", 0, 1),
        ],
    )
    def test_refuses_ranges_outside_the_file(
        self, source: Source, path: str, start: int, nbytes: int
    ) -> None:
        """A range that the file does not hold whole is a `SourceError` that names the file; never short."""
        with pytest.raises(SourceError, match=path.replace(".", r"\.")):
            source.read_into(path, start, memoryview(bytearray(nbytes)))

    @pytest.mark.parametrize("path", ["absent.safetensors", "sub", "sub/absent", "../config.json", ""])
    def test_refuses_files_that_are_not_listed(self, source: Source, path: str) -> None:
        """A path that is not in `files` is a `SourceError`."""
        with pytest.raises(SourceError):
            source.read_into(path, 0, memoryview(bytearray(1)))

    def test_stays_usable_after_an_error(self, source: Source) -> None:
        """A refused range spoils nothing for the next one."""
        with pytest.raises(SourceError):
            source.read_into(LARGE, 299_999, memoryview(bytearray(2)))
        assert _read(source, LARGE, 299_990, 300_000) == FILES[LARGE][-10:]

    def test_reads_from_many_threads(self, source: Source) -> None:
        """Eight threads read ranges of two files at once, and each gets its own bytes."""
        wrong: list[object] = []

        def read_some(seed: int) -> None:
            ranges = random.Random(seed)
            for _ in range(12):
                path = ranges.choice([LARGE, "model-00001-of-00002.safetensors"])
                start = ranges.randrange(len(FILES[path]))
                stop = ranges.randint(start, min(len(FILES[path]), start + 50_000))
                try:
                    if _read(source, path, start, stop) != FILES[path][start:stop]:
                        wrong.append((path, start, stop))
                except Exception as error:
                    wrong.append(error)

        threads = [threading.Thread(target=read_some, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    def test_closes(self, source: Source) -> None:
        """`close` raises nothing, after reads too."""
        _read(source, LARGE, 0, 10)
        source.close()


def _read(source: Source, path: str, start: int, stop: int) -> bytes:
    buffer = bytearray(stop - start)
    source.read_into(path, start, memoryview(buffer))
    return bytes(buffer)
