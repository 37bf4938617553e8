"""The live line: what a terminal of some width shows of a run, and what stays there."""

from __future__ import annotations

import io
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tensorport_hub.cli.bar import Bar, fit
from tensorport_hub.cli.progress import remark
from tensorport_hub.ports import BytesRead, BytesWritten, Event, PartDone, Planned, Receipt

KEPT = [" 37%", "0:00:12"]
HALF = (Planned(32, 262_150_000, 262_150_000), BytesRead("a", 124_260_000), BytesWritten("b", 99_090_000))
WORDS = r" *\d+%  [\d:-]+"
NUMBERS = [
    r" +99\.09 MB of 262\.15 MB",
    r" +[\d.]+ .B/s",
    r" +0/32 parts",
    r" +read 124\.26 MB",
    r" +memory .*B",
]


def drawn(width: int, *events: Event) -> str:
    """All that is sent to a terminal of that width."""
    console = Console(file=io.StringIO(), width=width, height=24, force_terminal=True, color_system=None)
    with Bar(remark, console) as bar:
        for event in events:
            bar(event)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def left(sent: str) -> str:
    """What stands on the last line that has anything, after the last erasure."""
    rest = re.sub(r"\x1b\[[?\d]*[a-zA-Z]", "", sent.rpartition("\x1b[2K")[2])
    return rest.strip("\r\n")


@pytest.mark.parametrize(
    ("width", "numbers"), [(15, 0), (24, 0), (38, 1), (60, 2), (80, 3), (100, 4), (120, 5), (200, 5)]
)
def test_a_line_has_what_fits(width: int, numbers: int) -> None:
    """Percentage and time left at any width, a bar where it has room, numbers by their worth."""
    line = left(drawn(width, *HALF))
    bar = "" if width in (15, 38) else "[━╸╺ ]{7,28} "
    assert re.fullmatch(bar + WORDS + "".join(NUMBERS[:numbers]) + " *", line), line
    assert len(line.rstrip()) <= width - len("^C")


@given(st.integers(0, 300), st.lists(st.text("x", min_size=1, max_size=40), max_size=6))
def test_what_is_shown_fits(width: int, numbers: list[str]) -> None:
    """What is chosen is no wider than the terminal; the first numbers are there, never a later one alone."""
    bar, shown = fit(width, KEPT, numbers)
    assert list(shown) == numbers[: len(shown)]
    needed = len("  ".join([*KEPT, *shown])) + (bar + 2 if bar else 0)
    assert needed <= max(width, len("  ".join(KEPT)))
    assert bar == 0 or 7 <= bar <= 28


def test_headers_leave_nothing_behind() -> None:
    """Where no bytes of weights moved, the line is erased: what stays is worth staying."""
    assert "reading headers" in drawn(80)
    assert left(drawn(80)) == ""
    assert left(drawn(80, Planned(1, 10, 10))) == ""


def test_numbers_keep_their_columns() -> None:
    """A number that became shorter takes the room that it had: the line does not jump."""
    file = io.StringIO()
    with Bar(remark, Console(file=file, width=120, force_terminal=True, color_system=None)) as bar:
        bar(Planned(1, 100_000, 100_000))
        bar(BytesWritten("b", 99_000))
        while "99.00 kB of" not in file.getvalue():
            time.sleep(0.01)
        bar(Planned(1, 100_000, 100_000))
        bar(BytesWritten("b", 9_000))
    assert "   9.00 kB of 100.00 kB" in left(file.getvalue())


def test_a_complete_run_stays_with_its_numbers() -> None:
    """The last word is not `publishing`, it is what happened."""
    done = PartDone(Receipt("b", 10, "0" * 64))
    line = left(drawn(120, Planned(1, 10, 10), BytesRead("a", 10), BytesWritten("b", 10), done))
    assert "100%" in line
    assert "10 B of 10 B" in line
    assert "1/1 parts" in line
