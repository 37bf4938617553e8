"""The survey: which tensors there are, what contradicts itself, and how little is read to know it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.safetensors import FIRST_READ
from tensorport_hub.errors import CheckpointError, SourceError, UseError, VerificationError
from tensorport_hub.ports import Event, Warned
from tensorport_hub.survey import Survey, read_header, survey
from tensorport_hub.texts import read_small
from tests.fakes import FlakySource, MemorySource, Read

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def weights(*names: str) -> bytes:
    """A safetensors file with a small tensor of each name."""
    return save({name: np.arange(i + 2, dtype=np.float32) for i, name in enumerate(names)})


def index(weight_map: Mapping[str, str]) -> bytes:
    return json.dumps({"metadata": {"total_size": 1}, "weight_map": dict(weight_map)}).encode()


def look(source: Any, events: list[Event] | None = None, **options: Any) -> Survey:
    """A survey with default options."""
    given: dict[str, Any] = {"subfolder": None, "allow_patterns": (), "include": (), "exclude": ()}
    report = (events if events is not None else []).append
    return survey(source, **{**given, **options}, report=report)


def sharded(placed: Mapping[str, str], **held: Sequence[str]) -> MemorySource:
    """Two files that hold `first` and `second`, and an index that says `placed`."""
    return MemorySource(
        {INDEX: index(placed), FIRST: weights(*held["first"]), SECOND: weights(*held["second"])}
    )


class TestTensors:
    """Which tensors are the model."""

    def test_order_is_by_file_then_offset(self) -> None:
        """Tensors come in the order of file names, and inside a file of their offsets."""
        first = save({"z": np.zeros(2, np.float32), "b": np.zeros(2, np.float16), "a": np.zeros(3, np.int64)})
        source = MemorySource(
            {
                INDEX: index({"z": FIRST, "b": FIRST, "a": FIRST, "c": SECOND}),
                FIRST: first,
                SECOND: weights("c"),
            }
        )
        seen = look(source)
        assert [file.path for file in seen.files] == [FIRST, SECOND]
        offsets = [(t.file, t.start) for t in seen.tensors]
        assert offsets == sorted(offsets)
        assert [t.name for t in seen.tensors] == ["a", "z", "b", "c"]

    def test_weight_files_carry_what_the_source_states(self) -> None:
        """Size and digest of each weight file."""
        data = weights("a", "b")
        (file,) = look(MemorySource({"model.safetensors": data})).files
        assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())

    def test_tensor_that_its_file_lacks(self) -> None:
        """An index that names a tensor which its file lacks is exit code 3, all of them named."""
        source = sharded({"a": FIRST, "b": SECOND, "c": SECOND, "d": FIRST}, first=["a"], second=["b"])
        with pytest.raises(
            CheckpointError, match=f"places `c` in `{SECOND}`.*(?s:.)*`d` in `{FIRST}`"
        ) as caught:
            look(source)
        assert caught.value.exit_code == 3

    def test_tensor_that_is_in_the_wrong_file(self) -> None:
        """A tensor that lies in another file than the index says is missing where it should be."""
        source = sharded({"a": FIRST, "b": FIRST}, first=["a"], second=["b"])
        with pytest.raises(CheckpointError, match=f"places `b` in `{FIRST}`"):
            look(source)

    def test_missing_file(self) -> None:
        """Files that the index names and the source lacks are exit code 3, all named; no header is read."""
        source = MemorySource(
            {INDEX: index({"a": "x.safetensors", "b": FIRST, "c": SECOND}), FIRST: weights("b")}
        )
        with pytest.raises(
            CheckpointError, match=r"(?s)2 problems.*`model-00002.*`x\.safetensors`"
        ) as caught:
            look(source)
        assert (caught.value.exit_code, caught.value.hint) == (3, "the source is incomplete")
        assert {read.path for read in source.reads} == {INDEX}

    def test_tensor_outside_the_index(self) -> None:
        """A tensor that the index does not name is skipped, warned of, and listed with the reason."""
        events: list[Event] = []
        seen = look(sharded({"a": FIRST, "b": SECOND}, first=["a", "extra"], second=["b"]), events)
        assert [t.name for t in seen.tensors] == ["a", "b"]
        assert seen.skipped == {"extra": f"the index does not place it in `{FIRST}`"}
        assert events == [Warned(f"tensor `extra` is left out: the index does not place it in `{FIRST}`")]

    @pytest.mark.parametrize("there", [FIRST, SECOND])
    def test_copy_outside_the_index(self, there: str) -> None:
        """Of a tensor that stands in two files the index chooses one; it is not called left out."""
        events: list[Event] = []
        seen = look(
            sharded({"a": there, "b": SECOND, "c": FIRST}, first=["a", "c"], second=["a", "b"]), events
        )
        assert [(t.name, t.file) for t in seen.tensors if t.name == "a"] == [("a", there)]
        assert seen.skipped == {}
        assert events == []

    def test_same_tensor_in_two_files(self) -> None:
        """Without an index a tensor that stands in two files is exit code 3 and names both."""
        source = MemorySource({FIRST: weights("a", "b"), SECOND: weights("a", "c")})
        with pytest.raises(CheckpointError, match=f"`a` stands in `{FIRST}` and `{SECOND}`") as caught:
            look(source)
        assert caught.value.exit_code == 3

    def test_files_outside_the_index_are_not_opened(self) -> None:
        """A weight file that the index does not name is neither read nor part of the model."""
        source = MemorySource(
            {INDEX: index({"a": FIRST}), FIRST: weights("a"), "other.safetensors": b"no header at all"}
        )
        assert [file.path for file in look(source).files] == [FIRST]
        assert "other.safetensors" not in {read.path for read in source.reads}

    def test_candidate_that_was_passed_over(self) -> None:
        """Another model beside the chosen one is warned of."""
        events: list[Event] = []
        look(
            MemorySource({"model.safetensors": weights("a"), "model.fp16.safetensors": weights("a")}), events
        )
        assert [event.message for event in events if isinstance(event, Warned)] == [
            "`model.fp16.safetensors` is left out: another file is the model; see `--allow-patterns`"
        ]

    def test_index_of_a_subfolder(self) -> None:
        """An index names files relative to its own folder."""
        files = {
            f"unet/{INDEX}": index({"a": FIRST}),
            f"unet/{FIRST}": weights("a"),
            "model.safetensors": b"",
        }
        seen = look(MemorySource(files), subfolder="unet")
        assert [t.file for t in seen.tensors] == [f"unet/{FIRST}"]

    def test_broken_header_of_any_file(self) -> None:
        """A malformed header is exit code 3 and names its file."""
        files = {INDEX: index({"a": FIRST, "b": SECOND}), FIRST: weights("a"), SECOND: b"\x10" + bytes(30)}
        with pytest.raises(CheckpointError, match=f"`{SECOND}`"):
            look(MemorySource(files))

    def test_source_failure_is_passed_on(self) -> None:
        """What the source raises comes out as it is."""
        source = FlakySource(MemorySource({"model.safetensors": weights("a")}), "drop", times=9)
        with pytest.raises(SourceError, match="broke off"):
            look(source)


NAMES = (
    "model.layers.0.q.weight",
    "model.layers.10.q.weight",
    "lm_head.weight",
    "e.gate_blocks",
    "e.gate_scales",
)


class TestFilters:
    """`--include` and `--exclude`."""

    @pytest.mark.parametrize(
        ("include", "exclude", "left"),
        [
            ((), (), NAMES),
            (("*.q.weight",), (), NAMES[:2]),
            (("model.layers.0.*", "lm_head*"), (), (NAMES[0], NAMES[2])),
            ((), ("*.weight",), NAMES[3:]),
            (("*.weight",), ("lm_head*",), NAMES[:2]),
            (("e.gate",), (), NAMES[3:]),
            (("e.gate_blocks",), (), NAMES[3:4]),
            ((), ("e.gate",), NAMES[:3]),
            (("LM_HEAD*", "lm_head.weigh?"), (), NAMES[2:3]),
        ],
    )
    def test_globs(self, include: tuple[str, ...], exclude: tuple[str, ...], left: tuple[str, ...]) -> None:
        """Globs match stored or logical names, case counts, excluding wins; the rest is listed as skipped."""
        source = MemorySource({"model.safetensors": weights(*NAMES)})
        events: list[Event] = []
        seen = look(source, events, include=include, exclude=exclude)
        assert {t.name for t in seen.tensors} == set(left)
        assert set(seen.skipped) == set(NAMES) - set(left)
        assert set(seen.skipped.values()) <= {"not included", "excluded"}
        assert events == []

    @pytest.mark.parametrize("options", [{"include": ("none*",)}, {"exclude": ("*",)}])
    def test_nothing_left(self, options: dict[str, Any]) -> None:
        """Filters that leave no tensor are exit code 2."""
        with pytest.raises(UseError, match="no tensor is left") as caught:
            look(MemorySource({"model.safetensors": weights("a")}), **options)
        assert caught.value.exit_code == 2


def with_header_of(nbytes: int) -> bytes:
    """A file whose first `nbytes` bytes are length and header."""
    entry = {"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}
    text = json.dumps({**entry, "__metadata__": {"pad": ""}}).encode()
    entry_text = json.dumps({**entry, "__metadata__": {"pad": "x" * (nbytes - 8 - len(text))}}).encode()
    return len(entry_text).to_bytes(8, "little") + entry_text + b"abc"


class TestReads:
    """How many ranges a header takes."""

    @pytest.mark.parametrize(
        ("header", "reads"),
        [
            (100, 1),
            (99_990, 1),
            (100_010, 1),
            (FIRST_READ - 1, 1),
            (FIRST_READ, 1),
            (FIRST_READ + 1, 2),
            (3 * FIRST_READ, 2),
        ],
    )
    def test_one_range_or_two(self, header: int, reads: int) -> None:
        """A header takes one range, two where it is longer than the first, and no byte comes twice."""
        data = with_header_of(header)
        source = MemorySource({"m.safetensors": data})
        found = read_header(source, source.files[0])
        assert (found.data_start, [t.name for t in found.tensors]) == (header, ["a"])
        assert len(source.reads) == reads
        assert source.counts("m.safetensors").max() == 1
        assert source.counts("m.safetensors")[:header].min() == 1

    @pytest.mark.parametrize("data", [b"", b"1234567", (10**6).to_bytes(8, "little"), b"\xff" * 8])
    def test_too_short_files(self, data: bytes) -> None:
        """A file that is no safetensors file is exit code 3 after one range at most."""
        source = MemorySource({"m.safetensors": data})
        with pytest.raises(CheckpointError, match=r"`m\.safetensors`"):
            read_header(source, source.files[0])
        assert len(source.reads) <= 1

    def test_no_weight_is_read(self) -> None:
        """Of large files only the first bytes are read, once."""
        big = save({"a": np.zeros(1 << 20, np.uint8)})
        source = MemorySource({"model.safetensors": big, "notes.txt": b"x"})
        look(source)
        assert source.reads == [Read("model.safetensors", 0, FIRST_READ)]


class TestBeside:
    """The small files beside the weights."""

    FILES: Mapping[str, bytes] = {
        "model.safetensors": weights("a"),
        "config.json": b'{"model_type": "llama", "hidden_size": 8}',
        "README.md": b"---\nlicense: mit\n---\n# Model\n",
        "tokenizer.json": b"{}",
        "LICENSE": b"MIT",
        "pytorch_model.bin": b"\x80",
        "modeling.py": b"import os",
        "original/params.json": b"{}",
    }

    def test_what_is_carried(self) -> None:
        """Configuration, tokenizer and licence travel; other weights, code and folders stay."""
        seen = look(MemorySource(self.FILES))
        assert [c.path for c in seen.carried] == ["LICENSE", "config.json", "tokenizer.json"]
        assert all(c.path == c.file.path for c in seen.carried)

    def test_names_in_the_mirror(self) -> None:
        """From a subfolder files move to the top; the licence is the top level's."""
        files = {f"sub/{path}": data for path, data in self.FILES.items()} | {"NOTICE": b"n"}
        del files["sub/LICENSE"]
        seen = look(MemorySource(files), subfolder="sub/")
        assert {c.path: c.file.path for c in seen.carried} == {
            "NOTICE": "NOTICE",
            "config.json": "sub/config.json",
            "tokenizer.json": "sub/tokenizer.json",
        }
        assert (seen.config["model_type"], seen.card) == ("llama", {"license": "mit"})

    def test_config_and_card(self) -> None:
        """`config.json` is parsed and kept as text; the card's front matter is read."""
        seen = look(MemorySource(self.FILES))
        assert seen.config == {"model_type": "llama", "hidden_size": 8}
        assert seen.config_text == self.FILES["config.json"].decode()
        assert seen.card == {"license": "mit"}

    def test_without_them(self) -> None:
        """A model without config and card has an empty one of each."""
        seen = look(MemorySource({"model.safetensors": weights("a")}))
        assert (seen.config, seen.config_text, seen.card, seen.carried) == ({}, None, {}, ())

    @pytest.mark.parametrize("text", [b"{", b"[]", b"\xff\xfe", b"", b"1", b"[" * 100_000])
    def test_malformed_config(self, text: bytes) -> None:
        """A `config.json` that is no JSON object is exit code 3."""
        files = {"model.safetensors": weights("a"), "config.json": text}
        with pytest.raises(CheckpointError, match=r"`config\.json`"):
            look(MemorySource(files))

    @pytest.mark.parametrize(
        "text", [b"no front matter", b"---\n: : :\n---\n", b"\xff\xfe", b"---\n- 1\n---\n"]
    )
    def test_malformed_card(self, text: bytes) -> None:
        """A card that can't be read counts as none: it is only for people."""
        seen = look(MemorySource({"model.safetensors": weights("a"), "README.md": text}))
        assert seen.card == {}


class TestReadSmall:
    """Small files are what the source states."""

    @pytest.mark.parametrize("stated", ["sha256", "git", "nothing"])
    @pytest.mark.parametrize("content", [b"", b"{}", bytes(100_000)])
    def test_reads_whole(self, stated: Any, content: bytes) -> None:
        """The whole content comes, in one range, none where it is empty."""
        source = MemorySource({"a.json": content}, stated=stated)
        assert read_small(source, source.files[0]) == content
        assert len(source.reads) == (1 if content else 0)

    @pytest.mark.parametrize("stated", ["sha256", "git"])
    @pytest.mark.parametrize("path", ["config.json", INDEX])
    def test_wrong_bytes(self, stated: Any, path: str) -> None:
        """Bytes that differ from the stated digest are exit code 6, with both digests."""
        files = {"model.safetensors": weights("a"), FIRST: weights("a")}
        source = MemorySource({**files, path: index({"a": FIRST})}, stated=stated)
        with pytest.raises(
            VerificationError, match=f"`{path}`.*expected digest [0-9a-f]{{40,64}}, got"
        ) as caught:
            look(FlakySource(source, "wrong", path=path, at=3))
        assert caught.value.exit_code == 6

    def test_absurd_size(self) -> None:
        """A small file of 300 MB is refused before anything is allocated or read."""
        source = MemorySource({})
        with pytest.raises(CheckpointError, match="absurdly large"):
            read_small(source, SourceFile("config.json", 300_000_000))
        assert source.reads == []


class TestRevision:
    """What stands for the source's state."""

    def test_commit_of_a_repository(self) -> None:
        """A repository's revision is its commit."""
        seen = look(MemorySource({"model.safetensors": weights("a")}, commit="d" * 40))
        assert (seen.repo, seen.revision) == ("org/model", "d" * 40)

    def test_digest_of_a_folder(self) -> None:
        """A folder's is a digest of 40 hex digits: the same for the same headers, another for others."""

        def revision(data: bytes) -> str:
            return look(MemorySource({"model.safetensors": data}, repo=None, commit="")).revision

        assert len(revision(weights("a"))) == 40
        assert int(revision(weights("a")), 16) >= 0
        assert revision(weights("a")) == revision(weights("a"))
        others = [weights("b"), weights("a", "b"), save({"a": np.zeros(2, np.int32)})]
        assert len({revision(data) for data in [weights("a"), *others]}) == 4
