"""The head of the page: how runs stand, in words and in a few large figures."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from launch.comparing import table
from launch.reporting.curves import TITLES
from launch.reporting.gather import Checkpoint, Run
from trainlib.errors import plain, shown
from trainlib.pages.markup import number as coordinate
from trainlib.pages.markup import text
from trainlib.run.goodput import percent
from trainlib.run.progress import number

PILLS = {  # state of a run -> the class of its mark
    "complete": "complete",
    "running": "running",
    "running?": "running",
    "stopped": "stopped",
    "broken off": "broken",
}
# What tells best how good a run is, where it measured that.
BEST = ("score/mean", "ap", "top1", "accuracy", "cross_entropy", "loss")


def title(runs: Sequence[Run]) -> str:
    """Of the page."""
    if len(runs) > 1:
        return f"{len(runs)} runs compared"
    return shown(runs[0].facts["name"] or runs[0].label, 120)


def when(seconds: float) -> str:
    """A moment, in the time of this machine."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def head(runs: Sequence[Run], checkpoints: Sequence[Checkpoint], now: float) -> str:
    """The header of the page and its tiles; of several runs a table of figures."""
    one = runs[0]
    pill = "" if len(runs) > 1 else _pill(one)
    lead = "" if len(runs) > 1 else _lead(one)
    body = _legend(runs) if len(runs) > 1 else _meter(one)
    tiles = "" if len(runs) > 1 else _tiles(one)
    return (
        f'<header><p class="over">vitattn-moe &middot; report of {text(when(now))}</p>'
        f'<div class="headline"><h1>{text(title(runs))}</h1>{pill}</div>'
        f"{_where(runs, checkpoints, now)}{body}{lead}</header>\n{tiles}"
    )


def _pill(run: Run) -> str:
    state = table.state(run.facts)
    words = {"running?": "running, or killed", "broken off": "broken off"}
    return f'<span class="pill {PILLS.get(state, "")}">{text(words.get(state, state))}</span>'


def _where(runs: Sequence[Run], checkpoints: Sequence[Checkpoint], now: float) -> str:
    if len(runs) > 1:
        return ""
    facts = runs[0].facts
    said = [str(runs[0].workdir)]
    if facts["holder"]:
        said.append(f"held by {facts['holder']}")
    if facts["seconds_ago"] is not None:
        said.append(f"last metrics {when(now - facts['seconds_ago'])}")
    newest = next((one for one in checkpoints if not one.damage), None)
    if newest and newest.platform:
        devices, kind = newest.platform.get("devices"), newest.platform.get("kind")
        versions = newest.versions.get("jax")
        said.append(f"{shown(devices, 10)} x {shown(kind, 60)}")
        said += [f"jax {shown(versions, 30)}"] if versions else []
    return f'<p class="where">{" &middot; ".join(map(text, said))}</p>'


def _meter(run: Run) -> str:
    done, asked = run.facts["step"], run.facts["steps"]
    share = min(1.0, done / asked) if asked else 0.0
    return (
        f'<div class="meter" role="progressbar" aria-label="steps" aria-valuemin="0" '
        f'aria-valuemax="{asked}" aria-valuenow="{done}"><i style="width:'
        f'{coordinate(100 * share)}%"></i></div>'
    )


def _lead(run: Run) -> str:
    """What happened, in a sentence or two."""
    said = []
    loss = run.metrics.of("train").get("loss")
    if loss is not None and len(loss.steps):
        first, last = float(loss.values[0]), float(loss.values[-1])
        if len(loss.steps) > 1 and math.isfinite(first) and math.isfinite(last):
            verb = "fell" if last < first else "rose"
            said.append(
                f"The training loss {verb} from {number(first)} to {number(last)} between the "
                f"steps {int(loss.steps[0]):,} and {int(loss.steps[-1]):,}."
            )
        elif not math.isfinite(last):
            said.append(f"The training loss is not finite at step {int(loss.steps[-1]):,}.")
    best = _best(run)
    if best:
        name, value, step = best
        said.append(f"The best {name} of the evaluations is {value}, at step {step:,}.")
    if run.facts["damaged_lines"]:
        said.append(f"{run.facts['damaged_lines']:,} damaged lines of metrics were passed over.")
    if run.metrics.left_out:
        said.append(f"{run.metrics.left_out:,} values of too many names are left out.")
    if not said:
        said.append("Nothing has been measured yet.")
    return f'<p class="lead">{text(" ".join(said))}</p>'


def _best(run: Run) -> tuple[str, str, int] | None:
    """(name, value, step) of the evaluation that says most."""
    found = run.facts["best_eval"]
    wanted = run.config.get("checkpoint.best")
    name = next((name for name in (wanted, *BEST) if isinstance(name, str) and name in found), None)
    if name is None:
        return None
    name_of, unit = TITLES.get(name, (name.replace("_", " ").replace("score/mean", "score"), ""))
    is_share = unit == "%" or name in ("ap", "score/mean")
    value = found[name]["value"]
    told = percent(value, 1) if is_share else number(value)
    return shown(name_of, 60), told, found[name]["step"]


def _tiles(run: Run) -> str:
    facts, goodput = run.facts, run.facts["goodput"]
    tiles: list[tuple[str, str, str]] = []
    best = _best(run)
    if best:
        tiles.append((best[1], f"best {best[0]}, step {best[2]:,}", "large"))
    loss = facts["train"].get("loss")
    if isinstance(loss, int | float):
        tiles.append((number(loss), f"training loss, step {facts['train']['step']:,}", ""))
    tiles.append((f"{facts['step']:,}", f"of {facts['steps']:,} steps", ""))
    speed = goodput.get("examples_per_second")
    if _is_figure(speed):
        tiles.append((number(speed), "examples a second", ""))
    if _is_figure(goodput.get("mfu")):
        tiles.append((percent(goodput["mfu"], 1), "MFU", ""))
    if _is_figure(goodput.get("steps")):
        tiles.append((percent(goodput["steps"]), "goodput: time in steps", ""))
    if facts["time"]:
        tiles.append((plain(facts["time"])[:16], "for the run", ""))
    if facts["parameters"] is not None:
        tiles.append((_count(facts["parameters"]), "parameters", ""))
    alerts = len(run.metrics.alerts)
    if alerts:
        tiles.append((f"{alerts:,}", "alerts" if alerts > 1 else "alert", "warns"))
    drawn = "".join(
        f'<div class="tile {kind}"><b>{text(value)}</b><span>{text(name)}</span></div>'
        for value, name, kind in tiles
    )
    return f'<div class="tiles">{drawn}</div>\n'


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _count(value: int) -> str:
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return str(value)


def _legend(runs: Sequence[Run]) -> str:
    """Which run has which colour, and whether it is drawn."""
    items = (
        f'<li><label><input type="checkbox" data-shown="{place}" checked>'
        f'<i style="background:{color(place)}"></i>{text(shown(run.label, 120))}</label></li>'
        for place, run in enumerate(runs)
    )
    return f'<ul class="runs">{"".join(items)}</ul>'


_COLORS = ("blue", "orange", "green", "red", "violet", "teal", "grey", "pink")


def color(place: int) -> str:
    """Of a run, as scales.js has it."""
    return f"var(--{_COLORS[place % len(_COLORS)]})"


def side_by_side(runs: Sequence[Run]) -> str:
    """The figures of runs as a table, a column a run."""
    rows = table.facts([run.facts for run in runs])
    return compared(runs, {name: list(map(_starred, cells)) for name, cells in rows.items()})


def compared(runs: Sequence[Run], rows: Mapping[str, Sequence[str]], kind: str = "") -> str:
    """A table with a column a run.

    Args:
      runs: in their order.
      rows: what a row is of -> the HTML of the cell of each run.
      kind: the class of the heads of rows.
    """
    mark = f' class="{kind}"' if kind else ""
    body = "".join(
        f'<tr><th scope="row"{mark}>{text(name)}</th>'
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
        for name, cells in rows.items()
    )
    return (
        f'<div class="wide"><table class="compared">{_heads(runs)}<tbody>{body}</tbody></table>'
        "</div>"
    )


def _heads(runs: Sequence[Run]) -> str:
    """The head of a table with a column a run."""
    names = "".join(
        f'<th scope="col"><i style="background:{color(place)}"></i>'
        f"{text(shown(run.label, 60))}</th>"
        for place, run in enumerate(runs)
    )
    return f"<thead><tr><th></th>{names}</tr></thead>"


def _starred(cell: str) -> str:
    cell = cell.rstrip()
    if cell.endswith("*"):
        return f'{text(cell[:-1])} <span class="star" title="the best of the runs">&#9733;</span>'
    return text(cell)


def alerts(runs: Sequence[Run]) -> str:
    """The alerts of runs, those of one kind at one place together."""
    groups: dict[tuple[int, str, str], list[Mapping[str, Any]]] = {}
    for place, run in enumerate(runs):
        for record in run.metrics.alerts:
            key = (place, str(record.get("alert", "")), str(record.get("where", "")))
            groups.setdefault(key, []).append(record)
    items = []
    for (place, alert, where), records in groups.items():
        last = records[-1]
        steps = [record["step"] for record in records]
        when_ = f"step {steps[0]:,}"
        if len(steps) > 1:
            when_ = f"{len(steps):,} times, steps {min(steps):,} to {max(steps):,}"
        whose = f"{shown(runs[place].label, 60)}: " if len(runs) > 1 else ""
        name = f"{whose}{alert.replace('_', ' ')}{f', {where}' if where else ''}"
        items.append(
            f"<li><b>{text(shown(name, 200))}</b> <span>{text(when_)}{_measured(last)}</span>"
            f"<p>{text(shown(last.get('text', ''), 600))}</p>"
            f'<p class="advice">{text(shown(last.get("advice", ""), 600))}</p></li>'
        )
    return f'<ul class="alerts">{"".join(items)}</ul>' if items else ""


def _measured(record: Mapping[str, Any]) -> str:
    value, bound = record.get("value"), record.get("bound")
    if isinstance(value, int | float) and isinstance(bound, int | float):
        return text(f"; {number(float(value))}, the bound is {number(float(bound))}")
    return ""
