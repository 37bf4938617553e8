"""The duties of a `Sink` and its `Writer`s, as tests.

Subclass, and give

- a fixture `sink_of`: a function that opens a new sink on one and the same destination, which is empty at
  first; three writers may be open at a time;
- a method `published`: what a reader of that destination finds there now, path -> content, without what the
  destination adds by itself (`.gitattributes`).

Each commit here publishes a `manifest.json` that lists the files, by which destinations know a mirror.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Callable, Mapping

import pytest

from tensorport_hub.errors import DestinationError
from tensorport_hub.ports import Published, Receipt, Sink, Writer

SinkOf = Callable[[], Sink]

_RANDOM = random.Random(21)
WEIGHTS: dict[str, bytes] = {
    "shard_000/model.embed_tokens.weight.npy": _RANDOM.randbytes(200_000),
    "shard_000/model.norm.weight.npy": _RANDOM.randbytes(129),
    "shard_001/a.part-00000-of-00001.npy": _RANDOM.randbytes(1),
}
SMALL: dict[str, bytes] = {"config.json": b"{}\n", "merges.txt": b"", "sub/chat.jinja": b"{{ x }}"}
ONE = "shard_000/model.norm.weight.npy"


class SinkContract:
    """What every sink does."""

    @pytest.fixture
    def sink_of(self) -> SinkOf:
        raise NotImplementedError

    def published(self, sink: Sink) -> Mapping[str, bytes]:
        """What readers of the sink's destination find."""
        raise NotImplementedError

    @pytest.fixture
    def sink(self, sink_of: SinkOf) -> Sink:
        return sink_of()

    @pytest.mark.parametrize("block", [1 << 20, 4096, 127])
    def test_receipt_is_of_the_content(self, sink: Sink, block: int) -> None:
        """However it is cut, a file's receipt states path, size and sha256 of what was written."""
        data = WEIGHTS["shard_000/model.embed_tokens.weight.npy"][: 300 * block]
        receipt = _write(sink, "shard_000/a.npy", data, block=block)
        assert receipt == Receipt("shard_000/a.npy", len(data), hashlib.sha256(data).hexdigest())
        sink.close()

    def test_put_receipt_is_of_the_content(self, sink: Sink) -> None:
        """`put` answers path, size and sha256 of the content."""
        for path, data in SMALL.items():
            assert sink.put(path, data) == Receipt(path, len(data), hashlib.sha256(data).hexdigest())
        sink.close()

    def test_commit_publishes_everything(self, sink: Sink) -> None:
        """After the commit readers find all receipts' files and all `put` files, byte for byte."""
        published, wanted = _publish(sink, WEIGHTS, SMALL)
        assert self.published(sink) == wanted
        assert isinstance(published, Published)
        assert published.changed
        assert published.location
        sink.close()
        assert self.published(sink) == wanted

    def test_nothing_is_visible_before_the_commit(self, sink: Sink) -> None:
        """Opened, finished and `put` files are invisible until `commit`."""
        for path, data in WEIGHTS.items():
            _write(sink, path, data)
        for path, data in SMALL.items():
            sink.put(path, data)
        writer = sink.open("shard_009/unfinished.npy", 10)
        writer.write(memoryview(b"12345"))
        assert self.published(sink) == {}
        writer.abort()
        sink.close()
        assert self.published(sink) == {}

    def test_buffer_may_be_reused(self, sink: Sink) -> None:
        """What is written into the same buffer after `write` returned does not reach the file."""
        data = WEIGHTS["shard_000/model.embed_tokens.weight.npy"]
        buffer = bytearray(1000)
        writer = sink.open(ONE, len(data))
        for start in range(0, len(data), 1000):
            buffer[:] = data[start : start + 1000]
            writer.write(memoryview(buffer))
            buffer[:] = bytes(1000)
        receipt = writer.finish()
        assert receipt.sha256 == hashlib.sha256(data).hexdigest()
        _, wanted = _commit(sink, [receipt], {ONE: data})
        assert self.published(sink) == wanted
        sink.close()

    @pytest.mark.parametrize("length", [0, 99, 101])
    def test_wrong_length_is_refused(self, sink: Sink, length: int) -> None:
        """A file that is shorter or longer than announced is a `DestinationError` that says both lengths."""
        writer = sink.open(ONE, 100)
        with pytest.raises(DestinationError, match=rf"(?s)100.*{length}"):  # noqa: PT012 (either may raise)
            writer.write(memoryview(bytes(length)))
            writer.finish()
        writer.abort()
        _, wanted = _commit(sink, [], {})
        assert self.published(sink) == wanted
        sink.close()

    def test_failed_attempt_is_written_again(self, sink: Sink) -> None:
        """A file that was given up half way is opened anew, and the second attempt is what counts."""
        data = WEIGHTS[ONE]
        first = sink.open(ONE, len(data))
        first.write(memoryview(b"\xff" * 100))
        first.abort()
        receipt = _write(sink, ONE, data)
        _, wanted = _commit(sink, [receipt], {ONE: data})
        assert self.published(sink) == wanted
        sink.close()

    def test_finished_file_is_written_again(self, sink: Sink) -> None:
        """Opening a finished path starts it anew; the receipt that is committed says which one counts."""
        _write(sink, ONE, b"old" * 50)
        receipt = _write(sink, ONE, b"new" * 50)
        _, wanted = _commit(sink, [receipt], {ONE: b"new" * 50})
        assert self.published(sink) == wanted
        sink.close()

    def test_abort_is_idempotent(self, sink: Sink) -> None:
        """`abort` raises nothing, once or thrice, before the first byte or after some."""
        for written in (b"", b"some"):
            writer = sink.open(ONE, 100)
            if written:
                writer.write(memoryview(written))
            for _ in range(3):
                writer.abort()
        _, wanted = _commit(sink, [], {})
        assert self.published(sink) == wanted
        sink.close()

    def test_abort_after_finish_is_harmless(self, sink: Sink) -> None:
        """A finished file survives the `abort` of its writer."""
        writer = sink.open(ONE, 3)
        writer.write(memoryview(b"abc"))
        receipt = writer.finish()
        writer.abort()
        writer.abort()
        _, wanted = _commit(sink, [receipt], {ONE: b"abc"})
        assert self.published(sink) == wanted
        sink.close()

    def test_writers_in_several_threads(self, sink: Sink) -> None:
        """Three threads write files at once, and each file is its own."""
        contents = {f"shard_000/{i:02d}.npy": random.Random(i).randbytes(5_000 + i) for i in range(12)}
        receipts: list[Receipt] = []
        failures: list[BaseException] = []
        todo = sorted(contents)
        lock = threading.Lock()

        def write_some() -> None:
            try:
                while True:
                    with lock:
                        if not todo:
                            return
                        path = todo.pop()
                    receipts.append(_write(sink, path, contents[path], block=700))
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=write_some) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        _, wanted = _commit(sink, receipts, contents)
        assert self.published(sink) == wanted
        sink.close()

    def test_commit_removes_what_the_mirror_held(self, sink_of: SinkOf) -> None:
        """A second mirror replaces the first one whole: what it lacks is gone, what it shares stays."""
        first = sink_of()
        _publish(first, WEIGHTS, SMALL)
        first.close()
        second = sink_of()
        weights = {ONE: WEIGHTS[ONE], "shard_000/b.npy": b"b" * 300}
        _, wanted = _publish(second, weights, {"config.json": b'{"v": 2}'})
        second.close()
        assert self.published(second) == wanted

    def test_same_content_again(self, sink_of: SinkOf) -> None:
        """The same mirror once more is no error and leaves readers what they had."""
        first = sink_of()
        _, wanted = _publish(first, WEIGHTS, SMALL)
        first.close()
        second = sink_of()
        _publish(second, WEIGHTS, SMALL)
        second.close()
        assert self.published(second) == wanted

    def test_close_without_commit_leaves_the_old_mirror(self, sink_of: SinkOf) -> None:
        """A run that was given up leaves what readers had before it."""
        first = sink_of()
        _, wanted = _publish(first, WEIGHTS, SMALL)
        first.close()
        second = sink_of()
        _write(second, ONE, b"other")
        second.put("config.json", b"other")
        open_writer: Writer = second.open("shard_000/b.npy", 100)
        open_writer.write(memoryview(b"half"))
        assert self.published(second) == wanted
        open_writer.abort()
        second.close()
        assert self.published(second) == wanted

    def test_close_never_raises(self, sink: Sink) -> None:
        """`close` raises nothing: at once, twice, and while a writer was left open."""
        writer = sink.open(ONE, 100)
        writer.write(memoryview(b"half"))
        sink.close()
        writer.abort()
        sink.close()
        assert self.published(sink) == {}


def _write(sink: Sink, path: str, data: bytes, *, block: int = 1 << 16) -> Receipt:
    writer = sink.open(path, len(data))
    for start in range(0, len(data), block):
        writer.write(memoryview(data)[start : start + block])
    return writer.finish()


def _publish(
    sink: Sink, weights: Mapping[str, bytes], small: Mapping[str, bytes]
) -> tuple[Published, dict[str, bytes]]:
    """Write, put and commit; what should be visible now."""
    receipts = [_write(sink, path, data) for path, data in weights.items()]
    for path, data in small.items():
        sink.put(path, data)
    return _commit(sink, receipts, {**weights, **small})


def _commit(
    sink: Sink, receipts: list[Receipt], contents: Mapping[str, bytes]
) -> tuple[Published, dict[str, bytes]]:
    """Commit with a manifest; what should be visible now."""
    listed = [{"path": path} for path in sorted(contents)]
    manifest = json.dumps({"schema": "tensorport.manifest/1", "files": listed}).encode()
    sink.put("manifest.json", manifest)
    return sink.commit(receipts), {**contents, "manifest.json": manifest}
