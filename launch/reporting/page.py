"""The page of a run, or of several over each other: styles, script and data are in it.

Words and tables are HTML and need no script; curves and heat maps are drawn by the page's own from
numbers that stand in it as JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launch.reporting import cards, curves, goodput, overview, router, tables
from launch.reporting.gather import Checkpoint, Run, Setting
from trainlib.errors import shown
from trainlib.pages.document import asset, document
from trainlib.pages.markup import data, section, text
from trainlib.report.samples import Samples
from trainlib.run.goodput import OTHERS, phrase

MARK = "<!doctype html>\n<!-- a report by vitattn-moe -->\n"  # how a page of ours begins
MOST_BYTES = 4_900_000
SCRIPTS = ("scales.js", "curves.js", "maps.js", "page.js")


def to_html(
    runs: Sequence[Run],
    settings: Sequence[Setting],
    unknown: str,
    checkpoints: Sequence[Checkpoint],
    samples: Samples | str,
    refused: Sequence[tuple[str, str]],
    now: float,
) -> str:
    """The page, UTF-8, at most `MOST_BYTES` long as long as the names of a run are no novels.

    Args:
      runs: at least one; the first is the one whose configuration, checkpoints and samples are
        shown.
      settings: its configuration.
      unknown: why it is not known what its keys mean; "" where it is.
      checkpoints: of it.
      samples: of its newest checkpoint, or why there are none; "" where none were asked for.
      refused: (label, reason) of runs that could not be read.
      now: seconds since 1970.
    """
    figures = _figures(runs)
    parts = [
        _section("compared", "Side by side", "", _side_by_side(runs)),
        _section("alerts", "Alerts", _ALERTS, overview.alerts(runs)),
        _curves(figures),
        _time(runs, figures),
        _router(runs, figures),
        _samples(runs, samples, 0),
        _section("configuration", *_configuration(runs, settings, unknown)),
        _section("checkpoints", *_checkpoints(runs, checkpoints)),
    ]
    head = overview.head(runs, checkpoints, now)
    said = "".join(f"<li>{text(label)}: {text(reason)}</li>" for label, reason in refused)
    wrong = f"<section><h2>Runs that cannot be read</h2><ul>{said}</ul></section>" if said else ""

    def whole(sections: Sequence[tuple[str, str, str]]) -> str:
        shown_ = [one for one in sections if one[2]]
        links = "".join(f'<a href="#{name}">{text(title)}</a>' for name, title, _ in shown_)
        theme = '<button type="button" id="theme" class="js" aria-pressed="false">dark</button>'
        nav = f'<nav aria-label="chapters">{links}{theme}</nav>'
        body = "".join(html for _, _, html in shown_)
        return (
            f'<main>{head}{nav}{wrong}{body}<footer>{_FOOT}</footer><div id="spoken" role="status">'
            f"</div></main>\n{data('figures', figures)}"
        )

    style = asset("launch.reporting", "assets/report.css")
    script = "".join(asset("launch.reporting", f"assets/{name}") for name in SCRIPTS)
    title = f"{overview.title(runs)}: report"
    page = document(MARK, title, style, whole(parts), script)
    room = MOST_BYTES - len(page.encode())
    parts[5] = _samples(runs, samples, room)
    return document(MARK, title, style, whole(parts), script)


_ALERTS = "What the run noticed while it trained, and what to do about it. Red marks in the curves."
_FOOT = (
    "Made by vitattn-moe report --html from the files of the run alone. The page loads nothing and "
    "sends nothing."
)
Part = tuple[str, str, str]  # (id, title, HTML; "" leaves it out)


def _section(identity: str, title: str, note: str, body: str) -> Part:
    return identity, title, section(identity, title, note, body) if body else ""


def _figures(runs: Sequence[Run]) -> dict[str, Any]:
    """What the script draws from."""
    steps = curves.Steps()
    cells = router.MOST_CELLS // len(runs)
    panels = curves.panels([run.metrics for run in runs], steps)
    routers = [router.maps(run.metrics, steps, cells) for run in runs]
    return {
        "runs": [
            {
                "label": shown(run.label, 80),
                "batch": run.batch_size,
                "range": _range(run),
                "goodput": goodput.intervals(run.metrics, run.batch_size),
            }
            for run in runs
        ],
        "parts": ["steps", *OTHERS.values()],
        "panels": panels,
        "routers": routers,
        "alerts": [
            {
                "run": place,
                "step": record["step"],
                "alert": shown(str(record.get("alert", "")).replace("_", " "), 60),
                "where": shown(record.get("where", ""), 60),
            }
            for place, run in enumerate(runs)
            for record in run.metrics.alerts[:200]
        ],
        "steps": steps.lists,
    }


def _range(run: Run) -> list[int]:
    """The first and the last step of which anything is known."""
    known = [
        int(step)
        for columns in run.metrics.columns.values()
        for column in columns.values()
        for step in (column.steps[0], column.steps[-1])
    ]
    return [min(known, default=0), max(known, default=1)]


def _side_by_side(runs: Sequence[Run]) -> str:
    return overview.side_by_side(runs) if len(runs) > 1 else ""


def _curves(figures: dict[str, Any]) -> Part:
    groups = {panel["group"] for panel in figures["panels"]}
    if not groups:
        return "curves", "Curves", ""
    by_time = any(run["goodput"] for run in figures["runs"])
    axes = [("step", "steps"), ("examples", "examples"), *([("time", "time")] if by_time else [])]
    choices = "".join(
        f'<label><input type="radio" name="axis" value="{value}"'
        f"{' checked' if value == 'step' else ''}> {said}</label>"
        for value, said in axes
    )
    controls = (
        '<div class="controls js"><label>smooth <input type="range" id="smooth" min="0" max="100" '
        'value="20"></label><fieldset><legend>over</legend>'
        f'{choices}</fieldset><label>show <select id="part"><option value="1">the whole run'
        '</option><option value="0.5">the last half</option><option value="0.2">the last fifth'
        '</option><option value="0.05">the last twentieth</option></select></label>'
        '<button type="button" class="all" hidden>show all again</button></div>'
    )
    hosts = {curves.QUALITY: "", curves.TRAINING: "<h4>Training</h4>", curves.MORE: ""}
    drawn = "".join(
        f'{title}<div class="panels" id="panels-{group}"></div>'
        for group, title in hosts.items()
        if group in groups and group != curves.MORE
    )
    if curves.MORE in groups:
        drawn += (
            "<details><summary>further figures</summary>"
            f'<div class="panels" id="panels-{curves.MORE}"></div></details>'
        )
    note = (
        "Point at a curve for its values, drag over a part of it to enlarge it in all, click twice "
        "to see all again. <noscript>Figures are drawn by the script of this page, which does not "
        "run here.</noscript>"
    )
    return _section("curves", "Curves", note, controls + drawn)


def _time(runs: Sequence[Run], figures: dict[str, Any]) -> Part:
    known = [place for place, run in enumerate(figures["runs"]) if run["goodput"]]
    if not known:
        return "time", "Time", ""
    legend = "".join(
        f'<span class="key"><i class="p-{place}"></i>{text(name)}</span>'
        for place, name in enumerate(figures["parts"])
    )
    bars = []
    for place in known:
        run = figures["runs"][place]["goodput"]
        sums = [sum(parts) for parts in zip(*run["parts"], strict=True)]
        total = sum(sums) or 1.0
        shares = {name: value / total for name, value in zip(goodput.PARTS, sums, strict=True)}
        starts = len(run["starts"])
        again = f" The run was started {starts:,} times." if starts > 1 else ""
        whose = f"{shown(runs[place].label, 80)}: " if len(runs) > 1 else ""
        said = f"{whose}{phrase(shares)} of {_hours(run['clock'][-1][1])}.{again}"
        bars.append(
            f'<p class="scale">{text(said)}</p><div class="spent" data-run="{place}" role="img" '
            f'aria-label="{text(said)}"></div>'
        )
    note = (
        "Speed while stepping, and what the time went to, from one checkpoint to the next: as wide "
        "as the time took, as high as each part of it."
    )
    drawn = f'<div class="panels" id="speed"></div><p class="legend">{legend}</p>{"".join(bars)}'
    return _section("time", "Time", note, drawn)


def _hours(seconds: float) -> str:
    from trainlib.run.progress import duration

    return duration(seconds)


def _router(runs: Sequence[Run], figures: dict[str, Any]) -> Part:
    known = [place for place, one in enumerate(figures["routers"]) if one]
    if not known:
        return "router", "Router", ""
    pick = ""
    if len(known) > 1:
        options = "".join(
            f'<option value="{place}">{text(shown(runs[place].label, 80))}</option>'
            for place in known
        )
        pick = f'<label>run <select id="router-run">{options}</select></label>'
    where = (
        " It was measured by evaluations alone."
        if figures["routers"][known[0]]["evaluated"]
        else ""
    )
    note = f"What each expert of each layer was sent, and what found no place.{where}"
    scale = (
        '<p class="scale">a quarter of its fair share<i class="load"></i>four times its fair share'
        '<i class="dead"></i>no token at all</p>'
    )
    body = (
        f'<div class="js"><div class="controls">{pick}<label>by layer '
        '<select id="router-figure"></select></label></div><div id="router-map"></div>'
        f'<h4>Load of the experts</h4>{scale}<div class="maps" id="router-loads"></div>'
        '<p><button type="button" id="router-more" hidden></button></p>'
        '<h4>Layer by layer</h4><div class="panels" id="router-curves"></div></div>'
        f'<div id="routers" data-run="{known[0]}"></div>'
    )
    return _section("router", "Router", note, body)


def _samples(runs: Sequence[Run], samples: Samples | str, room: int) -> Part:
    if not samples:
        return "samples", "Samples", ""
    if isinstance(samples, str):
        return _section("samples", "Samples", "", f"<p>{text(samples)}</p>")
    drawn, left = cards.cards(samples, room)
    whose = f" of {text(shown(runs[0].label, 80))}" if len(runs) > 1 else ""
    more = f" {left:,} more do not fit into the page." if left else ""
    note = f"{text(samples.about)} Step {samples.step:,}{whose}.{more}"
    return _section("samples", "Samples", note, drawn)


def _configuration(
    runs: Sequence[Run], settings: Sequence[Setting], unknown: str
) -> tuple[str, str, str]:
    noted = any(one.origin for one in settings)
    if unknown:
        note = f"What the keys mean is not known here: {text(shown(unknown, 600))}"
    elif noted:
        note = "What was set, and where; the meaning of each key below it."
    else:
        note = "What differs from the defaults. The run did not note where its values were set."
    drawn = tables.settings(settings)
    if len(runs) > 1:
        drawn = (
            f"<h4>Where the runs differ</h4>{tables.differences(runs)}"
            f"<h4>All of {text(shown(runs[0].label, 80))}</h4>{drawn}"
        )
    return "Configuration", note, drawn


def _checkpoints(runs: Sequence[Run], found: Sequence[Checkpoint]) -> tuple[str, str, str]:
    if not found:
        return "Checkpoints", "", "<p>None has been saved.</p>"
    best = runs[0].facts["best"]
    whose = f" of {text(shown(runs[0].label, 80))}" if len(runs) > 1 else ""
    note = (
        f"The saved steps{whose}. A manifest holds the digest of every array and the size of every "
        "file; <code>sha256sum</code> of it prints what stands here."
    )
    return "Checkpoints", note, tables.checkpoints(found, best["step"] if best else None)
