"""The .npy container against numpy's own writer and reader."""

from __future__ import annotations

import io

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core import npy
from tensorport_hub.core.tensor import DTYPES

SHAPES = [
    (),
    (0,),
    (1,),
    (7,),
    (0, 5),
    (5, 0),
    (3, 0, 2),
    (2, 3),
    (1, 1, 1, 1),
    (4, 3, 2),
    (1,) * 32,
    (10**9, 3),
    (2**62,),
    (201_088, 2880),
    tuple(range(1, 21)),
]
WHOLE_BYTES = [dtype for dtype in DTYPES.values() if not dtype.packed]


def parsed(data: bytes):
    """Shape, order, descriptor and data offset as numpy reads them."""
    file = io.BytesIO(data)
    assert np.lib.format.read_magic(file) == (1, 0)
    shape, fortran, kind = np.lib.format.read_array_header_1_0(file)
    return shape, fortran, kind, file.tell()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numpy_reads_every_header(dtype, shape):
    """Numpy reads the same shape, C order and descriptor; the data starts at a multiple of 64 bytes."""
    header = npy.header(dtype, shape)
    read_shape, fortran, kind, offset = parsed(header)
    assert read_shape == shape
    assert not fortran
    assert kind.itemsize == dtype.itemsize
    assert kind == np.dtype(dtype.npy)
    assert offset == len(header)
    assert offset % 64 == 0
    assert header.endswith(b"\n")
    size = dtype.itemsize
    for n in shape:
        size *= n
    assert npy.nbytes(dtype, shape) == offset + size


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(WHOLE_BYTES), st.lists(st.integers(0, 5), max_size=5), st.integers(0, 2**32 - 1))
def test_files_map_as_the_array_they_hold(tmp_path_factory, dtype, shape, seed):
    """Header plus raw bytes loads with np.load, mapped and not, as exactly these bytes."""
    count = int(np.prod(shape)) * dtype.itemsize
    raw = (
        np.random.default_rng(seed).integers(0, 2 if dtype.kind == "bool" else 256, count, np.uint8).tobytes()
    )
    path = tmp_path_factory.mktemp("npy") / "x.npy"
    path.write_bytes(npy.header(dtype, tuple(shape)) + raw)
    assert path.stat().st_size == npy.nbytes(dtype, tuple(shape))
    for mode in [None, "r"] if count else [None]:
        array = np.load(path, mmap_mode=mode, allow_pickle=False)
        assert array.shape == tuple(shape)
        assert array.tobytes() == raw
        assert array.flags.c_contiguous


@pytest.mark.parametrize("dtype", WHOLE_BYTES, ids=str)
def test_descriptors_are_those_that_numpy_writes(dtype):
    """The descriptor is the one that np.save writes for an array of the dtype; 8-bit floats are bytes."""
    kind = np.dtype(np.uint8) if dtype.name.startswith("F8") else dtype.numpy
    file = io.BytesIO()
    np.save(file, np.zeros((2, 3), kind))
    assert parsed(file.getvalue())[:3] == parsed(npy.header(dtype, (2, 3)))[:3]
    assert f"'descr': '{dtype.npy}'".encode() in file.getvalue()[:128]


def test_bfloat16_is_two_raw_bytes():
    """A bfloat16 array is `<V2`, as numpy writes an ml_dtypes array, and a view brings it back."""
    values = np.array([1.0, -2.5, np.inf], ml_dtypes.bfloat16)
    ours = npy.header(DTYPES["BF16"], (3,)) + values.tobytes()
    assert b"'<V2'" in ours
    file = io.BytesIO()
    np.save(file, values)
    for data in (ours, file.getvalue()):
        loaded = np.load(io.BytesIO(data))
        assert loaded.view(ml_dtypes.bfloat16).tolist() == values.tolist()


@pytest.mark.parametrize(
    ("dtype", "shape", "stored"),
    [
        ("F4", (2, 6), (2, 3)),
        ("F4", (8,), (4,)),
        ("F4", (3, 0), (3, 0)),
        ("F6_E2M3", (2, 4), (2, 3)),
        ("F6_E3M2", (5, 8), (5, 6)),
        ("F8_E4M3", (2, 5), (2, 5)),
        ("BF16", (), ()),
    ],
)
def test_packed_dtypes_are_stored_in_bytes(dtype, shape, stored):
    """The last axis of F4 and F6 counts bytes, three for four F6 elements; other shapes stay."""
    assert npy.stored_shape(DTYPES[dtype], shape) == stored


@pytest.mark.parametrize(
    ("dtype", "shape"), [("F4", (2, 3)), ("F4", ()), ("F6_E2M3", (4, 3)), ("F6_E3M2", (2,))]
)
def test_a_packed_last_axis_ends_on_a_byte(dtype, shape):
    """Where rows share a byte there is no such array."""
    with pytest.raises(ValueError, match="does not fill whole bytes"):
        npy.stored_shape(DTYPES[dtype], shape)
