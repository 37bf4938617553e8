"""Element types and stored tensors."""

from __future__ import annotations

import json
from importlib import resources

import numpy as np
import pytest

from tensorport_hub.core.tensor import DTYPES, PRECISIONS, TensorSpec


@pytest.mark.parametrize("name", DTYPES)
def test_a_dtype_is_known_by_its_own_name(name):
    """The table's key is the dtype's name and its text; items fill whole bytes of the numpy type."""
    dtype = DTYPES[name]
    assert (dtype.name, str(dtype)) == (name, name)
    assert dtype.itemsize == dtype.numpy.itemsize == np.dtype(dtype.npy).itemsize
    assert dtype.packed == (name in ("F4", "F6_E2M3", "F6_E3M2"))
    assert dtype.packed or dtype.nbits == 8 * dtype.itemsize


def test_the_manifest_schema_knows_the_same_dtypes():
    """The schema's list of dtypes is this table."""
    schema = json.loads(resources.files("tensorport_hub").joinpath("manifest.schema.json").read_text())
    assert schema["$defs"]["dtype"]["enum"] == [*DTYPES]


def test_precisions_are_the_words_of_the_option():
    """Floats can be rounded to three precisions."""
    assert {word: dtype.name for word, dtype in PRECISIONS.items()} == {
        "bfloat16": "BF16",
        "float16": "F16",
        "float32": "F32",
    }


def test_a_spec_says_what_it_is():
    """Its text names tensor, dtype, shape and file; sizes are exact integers beyond 64 bits of product."""
    spec = TensorSpec("a.b", DTYPES["BF16"], (2**40, 2**22), "m.safetensors", 10, 10 + 2**63)
    assert str(spec) == "`a.b` (BF16 [1099511627776, 4194304] in `m.safetensors`)"
    assert spec.numel == 2**62
    assert spec.nbytes == 2**63
    assert TensorSpec("s", DTYPES["F32"], (), "m.safetensors", 0, 4).numel == 1
