"""The duties of a `Journal`, as tests.

Subclass, and give

- a fixture `journal_of`: a function that opens the journal of the next run, of a plan with parts 0 to 9, in
  one and the same place; what came before was left as a killed run leaves it, after `save`;
- where the sink must hold what is entered, a method `made` that puts it there.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tensorport_hub.core.progress import Entry, MadeFile, Progress, ReadFile, gathered
from tensorport_hub.ports import Journal

JournalOf = Callable[[], Journal]


class JournalContract:
    """What every journal does."""

    @pytest.fixture
    def journal_of(self) -> JournalOf:
        raise NotImplementedError

    def made(self, index: int, *, version: int = 0, overflow: int = 0) -> MadeFile:
        """A file as a sink holds it; another content in each `version`."""
        lost = ((overflow, 2 * overflow),) if overflow else ()
        return MadeFile(index, 100 + index, f"{version:032x}{index:032x}", lost)

    def test_the_first_run_finds_nothing(self, journal_of: JournalOf) -> None:
        """No progress where no run was."""
        assert journal_of().progress == Progress()

    def test_entries_are_there_for_the_next_run(self, journal_of: JournalOf) -> None:
        """Parts with what they lost, and files with any name, over several runs."""
        entries: list[Entry] = [
            self.made(3),
            ReadFile('a \u00e4 "b".safetensors', "ab" * 32),
            self.made(1, overflow=5),
            self.made(0),
        ]
        for entry in entries:
            journal = journal_of()
            journal.add(entry)
            journal.save()
        assert journal_of().progress == gathered(entries)

    def test_the_later_entry_counts(self, journal_of: JournalOf) -> None:
        """A part that was made again."""
        first = journal_of()
        first.add(self.made(2))
        first.save()
        second = journal_of()
        second.add(self.made(2, version=1))
        second.save()
        assert journal_of().progress.made == {2: self.made(2, version=1)}

    def test_progress_is_of_runs_before(self, journal_of: JournalOf) -> None:
        """What this run enters is not in its own `progress`."""
        journal = journal_of()
        journal.add(self.made(1))
        assert journal.progress == Progress()

    def test_entries_from_several_threads(self, journal_of: JournalOf) -> None:
        """None is lost or torn."""
        journal = journal_of()
        with ThreadPoolExecutor(5) as pool:
            list(pool.map(journal.add, [self.made(index) for index in range(10)]))
        journal.save()
        assert journal_of().progress.made == {index: self.made(index) for index in range(10)}

    def test_save_may_be_called_at_any_time(self, journal_of: JournalOf) -> None:
        """Twice, or with nothing to save."""
        journal = journal_of()
        journal.save()
        journal.add(self.made(1))
        journal.save()
        journal.save()
        assert journal_of().progress.made == {1: self.made(1)}
