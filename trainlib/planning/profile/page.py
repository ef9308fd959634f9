"""A profile as one HTML page that needs nothing else: styles, script and pictures are in it.

Everything but sorting, filtering, zooming and quick tooltips works without the script. The page
depends on the profile alone, so that two pages of one program are equal byte for byte.
"""

from __future__ import annotations

from trainlib.pages.document import asset, document
from trainlib.pages.markup import section, text
from trainlib.planning.profile import charts, headline
from trainlib.planning.profile.figures import FAMILIES, Profile, percent, size, time
from trainlib.planning.profile.legend import legend
from trainlib.planning.profile.memory import memory
from trainlib.planning.profile.roofline import roofline
from trainlib.planning.profile.table import ROWS, table
from trainlib.planning.profile.timeline import timeline
from trainlib.planning.profile.tree import icicle, tree

FILE = "profile.html"
MARK = "<!doctype html>\n<!-- a profile by vitattn-moe -->\n"  # how a page of ours begins


def to_html(profile: Profile) -> str:
    """The page, UTF-8."""
    subject = profile.subject
    title = f"{subject.name} on {subject.target}"
    parts = [
        _head(profile, title),
        _layers(profile),
        _timeline(profile),
        f'<div class="two">{_roofline(profile)}{_memory(profile)}</div>',
        _collectives(profile),
        _operations(profile),
        _assumptions(profile),
    ]
    style, script = (
        asset("trainlib.planning.profile", name) for name in ("style.css", "script.js")
    )
    body = f"<main>\n{''.join(parts)}\n</main>"
    return document(MARK, f"{title}: {time(profile.seconds)}", style, body, script)


def _head(profile: Profile, title: str) -> str:
    subject, ledger = profile.subject, profile.ledger
    rate = subject.tokens or subject.examples
    what = "tokens/s" if subject.tokens else "examples/s"
    tiles = [
        (
            time(profile.seconds),
            "predicted step" if subject.examples else "predicted time",
            "large",
        ),
        (percent(profile.mfu), "MFU" if subject.flops is not None else "of peak arithmetic", ""),
        (percent(profile.hbm_share), f"of HBM's bandwidth, {size(ledger.hbm_bytes)}", ""),
    ]
    if rate and profile.seconds:
        tiles.append((f"{rate / profile.seconds:,.0f}", what, ""))
    waiting = sum(seconds for _, seconds in profile.waits)
    share = waiting / profile.seconds if profile.seconds else 0.0
    tiles.append((percent(share), "of the time waiting", ""))
    if ledger.temporaries:
        tiles.append((size(ledger.temporaries), "temporaries", ""))
    drawn = "".join(
        f'<div class="tile {kind}"><b>{text(value)}</b><span>{text(name)}</span></div>'
        for value, name, kind in tiles
    )
    found = headline.findings(profile)
    items = "".join(f"<li>{text(one)}</li>" for one in found)
    mend = f"<ol>{items}</ol>" if items else "<p>Nothing stands out.</p>"
    left = len(headline.left_out(profile))
    doubt = (
        f'<p class="note">The figures leave something out, or assume it, in {left:,} '
        f'{"place" if left == 1 else "places"}: see <a href="#assumed">what is assumed</a>.</p>'
        if left
        else ""
    )
    return (
        f"<header><h1>{text(title)}</h1><p>Expected by the TPU compiler, libtpu "
        f"{text(ledger.compiler)}. Nothing was run on a device.</p></header>\n"
        f'<div class="tiles">{drawn}</div>\n'
        f'<section class="made"><div><h2>What the time is made of</h2>'
        f'<p class="note">{text(headline.limits(profile))}</p>'
        f"{charts.composition(profile)}{charts.bounds(profile)}</div>"
        f'<div class="mend"><h2>What to look at first</h2>{mend}{doubt}</div></section>\n'
    )


def _layers(profile: Profile) -> str:
    root = tree(profile)
    by_time, narrow = icicle(profile, root, "seconds")
    by_bytes, _ = icicle(profile, root, "bytes")
    parts = "1 part is" if narrow == 1 else f"{narrow:,} parts are"
    left = f" {parts} too narrow to be drawn." if narrow else ""
    note = (
        "As wide as what a layer takes, its parts below it, in the order of the program; the last "
        f"row tells the passes apart.{left} <span class=js>Click to enlarge.</span>"
    )
    switch = (
        '<input type="radio" name="by" id="by-time" checked><label for="by-time">time</label>'
        '<input type="radio" name="by" id="by-bytes"><label for="by-bytes">bytes through HBM'
        "</label>"
    )
    shown = [family for family, _ in profile.visible]
    body = (
        f'<div class="switch">{switch}{legend(shown)}'
        f'<div class="of-time">{by_time}</div><div class="of-bytes">{by_bytes}</div></div>'
    )
    return section("layers", "Layers", note, body)


def _timeline(profile: Profile) -> str:
    drawn, together = timeline(profile)
    short = "1 short operation is" if together == 1 else f"{together:,} short operations are"
    joined = f" {short} drawn with their neighbours." if together else ""
    note = (
        "What the core, the copies beside it and the links do when; a loop is drawn once, as long "
        f"as all its turns.{joined}"
    )
    zoom = (
        '<p class="js zoom"><label>enlarge <input id="zoom" type="range" min="0" max="100" '
        'value="0"></label></p>'
    )
    return section("timeline", "Timeline", note, zoom + drawn)


def _roofline(profile: Profile) -> str:
    drawn, left_out = roofline(profile)
    note = (
        "An operation is a point, as large as its time. What lies far below the line loses time; "
        f"left of the corner it is memory that limits. {text(left_out)}"
    )
    families = [family for family, _ in profile.visible if family in FAMILIES]
    return section("roofline", "Roofline", note, legend(families) + drawn)


def _memory(profile: Profile) -> str:
    drawn, note = memory(profile)
    return section("memory", "Memory over time", text(note), drawn) if drawn else ""


def _collectives(profile: Profile) -> str:
    if not profile.collectives:
        return ""
    exposed = [one for one in profile.waits if one[0].startswith("links")]
    said = ", ".join(f"{time(seconds)} for {what}" for what, seconds in exposed)
    wait = f"The core waits {said}." if said else "All of it runs beside the core."
    note = f"Time under way between devices, by mesh axis. {wait}"
    return section("collectives", "Between devices", text(note), charts.collectives(profile))


def _operations(profile: Profile) -> str:
    drawn, left = table(profile)
    more = f" The {ROWS} longest; {left:,} are left out." if left else ""
    note = (
        "Shares of the chip's peak arithmetic and of the bandwidth of HBM while an operation runs. "
        "Bound by neither: on-chip memory, the vector unit or latency decides."
        f'{more} <span class="js">Click a heading to sort.</span>'
    )
    search = '<p class="js"><input id="filter" type="search" placeholder="filter"></p>'
    return section("table", "Operations", note, search + drawn)


def _assumptions(profile: Profile) -> str:
    lines = [
        headline.honest(profile),
        headline.uncounted(profile),
        *headline.left_out(profile),
        *(f"{one[0].upper()}{one[1:]}." for one in profile.schedule.assumptions),
    ]
    items = "".join(f"<li>{text(line)}</li>" for line in lines if line)
    return section("assumed", "What is assumed", "", f"<ul>{items}</ul>")
