"""The journal's lines, and what is left to do of a plan once some of it is done."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorport_hub.core import journal
from tensorport_hub.core.plan import Plan
from tensorport_hub.core.progress import Entry, MadeFile, Progress, ReadFile, gathered, remaining
from tensorport_hub.errors import DestinationError
from tests.engine.models import experts, plain, plan_of, stored, write_in_order
from tests.fakes import MemorySource

SHA = "0123456789abcdef" * 4
KEY = "f" * 64

SHAS = st.text("0123456789abcdef", min_size=64, max_size=64)
COUNTS = st.integers(0, 1 << 40)
LOST = st.lists(st.tuples(COUNTS, COUNTS), max_size=3).map(tuple)
ENTRIES = st.lists(
    st.one_of(
        st.builds(MadeFile, st.integers(0, 99), COUNTS, SHAS, LOST),
        st.builds(ReadFile, st.text(st.characters(exclude_categories=("Cs",))), SHAS),
    )
)


class TestLines:
    """Entries as text and back."""

    @given(ENTRIES)
    def test_every_entry_comes_back(self, entries: list[Entry]) -> None:
        """What was written is read, whatever a file's name holds."""
        data = journal.heading(KEY) + journal.lines(entries)
        assert journal.key_of(data, name="j") == KEY
        assert journal.entries(data, outputs=range(100), name="j") == entries

    @given(ENTRIES, st.data())
    def test_a_torn_end_is_dropped(self, entries: list[Entry], data: st.DataObject) -> None:
        """Cut anywhere, a journal gives its complete lines and nothing else."""
        text = journal.heading(KEY) + journal.lines(entries)
        cut = text[: data.draw(st.integers(0, len(text)))]
        complete = cut.count(b"\n")
        assert journal.key_of(cut, name="j") == (KEY if complete else None)
        assert journal.entries(cut, outputs=range(100), name="j") == entries[: max(complete - 1, 0)]

    @given(st.binary(max_size=300))
    def test_any_bytes_are_entries_or_an_error(self, garbage: bytes) -> None:
        """Whatever stands in it: entries, or a `DestinationError` that names the journal."""
        for data in (garbage, journal.heading(KEY) + garbage):
            try:
                if journal.key_of(data, name="the journal") is not None:
                    journal.entries(data, outputs=range(3), name="the journal")
            except DestinationError as error:
                assert "the journal" in error.message  # noqa: PT017 (any other error must fail)

    @pytest.mark.parametrize(
        "line",
        [
            b"{}",
            b"[1]",
            b"nonsense",
            b'{"made": 3, "size": 1, "sha256": "%s"}' % SHA.encode(),
            b'{"made": 0, "size": 1, "sha256": "abc"}',
            b'{"made": 0, "size": 1, "sha256": "%s", "lost": [1]}' % SHA.encode(),
            b'{"made": 0, "size": 1, "sha256": "%s", "lost": [[-1, 0]]}' % SHA.encode(),
            b'{"file": 7, "sha256": "%s"}' % SHA.encode(),
            b"",
            b"[" * 100_000,
        ],
    )
    def test_a_damaged_line_is_told(self, line: bytes) -> None:
        """A complete line that makes no sense, or a part that the plan lacks: error 5, with the line."""
        good = journal.lines([MadeFile(0, 1, SHA)])
        with pytest.raises(DestinationError, match="`j` is damaged in line 3") as caught:
            journal.entries(journal.heading(KEY) + good + line + b"\n" + good, outputs=range(3), name="j")
        assert "--restart" in caught.value.hint

    @pytest.mark.parametrize(
        "first", [b"{}\n", b'{"journal": "tensorport.journal/2", "plan": "x"}\n', b"x\n"]
    )
    def test_other_files_are_no_journal(self, first: bytes) -> None:
        """A first line of another format or version is refused."""
        with pytest.raises(DestinationError, match="none that this tool knows"):
            journal.key_of(first, name="j")

    def test_the_later_of_two_entries_counts(self) -> None:
        """A part that was made twice, a file that was read twice."""
        other = SHA[::-1]
        found = gathered(
            [MadeFile(1, 5, SHA), ReadFile("a", SHA), MadeFile(1, 5, other), ReadFile("a", other)]
        )
        assert found == Progress({1: MadeFile(1, 5, other)}, {"a": other})


def plan_with(verify: str = "auto") -> Plan:
    """Three files: two plain tensors; codes; a plain tensor and the scales of those codes."""
    pair = experts("pair", (8, 4, 4))
    codes, scales = stored([pair])
    first = [plain("a", "F32", (10,)), plain("b", "F16", (3, 4))]
    files = {
        "m-0.safetensors": write_in_order(first),
        "m-1.safetensors": write_in_order([codes]),
        "m-2.safetensors": write_in_order([plain("c", "F32", (4,)), scales]),
    }
    return plan_of(MemorySource(files), verify_source=verify)


def done(plan: Plan, *names: str) -> dict[int, MadeFile]:
    """Entries of the parts of these tensors."""
    return {
        file.index: MadeFile(file.index, file.size, SHA)
        for file in plan.outputs
        if plan.recipes[file.pieces[0].recipe].name in names
    }


class TestRemaining:
    """Files to read and parts to make, from what is done."""

    def left(self, verify: str, names: str, files: str) -> tuple[str, str, str]:
        """Numbers of files to walk, names to make, names to prove."""
        plan = plan_with(verify)
        read = {f"m-{number}.safetensors": SHA for number in files}
        found = remaining(plan, Progress(done(plan, *names.split()), read))
        name = {file.index: plan.recipes[file.pieces[0].recipe].name for file in plan.outputs}
        walks = "".join(file.path[2] for file in found.files)
        return (
            walks,
            " ".join(name[i] for i in sorted(found.make)),
            " ".join(name[i] for i in sorted(found.prove)),
        )

    @pytest.mark.parametrize(
        ("verify", "names", "files", "expected"),
        [
            ("auto", "", "", ("012", "a b pair c", "")),
            ("auto", "a b", "0", ("12", "pair c", "")),
            ("auto", "a", "0", ("012", "b pair c", "a")),
            ("auto", "a b", "", ("012", "pair c", "a b")),
            ("auto", "a b c", "02", ("12", "pair", "c")),
            ("auto", "a b pair c", "012", ("", "", "")),
            ("auto", "a b pair c", "01", ("12", "", "pair c")),
            ("auto", "pair c", "12", ("0", "a b", "")),
            ("no", "", "", ("012", "a b pair c", "")),
            ("no", "a", "", ("012", "b pair c", "")),
            ("no", "a b", "", ("12", "pair c", "")),
            ("no", "a b pair c", "", ("", "", "")),
        ],
    )
    def test_what_is_left(self, verify: str, names: str, files: str, expected: tuple[str, str, str]) -> None:
        """A proven file is left alone once nothing needs it; an unproven one is read whole, and what was made
        of it is proven too; without verification only missing parts count."""
        assert self.left(verify, names, files) == expected
