"""Container layouts: what is written by a frame is what each format's own reader reads."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack as msgpack_library
import numpy as np
import numpy.typing as npt
import pytest
import safetensors
from flax.serialization import msgpack_restore, msgpack_serialize
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.encode import msgpack
from tensorport_hub.core.encode.frame import Entry, Frame
from tensorport_hub.core.encode.safetensors import index
from tensorport_hub.core.encode.table import ENCODINGS
from tensorport_hub.core.tensor import DTYPES
from tensorport_hub.errors import LimitError
from tests.mirrored import NUMPY

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=300)
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
ENTRIES = st.dictionaries(NAMES, st.tuples(st.sampled_from(sorted(NUMPY)), SHAPES), max_size=20)


def arrays_of(entries: Sequence[Entry], seed: int = 0) -> list[Array]:
    """Any bits."""
    draw = np.random.default_rng(seed)
    made = []
    for entry in entries:
        raw = np.frombuffer(draw.bytes(entry.nbytes), np.uint8)
        if entry.dtype.name == "BOOL":
            raw = raw & 1
        made.append(raw.view(entry.dtype.numpy).reshape(entry.shape))
    return made


def written(frame: Frame, arrays: Sequence[Array]) -> bytes:
    """The file: literal bytes, and each array's own in the segments that are its."""
    left = [array.tobytes() for array in arrays]
    data = b""
    for segment in frame.segments:
        data += segment.before + left[segment.entry][: segment.nbytes]
        left[segment.entry] = left[segment.entry][segment.nbytes :]
    assert not any(left)
    return data + frame.after


def by_flax(data: bytes) -> dict[str, Array]:
    found: dict[str, Array] = msgpack_restore(data)
    return found


def by_pickle(data: bytes) -> dict[str, Array]:
    found: dict[str, Array] = pickle.loads(data)
    return found


def by_safetensors(data: bytes) -> dict[str, Array]:
    return {
        name: np.frombuffer(found["data"], np.uint8)
        .view(DTYPES[found["dtype"]].numpy)
        .reshape(found["shape"])
        for name, found in safetensors.deserialize(data)
    }


READERS: dict[str, Callable[[bytes], dict[str, Array]]] = {
    "msgpack": by_flax,
    "jax-pickle": by_pickle,
    "safetensors": by_safetensors,
}


def entries_of(stored: Mapping[str, tuple[str, tuple[int, ...]]]) -> list[Entry]:
    return [Entry(name, DTYPES[dtype], shape) for name, (dtype, shape) in stored.items()]


@pytest.mark.parametrize("form", READERS)
@settings(max_examples=120, deadline=None)
@given(stored=ENTRIES)
def test_its_reader_reads_it(form: str, stored: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """Names, dtypes, shapes and bits; the size is known before, within the bound that shards reckon with."""
    if form == "safetensors":
        stored = {name: one for name, one in stored.items() if name != "__metadata__"}
    entries = entries_of(stored)
    arrays = arrays_of(entries)
    encoding = ENCODINGS[form]
    frame = encoding.frame(entries)
    data = written(frame, arrays)
    if entries or form != "safetensors":
        found = READERS[form](data)
        assert found.keys() == {entry.name for entry in entries}
        for entry, array in zip(entries, arrays, strict=True):
            got = found[entry.name]
            assert (got.dtype, got.shape, got.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert len(data) == frame.size
    assert frame.size <= encoding.base + sum(encoding.overhead(e) + e.nbytes for e in entries) or not entries
    for segment, offset in zip(frame.segments, frame.offsets, strict=True):
        whole = arrays[segment.entry].tobytes()
        assert data[offset : offset + segment.nbytes] == whole


@settings(max_examples=60, deadline=None)
@given(stored=ENTRIES)
def test_msgpack_is_what_flax_writes(stored: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """Byte for byte, with the names in flax's order."""
    entries = sorted(entries_of(stored), key=lambda entry: entry.name)
    arrays = arrays_of(entries)
    given = {entry.name: array for entry, array in zip(entries, arrays, strict=True)}
    assert written(ENCODINGS["msgpack"].frame(entries), arrays) == msgpack_serialize(given)


class TestChunks:
    """msgpack arrays above the limit."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(msgpack, "CHUNK", 1000)

    @pytest.mark.parametrize("shape", [(300,), (20, 33), (7, 5, 11), (1001,), (2, 250)])
    def test_flax_joins_them(self, shape: tuple[int, ...]) -> None:
        """An array in chunks between whole ones comes back in one piece; chunks hold whole rows."""
        entries = [
            Entry("first", DTYPES["F32"], (2,)),
            Entry("large", DTYPES["F32"], shape),
            Entry("last", DTYPES["BF16"], (500,)),
        ]
        arrays = arrays_of(entries)
        frame = ENCODINGS["msgpack"].frame(entries)
        found = by_flax(written(frame, arrays))
        for entry, array in zip(entries, arrays, strict=True):
            got = found[entry.name]
            assert (got.dtype, got.shape, got.tobytes()) == (array.dtype, array.shape, array.tobytes())
        rows = [segment.rows for segment in frame.segments if segment.entry == 1]
        assert len(rows) > 1
        assert [start for start, _ in rows] == [0, *(stop for _, stop in rows[:-1])]
        assert rows[-1][1] == shape[0]
        assert all(segment.nbytes <= 1000 for segment in frame.segments)

    def test_the_map_of_chunks_is_flax_own(self) -> None:
        """The keys and types of a chunked array, read by msgpack alone."""
        entries = [Entry("large", DTYPES["U8"], (3, 500))]
        data = written(ENCODINGS["msgpack"].frame(entries), arrays_of(entries))
        large = msgpack_library.unpackb(data)["large"]
        assert list(large) == ["__msgpack_chunked_array__", "shape", "chunks"]
        assert large["__msgpack_chunked_array__"] is True
        assert large["shape"] == {"0": 3, "1": 500}
        assert list(large["chunks"]) == ["0", "1"]

    def test_a_row_that_does_not_fit(self) -> None:
        """Is named, with its size."""
        with pytest.raises(LimitError, match=r"row of `large` does not fit .* 1000 bytes, got 1004"):
            ENCODINGS["msgpack"].frame([Entry("large", DTYPES["F32"], (2, 251))])


class TestPickle:
    """What the opcodes do."""

    ENTRIES = entries_of({"w": ("BF16", (3, 4)), "n": ("F32", ()), "m": ("BOOL", (2,)), "e": ("F64", (0, 3))})

    def test_arrays_can_be_written_to(self) -> None:
        """They own their memory."""
        found = by_pickle(written(ENCODINGS["jax-pickle"].frame(self.ENTRIES), arrays_of(self.ENTRIES)))
        assert all(array.flags.writeable for array in found.values())

    def test_only_these_names_are_called(self) -> None:
        """numpy's array and dtype, and the scalar types of ml_dtypes: nothing else is looked up."""
        data = written(ENCODINGS["jax-pickle"].frame(self.ENTRIES), arrays_of(self.ENTRIES))
        seen: set[tuple[str, str]] = set()

        class Watching(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> Any:
                seen.add((module, name))
                return super().find_class(module, name)

        Watching(io.BytesIO(data)).load()
        assert seen == {("numpy", "ndarray"), ("numpy", "dtype"), ("ml_dtypes", "bfloat16")}

    def test_it_is_protocol_5(self) -> None:
        """Valid opcodes from the first to the last byte, of protocol 5."""
        data = written(ENCODINGS["jax-pickle"].frame(self.ENTRIES), arrays_of(self.ENTRIES))
        found = [*pickletools.genops(data)]
        assert found[0][:2] == (pickletools.code2op["\x80"], 5)
        assert max(opcode.proto for opcode, _, _ in found) == 5
        assert found[-1][2] == len(data) - 1


def test_safetensors_index() -> None:
    """Total size and the file of each tensor, sorted; ends with a line."""
    a, b = entries_of({"z": ("F32", (3,)), "a": ("BF16", (2, 2))}).__iter__()
    data = index([("model-00001-of-00002.safetensors", [a]), ("model-00002-of-00002.safetensors", [b])])
    assert json.loads(data) == {
        "metadata": {"total_size": 20},
        "weight_map": {"a": "model-00002-of-00002.safetensors", "z": "model-00001-of-00002.safetensors"},
    }
    assert data.endswith(b"}\n")


def test_packed_floats_keep_their_logical_shape() -> None:
    """F4 elements in a safetensors header are counted as elements; elsewhere they are bytes."""
    entry = Entry("w", DTYPES["F4"], (2, 3))
    head = ENCODINGS["safetensors"].frame([entry]).segments[0].before
    assert json.loads(head[8:])["w"] == {"dtype": "F4", "shape": [2, 6], "data_offsets": [0, 6]}
    array = arrays_of([entry])
    assert by_pickle(written(ENCODINGS["jax-pickle"].frame([entry]), array))["w"].dtype == np.uint8
