"""The page in a real browser: quiet, alone, legible in every light and width, and whole without script."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tensorport_hub import mirror
from tensorport_hub.demo import tiny_gpt_oss
from tensorport_hub.report.cells import Tensor
from tensorport_hub.report.page import build
from tests.report.browser import Browser
from tests.report.test_page import EVIL
from tests.report.test_treemap import many

PAPER = {False: (255, 255, 255), True: (0x12, 0x15, 0x1B)}
FIRST = {False: (0xB6, 0xC8, 0xF6), True: (0x32, 0x4F, 0x97)}


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a mirror that was really made."""
    folder = tmp_path_factory.mktemp("report")
    model = folder / "model"
    model.mkdir()
    for name, data in tiny_gpt_oss().items():
        (model / name).write_bytes(data)
    mirror(str(model), str(folder / "out"), report=folder / "page.html")
    return folder / "page.html"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_it_is_shown(browser: Browser, page: Path, tmp_path: Path, dark: bool, width: int) -> None:
    """Nothing on the console, no request, no sideways scrolling; paper and cells have the light's colours."""
    browser.open(page.as_uri(), width=width, dark=dark)
    assert browser.said() == []
    assert [url for url in browser.requested() if not url.startswith("data:")] == [page.as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    shot = browser.photograph(tmp_path / "shot.png")
    assert abs(shot.shape[1] * 4 - width) <= 4
    assert shot.shape[0] * 4 > 900
    assert np.mean(np.all(shot == PAPER[dark], axis=2)) > 0.2
    assert np.mean(np.all(shot == FIRST[dark], axis=2)) > 0.05
    assert len(np.unique(shot.reshape(-1, 3), axis=0)) > 50


def test_labels_stay_in_their_cells(browser: Browser, page: Path) -> None:
    """Every label lies in one cell, and the map shows as many cells as tensors that are worth one."""
    browser.open(page.as_uri(), width=1280)
    outside = """(() => {
      const cells = [...document.querySelectorAll('.wide rect')].map(cell => cell.getBoundingClientRect());
      return [...document.querySelectorAll('.wide .labels text')].filter(text => {
        const at = text.getBoundingClientRect();
        return !cells.some(cell => at.left >= cell.left - 1 && at.right <= cell.right + 1
                                && at.top >= cell.top - 1 && at.bottom <= cell.bottom + 1);
      }).map(text => text.textContent);
    })()"""
    assert browser.evaluate(outside) == []
    assert browser.evaluate("document.querySelectorAll('.wide .labels text').length") > 10
    assert browser.evaluate("document.querySelectorAll('.wide rect').length") > 20


def test_the_script_names_and_finds(browser: Browser, page: Path) -> None:
    """The cell under the pointer is named below the map; a search dims what it does not find."""
    browser.open(page.as_uri(), width=1280)
    where = browser.evaluate(
        "(({x, y, width, height}) => [x + width / 2, y + height / 2])"
        "(document.querySelector('.wide rect').getBoundingClientRect())"
    )
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=where[0], y=where[1])
    named = browser.evaluate("document.querySelector('.wide rect title').textContent")
    assert browser.evaluate("document.getElementById('at').textContent") == "; ".join(named.split("\n"))
    browser.evaluate(
        "(() => { const find = document.getElementById('find'); find.value = 'LM_HEAD';"
        " find.dispatchEvent(new Event('input')); })()"
    )
    bright = "[...document.querySelectorAll('.wide rect:not(.dim) title')].map(t => t.textContent)"
    assert [text.split("\n")[0] for text in browser.evaluate(bright)] == ["lm_head.weight"]
    assert browser.said() == []


def test_it_is_whole_without_script(browser: Browser, page: Path, tmp_path: Path) -> None:
    """Everything is shown and the tooltips are there; only the search is not."""
    browser.open(page.as_uri(), width=1280, script=False)
    assert browser.said() == []
    shot = browser.photograph(tmp_path / "shot.png")
    assert np.mean(np.all(shot == FIRST[False], axis=2)) > 0.05
    browser.open(page.as_uri(), width=1280)
    assert browser.evaluate("document.getElementById('find').offsetWidth") > 0


def test_hostile_names_run_nothing(browser: Browser, tmp_path: Path) -> None:
    """A tensor named as a script is shown as such; and were it let in, the page's policy would stop it."""
    from dataclasses import replace

    from tensorport_hub.report.facts import Facts

    facts = Facts(EVIL, EVIL, "", {}, {EVIL: EVIL}, [replace(many(1)[0], name=EVIL, kind=EVIL)], EVIL)
    place = tmp_path / "evil.html"
    place.write_text(build(facts))
    browser.open(place.as_uri(), width=1280)
    assert browser.evaluate("window.pwned") is None
    assert browser.said() == []
    assert browser.evaluate("document.querySelector('.wide rect title').textContent").startswith(EVIL)
    place.write_text(build(facts).replace("<header>", "<header><script>window.pwned = 1</script>"))
    browser.open(place.as_uri(), width=1280)
    assert browser.evaluate("window.pwned") is None
    assert any("Content Security Policy" in str(said) for said in browser.said())


def test_100_000_tensors_are_legible(browser: Browser, tmp_path: Path) -> None:
    """A large checkpoint: a few thousand cells at most, labels among them, nothing on the console."""
    from tensorport_hub.report.facts import Facts

    place = tmp_path / "big.html"
    place.write_text(build(Facts("big", "", "", {}, {}, many(100_000), "bytes")))
    browser.open(place.as_uri(), width=1280, dark=True)
    assert browser.said() == []
    assert 50 < browser.evaluate("document.querySelectorAll('.wide rect').length") < 6000
    assert browser.evaluate("document.querySelectorAll('.wide .labels text').length") > 50


@pytest.mark.parametrize("width", [360, 420, 700, 1200])
def test_the_table_of_kinds_fits(browser: Browser, tmp_path: Path, width: int) -> None:
    """The numbers of a model of 3 T parameters fit beside each other, without a scrollbar, at any width."""
    from tensorport_hub.report.facts import Facts

    kinds = ("fp8 blocks, float32 scales → BF16", "F32", "BF16")
    tensors = [Tensor(kind, kind, (1,), 10**8 - i, 10**8 - i) for i, kind in enumerate(kinds)]
    place = tmp_path / "large.html"
    place.write_text(build(Facts("large", "", "", {}, {}, tensors * 9999, "bytes")))
    browser.open(place.as_uri(), width=width)
    assert browser.evaluate("document.querySelectorAll('.kinds .scroll').length") == 1
    assert browser.evaluate("(s => s.scrollWidth <= s.clientWidth)(document.querySelector('.kinds .scroll'))")
    clipped = (
        "[...document.querySelectorAll('.kinds td, .kinds th')].filter(d => d.scrollWidth > d.clientWidth)"
    )
    assert browser.evaluate(f"{clipped}.length") == 0
