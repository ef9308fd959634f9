"""The smaller pictures: what the step is made of, its bounds, memory over time, collectives."""

from __future__ import annotations

from trainlib.planning.profile.figures import Profile, percent, size, time
from trainlib.planning.profile.markup import CLASSES, name, number, text, tip
from trainlib.planning.profile.memory import Memory

POINTS = 600  # of the curve of memory
LISTED = 6  # arrays at the peak


def composition(profile: Profile) -> str:
    """One bar: families of operations, and waits, by their part of the step."""
    parts, names = [], []
    for family, seconds in profile.families:
        share = seconds / profile.seconds
        title = family.strip("()")
        about = tip(title, f"{time(seconds)}, {percent(share)} of the step")
        kind, width = CLASSES[family], number(100 * share)
        label = text(f"{title} {percent(share)}") if share > 0.07 else ""
        parts.append(f'<div class="{kind}" style="width:{width}%" {about}>{label}</div>')
        names.append(
            f'<span class="key"><i class="{kind}"></i>{text(title)} {text(time(seconds))}</span>'
        )
    bar = f'<div class="composition">{"".join(parts)}</div>'
    return f'{bar}<p class="legend">{"".join(names)}</p>'


def bounds(profile: Profile) -> str:
    """Sum, prediction and lower bounds, side by side."""
    rows = [
        ("one after the other", profile.ledger.seconds, "sum"),
        ("predicted", profile.seconds, "predicted"),
    ]
    named = {
        "memory": "bound: HBM at its bandwidth",
        "arithmetic": "bound: arithmetic at the peak",
        "links": "bound: the busiest link",
    }
    for what, seconds in sorted(profile.schedule.bounds.items(), key=lambda bound: -bound[1]):
        if seconds:
            rows.append((named[what], seconds, "bound"))
    return _bars([(title, seconds, time(seconds), kind) for title, seconds, kind in rows])


def _bars(rows: list[tuple[str, float, str, str]]) -> str:
    """Named horizontal bars of (name, length, label, class)."""
    most = max((length for _, length, _, _ in rows), default=0.0) or 1.0
    cells = (
        f'<div>{text(title)}</div><div><div class="bar {kind}" '
        f'style="width:{number(100 * length / most)}%"></div></div><div>{text(label)}</div>'
        for title, length, label, kind in rows
    )
    return f'<div class="bars">{"".join(cells)}</div>'


def collectives(profile: Profile) -> str:
    """Bars of what is under way between devices, by kind and mesh axes."""
    rows = [
        (
            f"{one['kind']} over {'+'.join(one['axes'])}",
            one["seconds"],
            f"{time(one['seconds'])}, {one['times']:,} times, {size(one['wire_bytes'])} sent",
            CLASSES["collectives"],
        )
        for one in profile.collectives
    ]
    return _bars(rows)


def memory(profile: Profile) -> tuple[str, str]:
    """The curve of what is alive between operations, and what is alive at its peak.

    Returns:
      HTML, and the sentence below the title.
    """
    found = Memory(profile.ledger)
    moment, most = found.peak
    if not most:
        return "", ""
    planned = profile.ledger.temporaries
    top = 1.06 * max(most, planned)
    whole = profile.seconds or 1.0
    path, held = ["M0 1000"], 0
    for at, after in _thinned(found.curve, whole):
        x = number(1000 * at / whole)
        path.append(f"L{x} {number(1000 - 1000 * held / top)}")
        path.append(f"L{x} {number(1000 - 1000 * after / top)}")
        held = after
    path.append(f"L1000 {number(1000 - 1000 * held / top)}L1000 1000Z")
    line = ""
    if planned:
        y = number(1000 - 1000 * planned / top)
        line = f'<path class="planned" d="M0 {y}H1000"/>'
    marks = [(most, f"peak {size(most)}, at {time(moment)}")]
    if planned:
        marks.append((planned, f"planned by the compiler {size(planned)}"))
    near = abs(planned - most) < 0.09 * top
    labels = "".join(
        f'<span class="{"below" if near and value == most else ""}" '
        f'style="top:{number(100 - 100 * value / top)}%">{text(label)}</span>'
        for value, label in marks
    )
    cross = f'<i class="peak" style="left:{number(100 * moment / whole)}%"></i>'
    drawn = (
        f'<div class="area"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none">'
        f'<path class="alive" d="{"".join(path)}"/>{line}</svg>{cross}{labels}</div>'
        f'<div class="axis still">{_axis(whole)}</div>'
    )
    largest = found.at(moment)[:LISTED]
    items = "".join(
        f"<tr><td>{text(size(one.bytes))}</td><td>{text(one.what)}</td>"
        f"<td>{name(one.layer or one.name)}</td><td>{text(time(one.end - one.start))}</td></tr>"
        for one in largest
    )
    table = (
        "<table class=plain><thead><tr><th>largest at the peak</th><th>array</th><th>made in</th>"
        f"<th>alive for</th></tr></thead><tbody>{items}</tbody></table>"
    )
    note = (
        "What is alive in HBM between operations, arguments (weights, optimiser, batch) and results"
        " left out. Read from the schedule; the compiler's own plan also holds what lies between "
        "arrays."
    )
    return drawn + table, note


def _thinned(curve: list[tuple[float, int]], whole: float) -> list[tuple[float, int]]:
    """At most two changes in each of `POINTS` equal stretches: the highest value and the last."""
    if len(curve) <= 2 * POINTS:
        return curve
    kept: dict[int, list[tuple[float, int]]] = {}
    for point in curve:
        stretch = kept.setdefault(int(POINTS * point[0] / whole), [point, point])
        stretch[0] = max(stretch[0], point, key=lambda one: one[1])
        stretch[1] = point
    return [point for pair in kept.values() for point in sorted(set(pair))]


def _axis(seconds: float, count: int = 6) -> str:
    return "".join(
        f'<span style="left:{number(100 * at / count)}%">{text(time(seconds * at / count))}</span>'
        for at in range(count)
    )
