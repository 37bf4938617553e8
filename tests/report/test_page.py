"""The page that `mirror --report` and `inspect --report` write, and what it is built from."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tensorport_hub import inspect, mirror
from tensorport_hub.devhub import DevHub
from tensorport_hub.errors import UseError
from tensorport_hub.meter import Meter, Pace
from tensorport_hub.ports import BytesRead, BytesWritten, Event
from tensorport_hub.report.cells import Tensor
from tensorport_hub.report.facts import Facts, ProvenFile, Shard
from tensorport_hub.report.page import build
from tests.e2e.conftest import gptoss, home, hub
from tests.e2e.test_cli import run
from tests.report.test_treemap import many

__all__ = ["gptoss", "home", "hub"]

EVIL = '"><script>window.pwned=1</script><img src=x onerror=alert(1)>'


class Reader(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def plain(page: str) -> Reader:
    """The page read, after what must hold for every page: one script, no handler, nothing asked for."""
    read = Reader(page)
    assert [tag for tag, _ in read.tags if tag in ("script", "iframe", "img", "object", "form")] == ["script"]
    for tag, attributes in read.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "src"], (tag, attributes)
        if tag == "a":
            assert re.match(r"https?://", attributes["href"] or "")
    assert "url(" not in page
    assert "@import" not in page
    return read


def test_mirror_writes_a_page(hub: DevHub, gptoss: Path, tmp_path: Path) -> None:
    """Totals, kinds, every source file and its state, shards, rounding, and links to the very commits."""
    commit = hub.add_repo("openai/tiny", gptoss)
    file = tmp_path / "report.html"
    result = mirror("openai/tiny", "me/tiny", precision="float16", on_overflow="inf", report=file)
    read = plain(file.read_text())
    links = [attributes["href"] for tag, attributes in read.tags if tag == "a"]
    assert links == [f"{hub.endpoint}/openai/tiny/tree/{commit}", result.commit_url]
    for said in (
        "openai/tiny → me/tiny",
        f"published, made from commit {commit}",
        "58,372",
        "mxfp4 → F16",
        "BF16 → F16",
        "1 of 1 source files were read whole",
        "model.safetensors",
        f"lists {len(result.manifest['files'])} files",
        "1 shard of at most 1.80 GB",
        "Throughput",
        "What rounding cost",
        "precision",
    ):
        assert said in read.text, said
    assert not list(tmp_path.glob(".report*"))
    again = mirror("openai/tiny", "me/tiny", precision="float16", on_overflow="inf", report=file)
    assert not again.changed
    assert "unchanged, made from" in plain(file.read_text()).text
    assert not [path for path in hub.files("me/tiny") if "report" in path]


def test_other_formats_are_drawn_alike(gptoss: Path, tmp_path: Path) -> None:
    """Tensors that share a file have their own sizes; every file or folder of a format is a shard."""
    words = {"precision": "float32", "format": ["numpy-direct", "msgpack"]}
    mirror(str(gptoss), str(tmp_path / "out"), report=tmp_path / "page.html", **words)
    read = plain((tmp_path / "page.html").read_text())
    assert "2 shards of at most" in read.text
    assert "147.46 kB" in read.text
    assert "86.03 kB" in read.text


def test_the_command_line_writes_it_too(gptoss: Path, tmp_path: Path) -> None:
    """`convert --report` and `inspect --report`, of a folder, without a Hub and without a link."""
    words = ["--input", str(gptoss), "--output", str(tmp_path / "out"), "-q"]
    assert run("convert", *words, "--report", str(tmp_path / "made.html")) == 0
    assert "a folder → " in plain((tmp_path / "made.html").read_text()).text
    assert run("inspect", str(gptoss), "--report", str(tmp_path / "seen.html")) == 0
    seen = plain((tmp_path / "seen.html").read_text())
    assert "from headers alone" in seen.text
    assert "Verification" not in seen.text
    assert not [tag for tag, _ in seen.tags if tag == "a"]
    assert "made.html" not in (tmp_path / "out" / "manifest.json").read_text()


def test_where_no_page_can_be_is_said_before_anything_runs(gptoss: Path, tmp_path: Path) -> None:
    """A folder, a pipe or a device, a missing folder, a place inside the mirror: exit 2 at once, and nothing
    is written."""
    out, pipe = tmp_path / "out", tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (tmp_path, pipe, tmp_path / "no" / "page.html", out / "page.html"):
        if place.parent == out:
            mirror(str(gptoss), str(out))
        events: list[Event] = []
        with pytest.raises(UseError, match="report"):
            mirror(str(gptoss), str(out), precision="float32", report=place, on_event=events.append)
        assert not [event for event in events if isinstance(event, BytesRead)]
    with pytest.raises(UseError, match="report"):
        inspect(str(gptoss), report=tmp_path)


def test_a_page_that_fails_at_the_end_is_a_warning(gptoss: Path, tmp_path: Path) -> None:
    """The mirror is published by then: the run succeeds, and says that the page is missing."""
    place = tmp_path / "pages" / "page.html"
    place.parent.mkdir()
    said: list[Event] = []

    def vanish(event: Event) -> None:
        said.append(event)
        if place.parent.exists():
            place.parent.rmdir()

    result = mirror(str(gptoss), str(tmp_path / "out"), report=place, on_event=vanish)
    assert result.changed
    assert "could not be written" in str(said[-1])


def test_hostile_names_are_text(tmp_path: Path) -> None:
    """Scripts, quotes, control and direction characters in names stay text wherever a name is shown."""
    names = [EVIL, f"model.{EVIL}.weight", "a\u202eb\u0007\ud800c", "]]><!--", "'\"&<>"]
    kinds = dict.fromkeys(names, "F32") | {EVIL: EVIL}
    tensors = [Tensor(name, kinds[name], (100, 1000), 400_000, 100_000, EVIL) for name in names]
    facts = Facts(
        title=EVIL,
        subtitle=EVIL,
        version=EVIL,
        links={"source": f"https://hub.example/{EVIL}", "evil": f"javascript:{EVIL}"},
        tiles={EVIL: EVIL},
        tensors=tensors,
        sizes_are=EVIL,
        sources=[ProvenFile(EVIL, 1, EVIL, "whole")],
        shards=[Shard(EVIL, 1, 1)],
        shard_size=2,
        losses={EVIL: (1, 2)},
        outputs=(1, 1),
        options={EVIL: EVIL},
        skipped={EVIL: EVIL},
        warnings=[EVIL],
    )
    page = build(facts)
    page.encode()
    read = plain(page)
    assert page.lower().count("<script") == 1
    assert "\u202e" not in page
    assert "\u0007" not in page
    assert EVIL in read.text
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({name: np.ones(4, np.float32) for name in (EVIL, "b.c")}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": EVIL}))
    mirror(str(folder), str(tmp_path / "out"), report=tmp_path / "page.html")
    assert EVIL in plain((tmp_path / "page.html").read_text()).text


def test_a_page_of_100_000_tensors_is_small(tmp_path: Path) -> None:
    """Cells, rows and labels are bounded: less than 2 MB, and equal facts give equal bytes."""
    tensors = many(100_000)
    facts = Facts(
        title="big",
        subtitle="",
        version="",
        links={},
        tiles={},
        tensors=tensors,
        sizes_are="bytes",
        shards=[Shard(f"shard_{i:03d}", 10**9 + i, 100) for i in range(400)],
        shard_size=1_800_000_000,
        losses={tensor.name: (0, 1) for tensor in tensors[:5000]},
        skipped={f"skipped {i}": "why" for i in range(5000)},
    )
    page = build(facts)
    assert len(page) < 2_000_000
    assert page == build(facts)
    assert "and 4,800 more, which are not listed here" in page


def test_the_pace_keeps_few_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of any length is some hundred moments, from its beginning to its end, never running back."""
    now = [0.0]
    monkeypatch.setattr("tensorport_hub.meter.monotonic", lambda: now[0])
    pace = Pace()
    for i in range(1, 200_000):
        now[0] += 0.05
        pace.add(i, 2 * i)
    kept = pace.moments()
    assert 100 < len(kept) < 600
    assert kept == sorted(kept)
    assert kept[0][0] < 200
    assert kept[-1] == (pytest.approx(9999.95), 199_999, 399_998)
    meter = Meter(None)
    assert meter.moments() == []
    meter(BytesRead("a", 3))
    meter(BytesWritten("b", 4))
    assert meter.moments()[-1][1:] == (3, 4)
