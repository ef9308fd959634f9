"""Bars: what the step is made of, its bounds, what is under way between devices."""

from __future__ import annotations

from trainlib.pages.markup import number, text, tip
from trainlib.planning.profile.figures import Profile, percent, size, time
from trainlib.planning.profile.legend import CLASSES


def composition(profile: Profile) -> str:
    """One bar: families of operations, and waits, by their part of the step."""
    parts, names = [], []
    for family, seconds in profile.visible:
        share = seconds / profile.seconds
        title = family.strip("()")
        about = tip(title, f"{time(seconds)}, {percent(share)} of the time")
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
