"""The memory of a step over its time: a curve, and the largest arrays at its peak."""

from __future__ import annotations

from trainlib.pages.markup import name, number, text
from trainlib.planning.hlo import Instruction
from trainlib.planning.profile.figures import Profile, size, time

POINTS = 600  # of the curve
LISTED = 6  # arrays at the peak
NOTE = (
    "What is alive in HBM between operations; arguments (weights, optimiser, batch) and results, "
    "{arguments}, come on top. The compiler's own plan also holds what lies between arrays."
)
_STEPPED = ("while", "conditional", "call")


def clock(profile: Profile) -> list[float]:
    """When each instruction of the entry begins, and last the end of the step, in seconds."""
    program = profile.ledger.program
    spans = {
        span.name: (span.start, span.end) for span in profile.schedule.spans if span.lane == "core"
    }
    ends: dict[str, float] = {}  # computation -> the end of its last operation
    for one in profile.ledger.operations:
        end = spans.get(one.name, (0.0, 0.0))[1]
        ends[one.computation] = max(end, ends.get(one.computation, 0.0))

    def last(line: Instruction) -> float:
        """When a loop, branch or call ends."""
        found, waiting = 0.0, list(line.called)
        for computation in waiting:
            found = max(found, ends.get(computation, 0.0))
            for inner in program.computations.get(computation, ()):
                if inner.opcode in _STEPPED:
                    waiting += inner.called
        return found

    starts, now = [], 0.0
    for line in program.computations[program.entry]:
        start, end = spans.get(line.name, (now, now))
        starts.append(max(now, start))
        now = max(now, end, last(line) if line.opcode in _STEPPED else 0.0)
    return [*starts, max(now, profile.seconds)]


def memory(profile: Profile) -> tuple[str, str]:
    """Draws the curve, and lists what is alive at its peak.

    Returns:
      HTML and the sentence below the title; both "" for a program without temporaries in HBM.
    """
    found, whole = profile.ledger.memory, profile.seconds
    if not found.peak or not whole:
        return "", ""
    moments = clock(profile)
    curve = list(zip(moments, found.live, strict=False))
    moment = moments[found.live.index(found.peak)]
    planned = profile.ledger.temporaries
    top = 1.06 * max(found.peak, planned)
    path, held = ["M0 1000"], 0
    for at, after in _thinned(curve, whole):
        x = number(1000 * at / whole)
        path.append(f"L{x} {number(1000 - 1000 * held / top)}")
        path.append(f"L{x} {number(1000 - 1000 * after / top)}")
        held = after
    path.append(f"L1000 {number(1000 - 1000 * held / top)}L1000 1000Z")
    line = f'<path class="planned" d="M0 {number(1000 - 1000 * planned / top)}H1000"/>'
    drawn = (
        f'<div class="area"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none">'
        f'<path class="alive" d="{"".join(path)}"/>{line if planned else ""}</svg>'
        f'<i class="peak" style="left:{number(100 * moment / whole)}%"></i>'
        f"{_marks(found.peak, moment, planned, top)}</div>"
        f'<div class="axis">{ticks(whole)}</div>'
    )
    return drawn + _largest(profile, moments), NOTE.format(arguments=size(found.arguments))


def _marks(peak: int, moment: float, planned: int, top: float) -> str:
    """Labels at the heights of the peak and of the compiler's plan."""
    marks = [(peak, f"peak {size(peak)}, at {time(moment)}")]
    if planned:
        marks.append((planned, f"planned by the compiler {size(planned)}"))
    near = planned and abs(planned - peak) < 0.09 * top
    lower = min(height for height, _ in marks)
    return "".join(
        f'<span class="{"below" if near and height == lower else ""}" '
        f'style="top:{number(100 - 100 * height / top)}%">{text(label)}</span>'
        for height, label in marks
    )


def _largest(profile: Profile, moments: list[float]) -> str:
    program = profile.ledger.program
    lines = program.by_name[program.entry]
    operations = {one.name: one for one in profile.ledger.operations}
    rows = []
    for buffer in profile.ledger.memory.at_peak(LISTED):
        one, line = operations.get(buffer.made_by), lines.get(buffer.made_by)
        shape = _shape(line) if line else ""
        alive = moments[buffer.last + 1] - moments[buffer.first]
        place = one.layer if one and one.layer else buffer.made_by
        cells = (text(size(buffer.bytes)), text(shape), name(place), text(time(alive)))
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return (
        '<table class="plain"><thead><tr><th>largest at the peak</th><th>array</th><th>made in</th>'
        f"<th>alive for</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _shape(line: Instruction) -> str:
    """The largest array of a result: bf16[64,112,112,64]."""
    largest = max(line.arrays, key=lambda array: array.padded_bytes, default=None)
    return f"{largest.kind}{list(largest.shape)}".replace(" ", "") if largest else ""


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


def ticks(seconds: float, count: int = 6) -> str:
    """Marks of an axis of time, as far apart as their number asks for."""
    return "".join(
        f'<span style="left:{number(100 * at / count)}%">{text(time(seconds * at / count))}</span>'
        for at in range(count)
    )
