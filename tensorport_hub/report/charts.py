"""The drawings: cells, shards and rates as SVG text. What is shown is escaped here, and nowhere later."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from math import floor, log10

from tensorport_hub.core.size import format_size
from tensorport_hub.core.tensor import shorten
from tensorport_hub.report.cells import Cell, Frame
from tensorport_hub.report.facts import Moment, Shard

_LETTER, _LINE = 6.1, 12.0
"""Width and height of a letter of a label, in the units of the drawing; for 10 px of a narrow sans-serif."""

_LABELS = 420
"""So many cells have a label: beyond, there is no room to read them."""

_LONGEST = 300
"""A longer name is no label."""

_STEPS = 120
"""Intervals of time that are drawn."""


def text(value: object, most: int = 200) -> str:
    """Anybody's text as HTML: printable, bounded and escaped."""
    return escape(shorten(value, most))


def treemap(
    cells: Sequence[Cell], frames: Sequence[Frame], width: int, height: int, slots: Mapping[str, int]
) -> str:
    """The cells; each one's `<title>` says what it is, labels stand where they fit."""
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Tensors by size">']
    for cell in cells:
        box = cell.box
        lost = " lost" if cell.tensor is not None and cell.tensor.note else ""
        parts.append(
            f'<rect class="k{slots[cell.kind]}{lost}" x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}"'
            f' height="{box.height:.1f}"><title>{_told(cell)}</title></rect>'
        )
    parts.append('<g class="frames">')
    for frame in sorted(frames, key=lambda frame: -frame.depth):
        box, wide = frame.box, max(4.5 - frame.depth, 1.5) if frame.depth else 0
        parts.append(
            f'<path stroke-width="{wide:g}" d="M{box.x:.1f} {box.y:.1f}h{box.width:.1f}v{box.height:.1f}'
            f'h{-box.width:.1f}z"/>'
        )
    parts.append('</g><g class="labels">')
    for cell in sorted(cells, key=lambda cell: -cell.box.area)[:_LABELS]:
        parts += _label(cell)
    return "".join([*parts, "</g></svg>"])


def _told(cell: Cell) -> str:
    size = format_size(cell.nbytes)
    tensor = cell.tensor
    if tensor is None:
        where = f" in {cell.name}" if cell.name else ""
        return text(f"{cell.count:,} tensors{where}\n{size}, most of it {cell.kind}")
    shape = " × ".join(f"{n:,}" for n in tensor.shape) or "a number"
    note = f"\n{tensor.note}" if tensor.note else ""
    return text(tensor.name) + escape(f"\n{tensor.kind}, {shape}\n{size}{note}")


def _label(cell: Cell) -> list[str]:
    """The end of the name where it fits, upright or turned; nothing where not even the last word does."""
    box = cell.box
    if len(cell.name) > _LONGEST:
        return []
    words = shorten(cell.name, _LONGEST).split(".")
    count = [] if cell.tensor is not None else [f"{cell.count:,} tensors"]
    lines, turn = _lines(words, count, box.width, box.height), ""
    turned = _lines(words, count, box.height, box.width) if box.height > box.width else []
    x, y = box.x + 5, box.y + 13
    if sum(map(len, turned)) > 2 * sum(map(len, lines)):
        lines = turned
        turn = f' transform="rotate(90 {box.x:.1f} {box.y:.1f})"'
        x, y = box.x + 5, box.y - 4 - _LINE * (len(lines) - 1)
    spans = "".join(
        f'<tspan x="{x:.1f}" dy="{_LINE if i else 0:g}">{escape(line)}</tspan>'
        for i, line in enumerate(lines)
    )
    return [f'<text x="{x:.1f}" y="{y:.1f}"{turn}>{spans}</text>'] if lines else []


def _lines(words: Sequence[str], count: Sequence[str], width: float, height: float) -> list[str]:
    """The last words in as many lines as fit, joined by dots where a line has room; then `count`."""
    letters, most = int((width - 8) / _LETTER), int((height - 4) / _LINE) - len(count)
    if any(len(line) > letters for line in count):
        return []
    lines: list[str] = []
    for word in reversed(words):
        if lines and len(word) + 1 + len(lines[0]) <= letters:
            lines[0] = f"{word}.{lines[0]}"
        elif len(word) <= letters and len(lines) < most:
            lines.insert(0, word)
        else:
            break
    return [*lines, *count] if lines or (words == [""] and most >= 0) else []


def shards(found: Sequence[Shard], shard_size: int) -> str:
    """A column a shard: how much of what it may hold it holds."""
    width, height, left, foot = 560.0, 200.0, 74.0, 22.0
    most = max(shard_size, max(shard.nbytes for shard in found))
    step = min((width - left) / len(found), 64.0)
    gap = min(step * 0.2, 6.0)

    def at(nbytes: float) -> float:
        return 8 + (height - foot - 8) * (1 - nbytes / most)

    parts = [f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="Fill of each shard">']
    parts += _axis(0, most, at, left, width, _short)
    for i, shard in enumerate(found):
        x = left + i * step + gap / 2
        told = (
            f"{shard.name}: {format_size(shard.nbytes)} in {shard.files:,} files,"
            f" {100 * shard.nbytes / shard_size:.0f} %"
        )
        parts.append(
            f'<rect class="room" x="{x:.2f}" y="{at(shard_size):.1f}" width="{step - gap:.2f}"'
            f' height="{at(0) - at(shard_size):.1f}"/>'
            f'<rect class="fill" x="{x:.2f}" y="{at(shard.nbytes):.1f}" width="{step - gap:.2f}"'
            f' height="{max(at(0) - at(shard.nbytes), 1):.1f}"><title>{text(told)}</title></rect>'
        )
    for i in sorted({0, len(found) // 2, len(found) - 1}):
        x = min(left + (i + 0.5) * step, width - 14)
        parts.append(f'<text class="tick mid" x="{x:.1f}" y="{height - 6:g}">{i:03d}</text>')
    return "".join([*parts, "</svg>"])


def pace(moments: Sequence[Moment]) -> str:
    """Bytes a second, read and written, over the run."""
    width, height, left, foot = 560.0, 200.0, 82.0, 22.0
    span = moments[-1][0] or 1.0
    read, written = _rates(moments, 1), _rates(moments, 2)
    most = _round(max([rate for _, _, rate in read + written] or [1.0]) or 1.0)

    def x(seconds: float) -> float:
        return left + (width - left - 8) * seconds / span

    def y(rate: float) -> float:
        return 8 + (height - foot - 8) * (1 - rate / most)

    parts = [f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="Bytes a second">']
    parts += _axis(0, most, y, left, width, lambda rate: f"{_short(rate)}/s")
    for name, rates in (("read", read), ("written", written)):
        line = " ".join(f"{x(t):.1f},{y(rate):.1f}" for begin, end, rate in rates for t in (begin, end))
        parts.append(f'<polyline class="{name}" points="{line}"/>')
    for share in (0.0, 0.5, 1.0):
        side = ("", " mid", " end")[int(share * 2)]
        parts.append(
            f'<text class="tick{side}" x="{x(share * span):.1f}" y="{height - 6:g}">'
            f"{_clock(share * span)}</text>"
        )
    return "".join([*parts, "</svg>"])


def _rates(moments: Sequence[Moment], which: int) -> list[tuple[float, float, float]]:
    """(from, to, bytes a second), in steps that can be told apart."""
    found = []
    begin, before, least = 0.0, 0.0, moments[-1][0] / _STEPS
    for moment in moments:
        if moment[0] > begin and (moment[0] - begin >= least or moment is moments[-1]):
            found.append((begin, moment[0], (moment[which] - before) / (moment[0] - begin)))
            begin, before = moment[0], moment[which]
    return found


def _short(nbytes: float) -> str:
    """A size without what says nothing: `900 MB`, `1.8 GB`."""
    number, unit = format_size(nbytes).split(" ")
    return f"{float(number):g} {unit}"


def _round(value: float) -> float:
    """The next number up that is round in two halves as well."""
    power = 10.0 ** floor(log10(value))
    return next(step * power for step in (1, 2, 3, 4, 6, 8, 10) if step * power >= value * 0.999)


def _clock(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _axis(
    least: float,
    most: float,
    at: Callable[[float], float],
    left: float,
    width: float,
    said: Callable[[float], str],
) -> list[str]:
    """Three lines across, and what they stand for."""
    found = []
    for share in (0.0, 0.5, 1.0):
        value = least + (most - least) * share
        found.append(
            f'<line class="grid" x1="{left:g}" x2="{width:g}" y1="{at(value):.1f}" y2="{at(value):.1f}"/>'
            f'<text class="tick end" x="{left - 6:g}" y="{at(value) + 3.5:.1f}">{escape(said(value))}</text>'
        )
    return found
