"""The page: well formed, alone, the same each time, of bounded size, and nothing that a name says
runs in it.
"""

from __future__ import annotations

import dataclasses
import itertools
import re

import pytest

from tests.html_reader import Reader
from tests.trainlib.planning.profile.programs import EVIL, profile
from trainlib.planning.ledger.schedule import Span
from trainlib.planning.profile import memory, timeline
from trainlib.planning.profile.figures import Profile
from trainlib.planning.profile.page import MARK, to_html
from trainlib.planning.profile.roofline import roofline
from trainlib.planning.profile.tree import icicle, sections, tree


@pytest.fixture(scope="module")
def page():
    return to_html(profile())


def test_the_page_is_well_formed_and_says_what_it_should(page):
    read = Reader(page)
    text = " ".join("".join(read.words).split())
    for said in ("by hand on v5e-1", "predicted step", "Roofline", "Memory over time", "Timeline"):
        assert said in text
    assert "Nothing was run on a device" in text
    assert "deep" in text
    assert page.startswith(MARK)


def test_one_of_a_kind_is_told_as_one(page):
    said = "".join(Reader(page).words)
    assert "1 part is too narrow" in said
    assert "1 short operation is drawn" in said


def test_names_are_text_and_nothing_else(page):
    """A layer called `</script><img ...>` opens no element, here and in what the browser runs."""
    read = Reader(page)
    assert EVIL not in page
    assert "img" not in read.tags
    assert read.tags.count("script") == 1
    assert any(EVIL.split("/")[0] in (value or "") for _, _, value in read.attributes)
    named = to_html(profile(name=EVIL))
    assert "img" not in Reader(named).tags


def test_the_page_needs_nothing_and_nobody(page):
    read = Reader(page)
    assert not {"link", "iframe", "object", "embed", "img"} & set(read.tags)
    assert not [name for _, name, _ in read.attributes if name in ("src", "href", "xlink:href")]
    assert not [name for _, name, _ in read.attributes if name.startswith("on")]
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest", page)
    assert "default-src 'none'" in page


def test_two_pages_of_one_program_are_equal(page):
    assert to_html(profile()) == page


def test_an_icicle_is_as_wide_as_its_parts():
    made = profile()
    root = tree(made)
    assert root.seconds == pytest.approx(made.seconds)
    assert [part.name for part in root.ordered][:1] == ["stem"]  # the first of the forward pass
    assert sum(part.seconds for part in root.parts.values()) == pytest.approx(root.seconds)
    assert root.parts["deep"].label == "deep \u00d73"
    drawn, left_out = icicle(made, root, "bytes")
    assert "width:100%" in drawn
    assert left_out >= 0


def test_the_row_of_layers_covers_the_step():
    parts = list(sections(profile(), 50))
    assert parts[0][0] == 0.0
    assert parts[-1][1] == 1.0
    assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
    assert [name for _, _, name in parts][:2] == ["stem (forward)", "deep (backward)"]


def test_many_spans_make_a_page_of_bounded_size():
    made = profile()
    count = 40_000
    width = made.seconds / count
    spans = tuple(
        Span(lane, n * width, (n + 0.9) * width, "product")
        for lane in ("core", "copies", "ici x")
        for n in range(count)
    )
    many = Profile(made.ledger, made.subject)
    many.schedule = dataclasses.replace(made.schedule, spans=spans)
    drawn, together = timeline.timeline(many)
    assert together > 3 * count - 5_000
    assert len(drawn) < 2_000_000


def test_memory_follows_the_clock_of_the_loop():
    made = profile()
    moments = memory.clock(made)
    lines = made.ledger.program.computations[made.ledger.program.entry]
    starts = {line.name: at for line, at in zip(lines, moments, strict=False)}
    assert starts["deep"] - starts["loop"] == pytest.approx(3 * 1e-4, rel=1e-4)
    assert moments == sorted(moments)
    assert moments[-1] == pytest.approx(made.seconds)
    drawn, note = memory.memory(made)
    assert "peak" in drawn
    assert "come on top" in note


def test_points_beyond_the_roofline_are_told():
    made = profile()
    # Of a whole program the condition of its loop alone: one comparison for 1,536 bytes.
    assert roofline(made)[1].endswith("drawn at its edge: 1.")
    least = [dataclasses.replace(one, flops=min(one.flops, 1.0)) for one in made.ledger.operations]
    ledger = dataclasses.replace(made.ledger, operations=tuple(least))
    drawn, said = roofline(Profile(ledger, made.subject))
    assert said.endswith(f"drawn at its edge: {drawn.count('<circle')}.")
