"""The page: facts in, one HTML document out, which asks nobody for anything.

Every text that comes from a checkpoint passes `text`; a policy in the page's head forbids what an oversight
might let in: no request, no script but ours.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from tensorport_hub import __version__
from tensorport_hub.core.size import format_size
from tensorport_hub.report import charts
from tensorport_hub.report.cells import Tensor, cells, natural, tree
from tensorport_hub.report.charts import text
from tensorport_hub.report.facts import Facts, ProvenFile
from tensorport_hub.report.style import CSS, SCRIPT
from tensorport_hub.report.treemap import Box

_WIDE, _NARROW = (1160, 640), (400, 620)
_SMALLEST = 130.0
"""Area of the smallest cell, in the units of the drawing: about eleven by twelve pixels."""

_KINDS = 8
_ROWS = 12
_MOST_ROWS = 200


def build(facts: Facts) -> str:
    """The whole document."""
    kinds = _kinds(facts.tensors)
    script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script}'; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )
    body = [
        _head(facts),
        _tiles(facts.tiles),
        _map(facts, kinds),
        _legend(facts, kinds),
        _pair(facts),
        _verification(facts),
        _losses(facts.losses or {}),
        _more(facts),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{text(facts.title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + f"\n<footer>Written by tensorport-hub {text(__version__)}; no part of the mirror.</footer>"
        + f"\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _kinds(tensors: Sequence[Tensor]) -> dict[str, int]:
    """Kind -> colour, the largest kinds first; those beyond the eighth share the last one."""
    sizes = Counter[str]()
    for tensor in tensors:
        sizes[tensor.kind] += tensor.nbytes
    ordered = sorted(sizes, key=lambda kind: (-sizes[kind], kind))
    return {kind: min(i, _KINDS) for i, kind in enumerate(ordered)}


def _head(facts: Facts) -> str:
    links = "".join(
        f'<a href="{text(url, 2000)}" rel="noopener noreferrer">{text(word)}</a>'
        for word, url in facts.links.items()
        if url.startswith(("http://", "https://"))
    )
    return (
        f'<header><h1>{text(facts.title)}</h1><p class="soft hash">{text(facts.subtitle)}</p>'
        f"<nav>{links}</nav></header>"
    )


def _tiles(tiles: Mapping[str, str]) -> str:
    shown = "".join(f"<div><dt>{text(word)}</dt><dd>{text(said)}</dd></div>" for word, said in tiles.items())
    return f'<dl class="tiles">{shown}</dl>'


def _map(facts: Facts, kinds: Mapping[str, int]) -> str:
    drawn, root = [], tree(facts.tensors)
    for name, (width, height) in (("wide", _WIDE), ("narrow", _NARROW)):
        found, frames = cells(root, Box(0, 0, width, height), smallest=_SMALLEST)
        drawn.append(f'<div class="map {name}">{charts.treemap(found, frames, width, height, kinds)}</div>')
    return (
        f"<section><h2>Tensors by size</h2>{''.join(drawn)}"
        '<div class="bar"><input id="find" type="search" placeholder="find a name" aria-label="Find a name"'
        " hidden>"
        f'<span id="at">Areas are {text(facts.sizes_are)}; modules lie together, small tensors are one cell.'
        "</span></div></section>"
    )


def _legend(facts: Facts, kinds: Mapping[str, int]) -> str:
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for tensor in facts.tensors:
        row = counts[tensor.kind]
        row[0], row[1], row[2] = row[0] + 1, row[1] + tensor.parameters, row[2] + tensor.nbytes
    total = sum(row[2] for row in counts.values()) or 1
    rows = [
        f'<tr><td><i class="k{slot}"></i>{text(kind)}</td><td class="n">{counts[kind][0]:,}</td>'
        f'<td class="n">{counts[kind][1]:,}</td><td class="n">{format_size(counts[kind][2])}</td>'
        f'<td class="n">{100 * counts[kind][2] / total:.1f} %</td></tr>'
        for kind, slot in kinds.items()
    ]
    table = _table(("stored as", ".tensors", ".parameters", ".bytes", ".share"), rows)
    return f'<div class="kinds">{table}</div>'


def _table(heads: Iterable[str], rows: Sequence[str]) -> str:
    """A table; a head with a dot is of numbers. What is beyond a page of rows is folded, or only counted."""
    said = "".join(f'<th class="n">{h[1:]}</th>' if h.startswith(".") else f"<th>{h}</th>" for h in heads)

    def table(some: Sequence[str]) -> str:
        body = "".join(some)
        return f'<div class="scroll"><table><thead><tr>{said}</tr></thead><tbody>{body}</tbody></table></div>'

    shown, folded, rest = rows[:_ROWS], rows[_ROWS:_MOST_ROWS], len(rows) - _MOST_ROWS
    more = f"<details><summary>{len(rows) - _ROWS:,} more</summary>{table(folded)}" if folded else ""
    if rest > 0:
        more += f'<p class="soft">and {rest:,} more, which are not listed here</p>'
    return table(shown) + more + ("</details>" if folded else "")


def _pair(facts: Facts) -> str:
    """Shards, and the rate; each where there is something to show."""
    both = []
    if facts.shards:
        full = [shard.nbytes / facts.shard_size for shard in facts.shards]
        many = f"{len(full):,} shards" if len(full) > 1 else "1 shard"
        both.append(
            f"<section><h2>Shards</h2>{charts.shards(facts.shards, facts.shard_size)}"
            f'<p class="soft">{many} of at most {format_size(facts.shard_size)}, on average'
            f" {100 * sum(full) / len(full):.0f} % full</p></section>"
        )
    if len(facts.moments) > 1:
        both.append(
            f"<section><h2>Throughput</h2>{charts.pace(facts.moments)}"
            '<p class="soft"><i class="read"></i>read &nbsp; <i class="written"></i>handed to the destination'
            "</p></section>"
        )
    return f'<section class="pair">{"".join(both)}</section>' if both else ""


_STATES = {
    "whole": "from its first byte to its last; this is its sha256",
    "ranges": "in part; the sha256 is what the source states",
    "no": "in part; the source states no sha256",
}


def _verification(facts: Facts) -> str:
    if not facts.sources:
        return ""
    whole = sum(file.verified == "whole" for file in facts.sources)
    files, nbytes = facts.outputs or (0, 0)
    rows = [_proven(file) for file in facts.sources]
    return (
        "<section><h2>Verification</h2>"
        f'<p><b class="{"whole" if whole == len(facts.sources) else "ranges"}">{whole:,} of'
        f" {len(facts.sources):,}</b> source files were read whole and hashed. The manifest lists"
        f" <b>{files:,}</b> files with {format_size(nbytes)}, each with its sha256.</p>"
        + _table(("source file", ".bytes", "state", "sha256"), rows)
        + "</section>"
    )


def _proven(file: ProvenFile) -> str:
    return (
        f'<tr><td class="name">{text(file.path)}</td><td class="n">{file.size:,}</td>'
        f'<td><b class="{file.verified}">{file.verified}</b>'
        f' <span class="soft">{_STATES[file.verified]}</span></td>'
        f'<td class="hash">{text((file.sha256 or "")[:16])}</td></tr>'
    )


def _losses(losses: Mapping[str, tuple[int, int]]) -> str:
    if not losses:
        return ""
    over = sum(lost for lost, _ in losses.values())
    under = sum(lost for _, lost in losses.values())
    rows = [
        f'<tr><td class="name">{text(name)}</td>'
        f'<td class="n">{lost[0]:,}</td><td class="n">{lost[1]:,}</td></tr>'
        for name, lost in sorted(losses.items(), key=lambda item: (-sum(item[1]), natural(item[0])))
    ]
    return (
        f"<section><h2>What rounding cost</h2><p>{over:,} values overflowed and {under:,} became 0, in"
        f" {len(losses):,} tensor{'s' * (len(losses) != 1)}; above, those that are drawn have a red edge.</p>"
        + _table(("tensor", ".overflowed", ".became 0"), rows)
        + "</section>"
    )


def _more(facts: Facts) -> str:
    """Options, warnings and what was left out."""
    parts = []
    if facts.options:
        rows = [f"<tr><td>{text(k)}</td><td>{text(v)}</td></tr>" for k, v in facts.options.items()]
        parts.append("<section><h2>Options</h2>" + _table(("option", "chosen"), rows) + "</section>")
    if facts.warnings:
        rows = [f"<tr><td>{text(warning, 1000)}</td></tr>" for warning in facts.warnings]
        parts.append("<section><h2>Warnings</h2>" + _table(("",), rows) + "</section>")
    if facts.skipped:
        rows = [
            f'<tr><td class="name">{text(name)}</td><td>{text(why)}</td></tr>'
            for name, why in facts.skipped.items()
        ]
        parts.append(
            "<section><h2>Left out of the mirror</h2>" + _table(("stored tensor", "why"), rows) + "</section>"
        )
    return "".join(parts)
