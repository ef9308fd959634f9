"""The schedule as lanes over time: the core, the copies beside it, the links by torus axis."""

from __future__ import annotations

from collections import defaultdict

from trainlib.pages.markup import name, number, text, tip
from trainlib.planning.ledger import Operation
from trainlib.planning.ledger.schedule import Span
from trainlib.planning.profile.figures import FAMILY_OF, Profile, size, time
from trainlib.planning.profile.legend import CLASSES
from trainlib.planning.profile.memory import ticks
from trainlib.planning.profile.tree import sections

WIDTH = 20_000  # units of the drawing; a stretch narrower than one is drawn with its neighbours
MOST_SPANS = 1_500  # in a lane
COLUMNS = 200  # of the row of layers


def timeline(profile: Profile) -> tuple[str, int]:
    """Draws the schedule.

    Returns:
      HTML, and how many spans were drawn together with others.
    """
    lanes: dict[str, list[Span]] = defaultdict(list)
    for span in profile.schedule.spans:
        lanes[span.lane].append(span)
    operations = {one.name: one for one in profile.ledger.operations}
    labels = ["layers"]
    drawn = [f'<div class="lane layers">{_layers(profile)}</div>']
    together = 0
    for lane in sorted(lanes, key=lambda name: (name != "core", name != "copies", name)):
        rects, joined = _lane(profile, lanes[lane], operations)
        together += joined
        labels.append(lane)
        drawn.append(
            f'<svg class="lane" viewBox="0 0 {WIDTH} 10" preserveAspectRatio="none">{rects}</svg>'
        )
    column = "".join(f"<div>{text(label)}</div>" for label in labels)
    axis = f'<div class="axis" data-seconds="{profile.seconds:.9g}">{ticks(profile.seconds)}</div>'
    return (
        f'<div class="timeline"><div class="labels">{column}<div class="axis"></div></div>'
        f'<div class="scroll"><div class="track">{"".join(drawn)}{axis}</div></div></div>',
        together,
    )


def _layers(profile: Profile) -> str:
    cells = []
    for start, end, title in sections(profile, COLUMNS):
        place = f"left:{number(100 * start)}%;width:{number(100 * (end - start))}%"
        stretch = time((end - start) * profile.seconds)
        cells.append(f'<div class="cell" style="{place}" {tip(title, stretch)}>{name(title)}</div>')
    return "".join(cells)


def _lane(profile: Profile, spans: list[Span], operations: dict[str, Operation]) -> tuple[str, int]:
    """Rectangles of one lane, and how many spans share one with others."""
    scale = WIDTH / (profile.seconds or 1.0)
    longest = sorted(spans, key=lambda span: span.start - span.end)
    alone = {id(span) for span in longest[:MOST_SPANS] if (span.end - span.start) * scale >= 2}
    rects, joined = [], 0
    group: list[Span] = []

    def close() -> None:
        if group:
            longest = max(group, key=lambda span: span.end - span.start)
            start, end = group[0].start, max(span.end for span in group)
            one = operations.get(longest.name)
            about = f"{len(group):,} short operations, {time(end - start)} from first to last"
            rects.append(_rect(start, end, scale, one, about))
            group.clear()

    for span in sorted(spans, key=lambda span: (span.start, span.end)):
        if id(span) in alone:
            close()
            rects.append(_rect(span.start, span.end, scale, operations.get(span.name), ""))
            continue
        # Neighbours only: between two that lie apart the lane is idle.
        if group and (span.start - group[-1].end) * scale > 2:
            close()
        group.append(span)
        joined += 1
    close()
    return "".join(rects), joined


def _rect(start: float, end: float, scale: float, one: Operation | None, about: str) -> str:
    kind = CLASSES[FAMILY_OF[one.kind]] if one else "f-other"
    lines: list[str] = [about] if about else []
    if one and not about:
        moved = f"{size(one.total_hbm_bytes)} through HBM" if one.hbm_bytes else ""
        sent = f"{size(one.times * one.wire_bytes)} sent" if one.wire_bytes else ""
        runs = f"{one.times} times" if one.times > 1 else ""
        lines = [one.layer, one.name, one.source, moved, sent, runs]
        lines.append(f"{time(end - start)}, from {time(start)}")
    said = "&#10;".join(name(line) for line in lines if line)
    place = f'x="{number(start * scale)}" width="{number(max(0.5, (end - start) * scale))}"'
    return f'<rect class="{kind}" {place} height="10"><title>{said}</title></rect>'
