"""The live line of a terminal: a bar, percentage, time left, and as many numbers as there is room for.

What is worth least goes first: of the numbers the last one, down to the first; then the bar; percentage and
time left stay. A number's width never shrinks, so that nothing jumps. Of a run that moved bytes the line
stays on the screen; of headers that were read nothing does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress import Progress, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tensorport_hub.cli.counts import Counts
from tensorport_hub.ports import Event

_WIDEST_BAR, _NARROWEST_BAR = 28, 7
_APART = 2
"""Blanks between two columns."""
_FREE = 2
"""Columns at the end of the line for the terminal's own `^C`, which would break it."""


def fit(width: int, kept: Sequence[str], numbers: Sequence[str]) -> tuple[int, Sequence[str]]:
    """Columns for the bar (0: none), and the `numbers` that are shown beside it and what is always `kept`."""
    room = width - len((" " * _APART).join(kept))
    shown = list(numbers)
    while shown and room < sum(_APART + len(number) for number in shown) + (
        _APART + _NARROWEST_BAR if len(shown) > 1 else 0
    ):
        shown.pop()
    bar = room - sum(_APART + len(number) for number in shown) - _APART
    return (min(bar, _WIDEST_BAR) if bar >= _NARROWEST_BAR else 0), shown


class Bar:
    """A live bar on a terminal."""

    def __init__(self, remark: Callable[[Event], str | None], console: Console | None = None) -> None:
        self._console = Console(stderr=True) if console is None else console
        self._remark, self._counts, self._lock = remark, Counts(), threading.Lock()
        self._clock = Progress(console=self._console, auto_refresh=False)  # estimates, and draws nothing
        self._task = self._clock.add_task("", total=None)
        self._time = TimeRemainingColumn(elapsed_when_finished=True)
        self._widths: list[int] = []
        self._is_over = False
        self._live = Live(get_renderable=self._line, console=self._console, refresh_per_second=5)

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._counts.add(event)
            line = self._remark(event)
            if self._counts.total:
                self._clock.update(self._task, total=self._counts.total, completed=self._counts.done)
        if line is not None:
            self._console.print(line, markup=False, highlight=False)

    def _line(self) -> Table:
        """What is drawn now, as wide as the terminal is now."""
        with self._lock:
            done, total = self._counts.done, self._counts.total or None
            kept, numbers = self._words()
        width, shown = fit(self._console.width - _FREE, kept, numbers)
        bar = [ProgressBar(total, done, width=width, pulse=total is None)] if width else []
        row = Table.grid(padding=(0, _APART, 0, 0), pad_edge=False)
        row.add_row(*bar, *(Text(word, no_wrap=True) for word in (*kept, *shown)))
        return row

    def _words(self) -> tuple[list[str], list[str]]:
        """What stays, and the numbers beside it."""
        counts, task = self._counts, self._clock.tasks[0]
        if not counts.total:
            return ["reading headers"], []
        kept = [f"{task.percentage:3.0f}%", self._time.render(task).plain]
        if counts.parts_done == counts.parts and not self._is_over:
            return kept, ["publishing"]
        numbers = counts.numbers()
        self._widths = [max(pair) for pair in zip_longest(map(len, numbers), self._widths, fillvalue=0)]
        return kept, [number.rjust(width) for number, width in zip(numbers, self._widths, strict=False)]

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._live.transient = not self._counts.done
        self._live.stop()
