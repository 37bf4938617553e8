"""Tensor names as file names: injective wherever they are written."""

from __future__ import annotations

import re
from urllib.parse import unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tensorport_hub.core.filenames import encode, stems

NAMES = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
        st.text(st.sampled_from("aAbB.%~-/0"), max_size=6),
        st.sampled_from(
            ["con", "CON.w", "a.part-00000-of-00002", "A.PART-00000-OF-00002", "%41", "A", "é", "É"]
        ),
        st.text(st.sampled_from("xX/"), min_size=190, max_size=260),
    ),
    unique=True,
    max_size=12,
)
RESERVED = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(10))}


@settings(max_examples=300, deadline=None)
@given(NAMES)
@example(["A", "a"])
@example(["a/b", "a%2Fb", "a%2fb"])
@example(["x" * 300, "x" * 301, "X" * 300])
@example(["é", "e\u0301", "É"])
def test_no_two_names_share_a_file(names):
    """Any set of names gives distinct, safe, short file names, also where case is ignored."""
    found = stems(names)
    assert list(found) == names
    assert len({stem.lower() for stem in found.values()}) == len(names)
    for stem in found.values():
        assert re.fullmatch(r"[A-Za-z0-9._%~-]+", stem)
        assert len(stem) <= 200
        assert not stem.startswith(".")
        assert stem.partition(".")[0].lower() not in RESERVED
        assert not re.search(r"\.part-\d+-of-\d+$", stem, re.IGNORECASE)


@settings(max_examples=200, deadline=None)
@given(NAMES, st.randoms(use_true_random=False))
def test_a_name_does_not_depend_on_order(names, random):
    """The same set in another order gives every name the same file."""
    shuffled = names[:]
    random.shuffle(shuffled)
    assert stems(shuffled) == stems(names)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_encoding_is_undone_by_percent_decoding(name):
    """An encoded name, percent-decoded, is the name again: so no two are equal."""
    assert unquote(encode(name), errors="strict") == name


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.gate_up_proj"),
        ("A-b_c.9", "A-b_c.9"),
        ("a/b", "a%2Fb"),
        ("a\\b", "a%5Cb"),
        ("a b", "a%20b"),
        ("50%", "50%25"),
        ("a~b", "a%7Eb"),
        ("ß", "%C3%9F"),
        ("\0", "%00"),
        (".", "%2E"),
        ("..", "%2E."),
        ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
        (".hidden", "%2Ehidden"),
        ("con", "%63on"),
        ("Aux.weight", "%41ux.weight"),
        ("com1.x", "%63om1.x"),
        ("console", "console"),
        ("model.con", "model.con"),
        ("x" * 200, "x" * 200),
    ],
)
def test_encoding_by_example(name, stem):
    """Plain names stay; what a file system could misread is encoded."""
    assert stems([name]) == {name: stem}


@pytest.mark.parametrize("name", ["x" * 201, "ß" * 34, "a.part-00000-of-00002", "a.PART-123456-of-999999"])
def test_names_too_long_or_like_a_part_get_a_hash(name):
    """A hash follows `~`, which no encoded name contains."""
    (stem,) = stems([name]).values()
    assert re.fullmatch(r"[^~]{1,180}~[0-9a-f]{16}", stem)
    assert encode(name).startswith(stem.partition("~")[0])


def test_an_empty_name_gets_a_hash():
    """A tensor without a name has a file with one, not a hidden file."""
    assert re.fullmatch("~[0-9a-f]{16}", stems([""])[""])


def test_clashing_names_all_get_a_hash():
    """Names that differ by case alone are all hashed; others keep their form."""
    found = stems(["layer.W", "layer.w", "layer.v"])
    assert found["layer.v"] == "layer.v"
    assert found["layer.W"].startswith("layer.W~")
    assert found["layer.w"].startswith("layer.w~")


def test_a_split_tensor_can_not_meet_a_look_alike():
    """A tensor named like a part of another never gets that part's file name."""
    found = stems(["w", "w.part-00000-of-00002"])
    assert found["w"] == "w"
    assert not found["w.part-00000-of-00002"].startswith("w.part-00000-of-00002.")
    assert "~" in found["w.part-00000-of-00002"]
