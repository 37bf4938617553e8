"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.size import format_size, parse_size
from tensorport_hub.errors import UseError


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        (0, 0),
        (7, 7),
        ("0", 0),
        ("1800000000", 1_800_000_000),
        ("12B", 12),
        ("1kB", 1000),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("1.8GB", 1_800_000_000),
        ("1.5GiB", 3 * 2**29),
        ("512MiB", 2**29),
        ("2tb", 2 * 10**12),
        ("2 TiB", 2 * 2**40),
        ("2T", 2 * 10**12),
        ("1G", 10**9),
        ("1.5Gi", 3 * 2**29),
        ("4k", 4000),
        ("1.1GiB", 1_181_116_006),
        (" 20GB ", 20 * 10**9),
        ("1.0000000001GB", 1_000_000_000),
        ("0.3GB", 300_000_000),
    ],
)
def test_sizes_are_exact(text, nbytes):
    """Decimal and binary units, any case, no binary fractions; what is below a byte is cut off."""
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "text",
    ["", " ", "GB", "-1", "-1GB", -1, "1e9", "1,8GB", "1.8.0GB", ".5GB", "1.GB", "1XB", "1 IB", "1GBB", "a"],
)
def test_what_is_no_size_is_refused(text):
    """Anything else is a use error that quotes it."""
    with pytest.raises(UseError) as caught:
        parse_size(text)
    assert str(text) in caught.value.message


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**15))
def test_a_number_of_bytes_reads_back(nbytes):
    """Plain bytes are themselves, as a number, with `B`, and as text where they may be meant."""
    assert parse_size(nbytes) == parse_size(f"{nbytes} B") == nbytes
    if nbytes == 0 or nbytes >= 1000:
        assert parse_size(str(nbytes)) == nbytes


@pytest.mark.parametrize("text", ["1.8", "2", "999", "1.5B", " 64 ", "2000000000.5"])
def test_a_forgotten_unit_is_asked_for(text):
    """Fractions of a byte, and a text of a few bytes without unit, are use errors that name the unit."""
    with pytest.raises(UseError) as caught:
        parse_size(text)
    number = text.strip().rstrip("B")
    assert caught.value.hint == f"did you mean `{number}GB`?"
    with pytest.raises(UseError) as caught:
        parse_size(text, forgotten="MB/s")
    assert caught.value.hint == f"did you mean `{number}MB/s`?"


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (1_800_000_000, "1.80 GB"), (2.5e13, "25.00 TB")],
)
def test_sizes_for_people(nbytes, text):
    """Decimal units, two digits."""
    assert format_size(nbytes) == text
    if nbytes >= 1000:
        assert parse_size(text.replace(" ", "")) == nbytes
