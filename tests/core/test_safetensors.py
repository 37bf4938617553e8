"""The safetensors header: any bytes give specs or a `CheckpointError`; what is valid reads as by others."""

from __future__ import annotations

import json
import struct
import tracemalloc
from itertools import pairwise
from math import prod
from time import process_time
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.safetensors import (
    FIRST_READ,
    HEADER_LIMIT,
    Header,
    header_stop,
    parse_header,
)
from tensorport_hub.core.tensor import DTYPES, shorten
from tensorport_hub.errors import CheckpointError
from tensorport_hub.survey import read_header
from tests.core.samples import container, entry

FILE = "model-00001-of-00002.safetensors"
BIG = 2**63
SAID = '{"_type": "ß"}'


def read(data: bytes) -> Header:
    return parse_header(data, file=FILE, file_size=len(data))


def check_against_own_reader(data: bytes) -> None:
    """What we accept, the format's own reader accepts, and both say the same; what we refuse, we name.

    One exception: `-0` is 0 to us and no integer to the other.
    """
    header, refusal = None, FILE
    try:
        header = read(data)
    except CheckpointError as error:
        refusal = error.message
    assert FILE in refusal
    if header is None:
        return
    if b"-0" in data[: header.data_start]:
        return
    theirs = dict(safetensors.deserialize(data))
    assert {t.name for t in header.tensors} == set(theirs)
    assert len(theirs) == len(header.tensors)
    for tensor in header.tensors:
        other = theirs[tensor.name]
        assert (tensor.dtype.name, list(tensor.shape)) == (other["dtype"], other["shape"])
        assert data[tensor.start : tensor.stop] == bytes(other["data"])
    edges = [(header.data_start, header.data_start), *((t.start, t.stop) for t in header.tensors)]
    assert all(before[1] == after[0] for before, after in pairwise(edges))
    assert edges[-1][1] == len(data)


# --- valid files ---

ARRAYS: dict[str, Any] = {
    "scalar": np.array(3.5, np.float32),
    "none": np.zeros(0, np.float16),
    "no_rows": np.zeros((0, 7), np.int64),
    "no_columns": np.zeros((3, 0, 5), np.uint8),
    "one_row": np.arange(5, dtype=np.int16)[None],
    "bool": np.array([[True, False], [False, True]]),
    "u16": np.arange(12, dtype=np.uint16).reshape(2, 2, 3),
    "u64": np.array([2**64 - 1], np.uint64),
    "c64": np.array([1 + 2j], np.complex64),
    "f64": np.array([[np.nan, -0.0, np.inf]]),
    "model.layers.0.ünïcode / name": np.arange(4, dtype=np.int8),
}


def test_only_metadata_that_describes_tensors_is_kept():
    """Free text is not held; descriptions are, unless they are more than the tensors could need."""
    kept = {"a": SAID}
    free = {"format": "pt", "note": "x" * 5000, "b": SAID + " " * 5000}
    data = safetensors.numpy.save(ARRAYS, metadata={**kept, **free})
    assert read(data).metadata == kept
    many = {f"a{i}": SAID + " " * 4000 for i in range(len(ARRAYS) + 17)}
    with pytest.raises(CheckpointError, match=r"absurdly large: expected at most \d+ characters"):
        read(safetensors.numpy.save(ARRAYS, metadata=many))


def test_files_of_the_own_writer_read_as_its_own_reader_reads_them(tmp_path):
    """Names, dtypes, shapes and bytes of a file written by safetensors.numpy equal those of `safe_open`."""
    data = safetensors.numpy.save(ARRAYS, metadata={"format": "np", "ünï": SAID})
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    header = read(data)
    assert header.metadata == {"ünï": SAID}
    with safetensors.safe_open(path, "np") as file:
        assert sorted(t.name for t in header.tensors) == sorted(file.keys())
        for tensor in header.tensors:
            view = file.get_slice(tensor.name)
            assert [*tensor.shape] == view.get_shape()
            assert tensor.dtype.name == view.get_dtype()
            assert tensor.file == FILE
            stored = np.frombuffer(data[tensor.start : tensor.stop], tensor.dtype.numpy)
            assert stored.reshape(tensor.shape).tobytes() == file.get_tensor(tensor.name).tobytes()
            assert tensor.nbytes == ARRAYS[tensor.name].nbytes
            assert tensor.numel == ARRAYS[tensor.name].size


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_of_the_format_is_read(dtype):
    """A [4, 6] tensor of each dtype takes as many bytes as the format's own reader says."""
    nbytes = 24 * DTYPES[dtype].nbits // 8
    data = container({"x": entry(dtype, (4, 6), 0, nbytes)}, bytes(range(256))[:nbytes])
    ((name, theirs),) = safetensors.deserialize(data)
    (ours,) = read(data).tensors
    assert (ours.name, ours.dtype.name, [*ours.shape]) == (name, theirs["dtype"], theirs["shape"])
    assert data[ours.start : ours.stop] == bytes(theirs["data"])


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        st.tuples(
            st.sampled_from([np.bool_, np.uint8, np.int32, np.float16, np.float64, np.complex64]),
            st.lists(st.integers(0, 3), max_size=4),
        ),
        max_size=6,
    )
)
def test_any_valid_file_reads_as_by_the_own_reader(arrays):
    """Whatever names, dtypes and shapes the own writer is given, both readers agree on every byte."""
    arrays.pop("__metadata__", None)
    data = safetensors.numpy.save({n: np.ones(shape, kind) for n, (kind, shape) in arrays.items()})
    assert {t.name for t in read(data).tensors} == set(arrays)
    check_against_own_reader(data)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (ml_dtypes.bfloat16, "BF16"),
        (ml_dtypes.float8_e4m3fn, "F8_E4M3"),
        (ml_dtypes.float8_e5m2, "F8_E5M2"),
        (ml_dtypes.float8_e8m0fnu, "F8_E8M0"),
        (ml_dtypes.float8_e4m3fnuz, "F8_E4M3FNUZ"),
        (ml_dtypes.float8_e5m2fnuz, "F8_E5M2FNUZ"),
    ],
)
def test_extension_dtypes_are_those_of_ml_dtypes(kind, name):
    """Each 8- and 16-bit extension float is computed with as the ml_dtypes type of the same format."""
    assert DTYPES[name].numpy == np.dtype(kind)
    assert DTYPES[name].itemsize == np.dtype(kind).itemsize


@pytest.mark.parametrize("length", [*range(99_990, 100_011), *range(FIRST_READ - 17, FIRST_READ + 3)])
def test_headers_of_any_length_are_read(length):
    """A header is read whatever its length, in one range or in two, around every limit of old readers."""
    text = json.dumps({"__metadata__": {"pad": ""}, "x": entry("U8", (3,), 0, 3)})
    text = text.replace('"pad": ""', f'"pad": "{"p" * (length - len(text))}"')
    data = container(text, b"abc")
    asked: list[tuple[int, int]] = []

    class Memory:
        def read_into(self, path: str, start: int, buffer: memoryview) -> None:
            asked.append((start, start + len(buffer)))
            buffer[:] = data[start : start + len(buffer)]

    header = read_header(Memory(), SourceFile(FILE, len(data)))  # type: ignore[arg-type]
    assert header == read(data)
    assert header.data_start == 8 + length
    assert [(t.name, t.start, t.stop) for t in header.tensors] == [("x", 8 + length, 11 + length)]
    assert len(asked) == (1 if 8 + length <= FIRST_READ else 2)
    assert asked[-1][1] >= 8 + length


def test_names_may_be_long_and_hold_anything():
    """A name of 10,000 bytes and one with NUL, quotes and slashes are names like others."""
    names = ["n" * 10_000, 'a\0b"c\\d/../e\u2028', ""]
    data = container({name: entry("U8", (1,), i, i + 1) for i, name in enumerate(names)}, b"abc")
    assert [t.name for t in read(data).tensors] == names
    check_against_own_reader(data)


def test_tensors_come_in_file_order():
    """Specs are sorted by offset, whatever the order of the names in the header."""
    data = container(
        {"b": entry("U8", (2,), 1, 3), "z": entry("U8", (0,), 1, 1), "c": entry("U8", (1,), 0, 1)}
    )
    assert [t.name for t in read(data + b"abc").tensors] == ["c", "z", "b"]


def test_a_file_without_tensors_is_a_file():
    """An empty header gives no tensors."""
    assert read(container("{}")).tensors == ()


# --- hostile files ---

U8 = entry("U8", (4,), 0, 4)


def one(value: Any) -> bytes:
    """A file of four bytes of data whose header gives `x` this value."""
    return container({"x": value}, b"abcd")


def header_of(text: str) -> bytes:
    return container(text, b"abcd")


BAD: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "at least 8 bytes"),
    "seven bytes": (b"\0" * 7, "at least 8 bytes"),
    "length 0": (struct.pack("<Q", 0) + b"{}", "too short"),
    "length 1": (struct.pack("<Q", 1) + b"{}", "too short"),
    "length past the end": (struct.pack("<Q", 3) + b"{}", "runs past the end"),
    "length over the limit": (struct.pack("<Q", HEADER_LIMIT + 1) + b"{}", "too long"),
    "length 2^64 - 1": (b"\xff" * 8 + b"{}", "too long"),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "too long"),
    "not UTF-8": (container(b'{"\xff": 1}'), "not UTF-8"),
    "UTF-8 of a surrogate": (container(b'{"\xed\xa0\x80": 1}'), "not UTF-8"),
    "UTF-16": (container("{}".encode("utf-16")), "must start with"),
    "a byte order mark": (container(b"\xef\xbb\xbf{}"), "must start with"),
    "leading space": (container(" {}"), "must start with"),
    "a list": (container("[]"), "must start with"),
    "cut JSON": (container('{"x": '), "not JSON"),
    "two objects": (container("{}{}"), "not JSON"),
    "a control character": (container('{"a\nb": 1}'), "not JSON"),
    "duplicate tensor": (
        header_of('{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"x":{}}'),
        "`x` stands twice",
    ),
    "duplicate by escape": (header_of('{"x": 1, "\\u0078": 1}'), "`x` stands twice"),
    "duplicate inside": (
        header_of('{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"dtype":"U8"}}'),
        "`dtype` stands twice",
    ),
    "duplicate in metadata": (header_of('{"__metadata__":{"a":"1","a":"2"}}'), "`a` stands twice"),
    "NaN": (header_of('{"x": NaN}'), "`NaN`"),
    "infinity": (header_of('{"x": [-Infinity]}'), "`-Infinity`"),
    "metadata null": (header_of('{"__metadata__": null}'), "`__metadata__`"),
    "metadata list": (header_of('{"__metadata__": []}'), "`__metadata__`"),
    "metadata number": (header_of('{"__metadata__": {"a": 1}}'), "`__metadata__`"),
    "entry null": (one(None), "tensor `x`"),
    "entry list": (one([]), "tensor `x`"),
    "entry empty": (one({}), "tensor `x`"),
    "entry without dtype": (one({"shape": [4], "data_offsets": [0, 4]}), "tensor `x`"),
    "entry with more": (one({**U8, "more": 1}), "tensor `x`"),
    "dtype unknown": (one({**U8, "dtype": "U9"}), "`U9` is unknown"),
    "dtype lower case": (one({**U8, "dtype": "u8"}), "`u8` is unknown"),
    "dtype a list": (one({**U8, "dtype": ["U8"]}), "is unknown"),
    "dtype an object": (one({**U8, "dtype": {}}), "is unknown"),
    "dtype null": (one({**U8, "dtype": None}), "is unknown"),
    "shape null": (one({**U8, "shape": None}), "expected a shape"),
    "shape a number": (one({**U8, "shape": 4}), "expected a shape"),
    "shape negative": (one({**U8, "shape": [-4]}), "expected a shape"),
    "shape two negatives": (one({**U8, "shape": [-2, -2]}), "expected a shape"),
    "shape bool": (one({**U8, "shape": [4, True]}), "expected a shape"),
    "shape float": (one({**U8, "shape": [4.0]}), "expected a shape"),
    "shape text": (one({**U8, "shape": ["4"]}), "expected a shape"),
    "shape 2^63": (one({**U8, "shape": [BIG]}), "expected a shape"),
    "shape 2^64 + 4": (one({**U8, "shape": [2**64 + 4]}), "expected a shape"),
    "shape 10^400": (one({**U8, "shape": [10**400]}), "expected a shape"),
    "shape of rank 65": (one({**U8, "shape": [1] * 65}), "expected a shape"),
    "shape of rank 100,000": (one({**U8, "shape": [1] * 100_000}), "expected a shape"),
    "an integer of 5,000 digits": (header_of('{"x": ' + "9" * 5000 + "}"), "not JSON"),
    "product 2^64": (one({**U8, "shape": [2**32, 2**32]}), "overflows"),
    "product 2^63 of 8 bytes": (one({**U8, "dtype": "F64", "shape": [2**61]}), "overflows"),
    "product 2^64 + 4, which wraps to 4": (one({**U8, "shape": [4, 2**62 + 1]}), "overflows"),
    "product overflows before a zero": (
        container({"x": entry("U8", (2**62, 4, 0), 0, 0)}),
        "overflows",
    ),
    "product overflows after a zero": (
        container({"x": entry("U8", (0, 2**62, 4), 0, 0)}),
        "overflows",
    ),
    "offsets one": (one({**U8, "data_offsets": [0]}), "expected two `data_offsets`"),
    "offsets three": (one({**U8, "data_offsets": [0, 4, 4]}), "expected two `data_offsets`"),
    "offsets negative": (one({**U8, "data_offsets": [-4, 0]}), "expected two `data_offsets`"),
    "offsets bool": (one({**U8, "data_offsets": [False, 4]}), "expected two `data_offsets`"),
    "offsets float": (one({**U8, "data_offsets": [0.0, 4]}), "expected two `data_offsets`"),
    "offsets text": (one({**U8, "data_offsets": ["0", "4"]}), "expected two `data_offsets`"),
    "offsets an object": (one({**U8, "data_offsets": {"0": 4}}), "expected two `data_offsets`"),
    "offsets 2^63": (one({**U8, "data_offsets": [0, BIG]}), "expected two `data_offsets`"),
    "offsets reversed": (one({**U8, "data_offsets": [4, 0]}), "takes 4 bytes"),
    "size too small": (one({**U8, "shape": [3]}), "takes 3 bytes"),
    "size too large": (one({**U8, "shape": [5]}), "takes 5 bytes"),
    "size of another dtype": (one({**U8, "dtype": "F16"}), "takes 8 bytes"),
    "F4 inside a byte": (one({**U8, "dtype": "F4", "shape": [7]}), "ends inside a byte"),
    "F6 inside a byte": (one({**U8, "dtype": "F6_E2M3", "shape": [5]}), "ends inside a byte"),
    "a lone surrogate": (header_of('{"\\ud800": ' + json.dumps(U8) + "}"), "surrogate"),
    "overlap": (
        container({"a": entry("U8", (3,), 0, 3), "x": entry("U8", (3,), 2, 5)}, b"abcde"),
        "tensor `x`",
    ),
    "same range twice": (container({"a": U8, "x": U8}, b"abcd"), "tensor `x`"),
    "nested": (
        container({"a": U8, "x": entry("U8", (2,), 1, 3)}, b"abcd"),
        "tensor `x`",
    ),
    "an empty one inside another": (
        container({"a": U8, "x": entry("U8", (0,), 2, 2)}, b"abcd"),
        "tensor `x`",
    ),
    "hole": (
        container({"a": entry("U8", (1,), 0, 1), "x": entry("U8", (2,), 2, 4)}, b"abcd"),
        "leaves a hole after `a`",
    ),
    "hole at the front": (
        container({"x": entry("U8", (3,), 1, 4)}, b"abcd"),
        "leaves a hole after the header",
    ),
    "trailing byte": (container({"x": U8}, b"abcde"), "wrong size"),
    "data missing": (container({"x": U8}, b"abc"), "wrong size"),
    "data without tensors": (container("{}", b"a"), "wrong size"),
    "data at 2^62": (container({"x": entry("U8", (2**62,), 0, 2**62)}, b"abcd"), "wrong size"),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed_files_are_refused_in_words(case):
    """Every hand-made violation is a `CheckpointError` that names the file and says what is wrong."""
    data, words = BAD[case]
    with pytest.raises(CheckpointError) as caught:
        read(data)
    assert FILE in caught.value.message
    assert words in caught.value.message
    assert len(caught.value.message) < 1000
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("case", BAD)
def test_what_the_own_reader_refuses_is_refused(case):
    """No hand-made violation that the format's own reader refuses passes here."""
    check_against_own_reader(BAD[case][0])


def test_a_header_that_was_not_read_whole_is_an_error():
    """`parse_header` never parses a part of a header."""
    data = one(U8)
    with pytest.raises(CheckpointError, match="is cut"):
        parse_header(data[:-5], file=FILE, file_size=len(data))


def test_a_long_hostile_name_makes_a_short_message():
    """A name of 10,000 control characters is quoted printable and short, but recognizably."""
    data = container({"\0\n" * 5000: {**U8, "dtype": "no"}}, b"abcd")
    with pytest.raises(CheckpointError) as caught:
        read(data)
    assert len(caught.value.message) < 400
    assert "\\x00\\n" in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize(
    "where",
    [
        '{"x":%s}',
        '{"__metadata__":%s}',
        '{"x":{"dtype":%s,"shape":[4],"data_offsets":[0,4]}}',
        '{"x":{"dtype":"U8","shape":%s,"data_offsets":[0,4]}}',
        '{"x":{"dtype":"U8","shape":[4],"data_offsets":%s}}',
    ],
)
def test_deep_nesting_is_refused_at_any_depth(opening, closing, where):
    """Nesting is a `CheckpointError` at every depth around the interpreter's own limit, and far beyond."""
    for depth in [2, 10, 100, *range(300, 860, 7), *range(860, 1000), 100_000]:
        text = where % (opening * depth + "1" + closing * depth)
        with pytest.raises(CheckpointError):
            read(container(text))


def test_absurd_headers_cost_bounded_time_and_memory():
    """Megabytes of brackets or of numbers are refused in a second, within a few times their own size."""
    hostile = ['{"x":' + "[" * 5_000_000, '{"x":[' + "0," * 1_000_000 + "0]}", '{"' + "\\u0000" * 1_000_000]
    for text in hostile:
        data = container(text)
        tracemalloc.start()
        begun = process_time()
        with pytest.raises(CheckpointError) as caught:
            read(data)
        seconds, (_, peak) = process_time() - begun, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert seconds < 5
        assert peak < 20 * len(data)
        assert len(caught.value.message) < 1000


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
@example(b"\x02\0\0\0\0\0\0\0{}")
def test_random_bytes_give_specs_or_an_error(data):
    """Any bytes at all are a header or a `CheckpointError`, never anything else."""
    check_against_own_reader(data)
    check_against_own_reader(container(data))
    check_against_own_reader(container(b"{" + data + b"}"))


VALID = safetensors.numpy.save(
    {"a": np.arange(6, dtype=np.int16).reshape(2, 3), "b.weight": np.ones((2, 0)), "c": np.array(1.0)},
    metadata={"format": "pt"},
)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_mutated_files_give_specs_or_an_error(data):
    """A valid file with bytes changed, cut, doubled or inserted is never misread."""
    mutated = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(mutated)))
        match data.draw(st.sampled_from(["set", "digit", "cut", "double", "insert"])):
            case "set":
                mutated[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
            case "digit":
                digits = [i for i, b in enumerate(mutated) if chr(b).isdigit()]
                if digits:
                    mutated[data.draw(st.sampled_from(digits))] = data.draw(
                        st.sampled_from(b"0123456789-.eE")
                    )
            case "cut":
                del mutated[at : at + data.draw(st.integers(1, 20))]
            case "double":
                mutated[at:at] = mutated[at : at + data.draw(st.integers(1, 80))]
            case _:
                mutated[at:at] = data.draw(st.binary(max_size=8))
    if data.draw(st.booleans()) and len(mutated) > 8:
        mutated[:8] = struct.pack("<Q", max(0, bytes(mutated).rfind(b"}") - 7))
    check_against_own_reader(bytes(mutated))


NUMBERS = st.one_of(
    st.integers(-2, 9),
    st.sampled_from(
        [2**31, 2**32, 2**62, BIG - 1, BIG, 2**64, -(2**63), 10**30, 0.0, 4.0, 1e308, True, False]
    ),
)
JSON = st.recursive(
    st.one_of(st.none(), NUMBERS, st.text(max_size=6)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
ENTRIES = st.one_of(
    JSON,
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from([*DTYPES]) | JSON,
            "shape": st.lists(NUMBERS, max_size=4) | JSON,
            "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2) | JSON,
        }
    ),
    st.builds(
        lambda dtype, shape, at: entry(dtype, shape, at, at + prod(shape) * DTYPES[dtype].nbits // 8),
        st.sampled_from([*DTYPES]),
        st.lists(st.integers(0, 4), max_size=3),
        st.integers(0, 3),
    ),
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.text(max_size=8) | st.just("__metadata__"), ENTRIES, max_size=4),
    st.integers(0, 40),
)
def test_headers_by_grammar_give_specs_or_an_error(header, nbytes):
    """Well-formed JSON with the right keys and any values is read as the own reader reads it, or refused."""
    check_against_own_reader(container(header, bytes(nbytes)))


@pytest.mark.parametrize("size", [0, 7])
def test_a_file_too_short_for_a_length_is_named(size):
    """`header_stop` needs eight bytes."""
    with pytest.raises(CheckpointError, match=f"`{FILE}`.*got {size}"):
        header_stop(b"\0" * size, file=FILE, file_size=size)


@given(st.text(st.characters(exclude_categories=[]), max_size=300))
@settings(max_examples=100, deadline=None)
def test_shortened_names_are_printable(name):
    """Whatever a name holds, its quotation is printable, can be encoded, and stays short."""
    text = shorten(name)
    assert text.isprintable()
    assert len(text.encode("utf-8")) < 700
    assert shorten("plain.name") == "plain.name"
