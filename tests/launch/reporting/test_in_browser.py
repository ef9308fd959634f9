"""The page in a real browser: every figure is drawn, values are told where one points, nothing is
asked of the network, and it fits a telephone. One Chromium for all of it.
"""

from __future__ import annotations

import os

import pytest

from launch import report
from tests import browser
from tests.launch.reporting import fixtures

pytestmark = pytest.mark.skipif(
    browser.program() is None, reason="no Chromium here: apt-get install chromium"
)
INK = """(() => {
  const all = [...document.querySelectorAll(".plot, .field, .spent")];
  return all.filter((figure) => figure.clientWidth).map((figure) => {
    const canvas = figure.querySelector("canvas");
    if (!canvas) return figure.querySelectorAll("svg path.smooth, .interval i").length;
    const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return new Set(new Uint32Array(data.buffer)).size;
  });
})()"""
BOX = "(() => { const b = %s.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
PLOT = "document.querySelector('#panels-quality .plot')"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    run = fixtures.make(folder / "small", steps=1000)
    fixtures.answers(run, 1000)
    other = fixtures.make(folder / "warm", steps=500, faster=2.0)
    for name, flags in (("one", []), ("two", ["--compare", str(other)])):
        report.main([str(run), *flags, f"--html={folder / name}.html", "--json"])
    return folder


@pytest.fixture(scope="module")
def chromium():
    with browser.Browser() as opened:
        yield opened


def opened(chromium, path, width=1280, **look):
    chromium.complaints.clear()
    chromium.requests.clear()
    chromium.look(width, **look)
    chromium.open(path)
    while chromium.ask("document.documentElement.dataset.ready") != "yes":
        assert chromium.complaints == []
        chromium.drawn()
    if folder := os.environ.get("SCREENSHOTS"):
        theme = "dark" if look.get("dark") else "light"
        chromium.picture(browser.Path(folder) / f"{path.stem}_{width}_{theme}.png")
    return chromium


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["one", "two"])
def test_every_figure_is_drawn(pages, chromium, name, dark, width):
    page = opened(chromium, pages / f"{name}.html", width, dark=dark, phone=width < 500)
    ink = page.ask(INK)
    assert len(ink) >= 12
    assert all(count > 0 for count in ink), ink
    assert page.ask("document.documentElement.scrollWidth") <= width
    assert page.ask("[...document.images].every((image) => image.naturalWidth > 0)")
    shade = page.ask("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0]")
    assert (int(shade) < 80) == dark
    page.ask("document.querySelector('details').open = true")
    page.drawn()
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []


def test_values_are_told_where_one_points(pages, chromium):
    page = opened(chromium, pages / "one.html")
    page.ask(f"{PLOT}.scrollIntoView({{block: 'center'}})")
    page.drawn()
    x, y, width, height = page.ask(BOX % PLOT)
    page.point(x + width - 9, y + height / 2)
    said = page.ask("document.getElementById('tip').innerText")
    assert said.startswith("step 99")
    assert "training\n1.09" in said
    crosses = "document.querySelectorAll('.plot .cross path').length"
    assert page.ask(crosses) > 1  # the same moment in every figure
    page.point(2, 2)
    assert page.ask("document.getElementById('tip').hidden")


def test_a_part_is_enlarged_in_all_figures_and_all_is_shown_again(pages, chromium):
    page = opened(chromium, pages / "one.html")
    page.ask(f"{PLOT}.scrollIntoView({{block: 'center'}})")
    page.drawn()
    x, y, width, height = page.ask(BOX % PLOT)
    page.point(x + width / 2, y + height / 2)
    page.point(x + width / 2, y + height / 2, "mousePressed")
    page.point(x + width / 2 + 60, y + height / 2)
    page.point(x + width / 2 + 60, y + height / 2, "mouseReleased")
    first, last = page.ask("[view.from, view.to]")
    assert 300 < first < last < 800
    assert page.ask("figures.filter((f) => f.x0 !== undefined).every((f) => f.x0 === view.from)")
    page.ask("document.querySelector('.all').click()")
    assert page.ask("view.from") is None


def test_keys_read_single_values_to_a_screen_reader(pages, chromium):
    page = opened(chromium, pages / "one.html")
    page.ask(f"{PLOT}.focus()")
    page.key("End")
    page.key("ArrowLeft")
    assert "step 9" in page.ask("document.getElementById('spoken').textContent")
    label = page.ask(f"{PLOT}.getAttribute('aria-label')")
    assert label.startswith("loss. training:")
    page.ask("document.querySelector('#router-loads .field').focus()")
    page.key("ArrowLeft")
    page.key("ArrowRight")
    spoken = page.ask("document.getElementById('spoken').textContent")
    assert "expert 0" in spoken
    assert "40 %" in spoken


def test_controls_change_what_is_shown(pages, chromium):
    page = opened(chromium, pages / "two.html")
    path = f"{PLOT}.querySelectorAll('path.smooth').length"
    before = page.ask(path)
    page.ask("document.querySelector('input[data-shown=\"1\"]').click()")
    assert page.ask(path) < before
    page.ask("document.querySelector('input[name=axis][value=time]').click()")
    assert page.ask("view.axis") == "time"
    page.ask("document.getElementById('theme').click()")
    shade = page.ask("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0]")
    assert int(shade) < 80
    rows = "document.querySelectorAll('#settings tbody tr:not([hidden])').length"
    page.ask("(w => { w.value = 'learning_rate'; w.dispatchEvent(new Event('input')) })(words)")
    assert page.ask(rows) == 1
    page.ask("document.querySelector('.buttons button:last-child').click()")
    assert page.ask("document.querySelectorAll('.panel table tbody tr').length") >= 50
    assert page.complaints == []


def test_a_long_word_in_an_alert_fits_a_telephone(pages, chromium):
    page = opened(chromium, pages / "one.html", 390, phone=True)
    page.ask("document.querySelector('.alerts b').textContent = 'x'.repeat(200)")
    page.drawn()
    assert page.ask("document.documentElement.scrollWidth") <= 390
