"""Each operation as a point below the chip's roofs: arithmetic over the bytes that it moves."""

from __future__ import annotations

import math

from trainlib.pages.markup import name, number, text
from trainlib.planning.ledger import Operation
from trainlib.planning.profile.figures import FAMILY_OF, Profile, arithmetic, percent, size, time
from trainlib.planning.profile.legend import CLASSES

WIDTH, HEIGHT = 680, 400
LEFT, RIGHT, TOP, BOTTOM = 62, 26, 20, 44
MOST_POINTS = 400
DECADES = 5.0  # the lowest point that is shown, below the peak


def roofline(profile: Profile) -> tuple[str, str]:
    """Draws the roofs and the points, as large as their time.

    Returns:
      SVG, and sentences on what is not shown and what is not where it belongs, or "".
    """
    chip = profile.chip
    # Products of 8-bit numbers may have a roof of their own: the highest is drawn.
    peak = max((chip.peak(one.narrow) for one in profile.ledger.operations), default=chip.flops)
    plot = _Plot(peak, chip.hbm_bandwidth)
    points: list[tuple[float, Operation]] = []
    no_bytes, no_flops = 0.0, 0.0
    for one in profile.ledger.operations:
        seconds = profile.seconds_of(one)
        if not seconds:
            continue
        if not one.hbm_bytes:
            no_bytes += seconds
        elif not one.flops:
            no_flops += seconds
        else:
            points.append((seconds, one))
    points.sort(key=lambda point: (-point[0], point[1].name))
    shown, small = points[:MOST_POINTS], points[MOST_POINTS:]
    circles = "".join(_circle(profile, plot, seconds, one) for seconds, one in shown)
    ridge = peak / chip.hbm_bandwidth
    x, y = plot.x(ridge), plot.y(peak)
    low = plot.y(plot.lowest * chip.hbm_bandwidth)
    roofs = (
        f'<path class="roof" d="M{number(plot.x(plot.lowest))} {number(low)}L{number(x)} '
        f'{number(y)}L{WIDTH - RIGHT} {number(y)}"/>'
        f'<text class="end" x="{WIDTH - RIGHT}" y="{number(y - 6)}">'
        f"{text(arithmetic(peak))}/s</text>"
        f'<text x="{number(plot.x(ridge / 30))}" y="{number(plot.y(peak / 30) - 12)}" '
        f'class="end">{text(size(chip.hbm_bandwidth))}/s</text>'
    )
    parts = []
    if no_bytes:
        parts.append(f"{time(no_bytes)} of operations that stay in memory on the chip")
    if no_flops:
        parts.append(f"{time(no_flops)} of operations without arithmetic")
    if small:
        seconds = sum(point[0] for point in small)
        parts.append(f"{time(seconds)} of {len(small):,} short ones")
    left_out = f"Not shown: {'; '.join(parts)}." if parts else ""
    beyond = sum(not plot.holds(one, seconds) for seconds, one in shown)
    if beyond:
        left_out += f" Points that lie beyond the picture, and are drawn at its edge: {beyond:,}."
    label = f"Roofline of {len(shown)} operations"
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f"{plot.grid()}{roofs}{circles}</svg>",
        left_out,
    )


class _Plot:
    """Logarithmic axes: FLOP a byte from 0.01 to 10,000, FLOP/s from the peak down."""

    lowest, highest = 0.01, 10_000.0

    def __init__(self, flops: float, bandwidth: float):
        self.top = math.log10(flops) + 0.25
        self.bottom = min(math.log10(flops) - DECADES, math.log10(bandwidth * 0.02))

    def x(self, intensity: float) -> float:
        low, high = math.log10(self.lowest), math.log10(self.highest)
        share = (math.log10(min(self.highest, max(self.lowest, intensity))) - low) / (high - low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, flops: float) -> float:
        share = (self.top - math.log10(max(flops, 10**self.bottom))) / (self.top - self.bottom)
        return TOP + share * (HEIGHT - TOP - BOTTOM)

    def holds(self, one: Operation, seconds: float) -> bool:
        """Whether an operation is drawn where it belongs."""
        flops = one.times * one.flops
        inside = self.lowest <= flops / one.total_hbm_bytes <= self.highest
        return inside and flops / seconds >= 10**self.bottom

    def grid(self) -> str:
        """Lines and labels of the decades, and the names of the axes."""
        parts = []
        for exponent in range(-2, 5):
            x = number(self.x(10.0**exponent))
            parts.append(f'<path class="grid" d="M{x} {TOP}V{HEIGHT - BOTTOM}"/>')
            label = f"{10.0**exponent:g}"
            parts.append(f'<text class="mid" x="{x}" y="{HEIGHT - BOTTOM + 16}">{label}</text>')
        for exponent in range(math.ceil(self.bottom), math.floor(self.top) + 1):
            y = number(self.y(10.0**exponent))
            parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
            label = text(arithmetic(10.0**exponent).replace("FLOP", ""))
            parts.append(f'<text class="end" x="{LEFT - 6}" y="{y}" dy="4">{label}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(
            f'<text class="mid axis" x="{number(middle)}" y="{HEIGHT - 8}">'
            "FLOP for each byte through HBM</text>"
            f'<text class="axis" x="{LEFT - 50}" y="13">FLOP/s</text>'
        )
        return "".join(parts)


def _circle(profile: Profile, plot: _Plot, seconds: float, one: Operation) -> str:
    flops = one.times * one.flops
    share = seconds / profile.seconds
    radius = min(16.0, 2.5 + 60 * math.sqrt(share) / 2)
    peak = one.at_peak(profile.chip) / seconds
    bandwidth = one.total_hbm_bytes / seconds / profile.chip.hbm_bandwidth
    lines = (
        one.layer,
        one.name,
        f"{time(seconds)}, {percent(share)} of the time",
        f"{size(one.total_hbm_bytes)}, {arithmetic(flops)}",
        f"{percent(peak)} of the peak, {percent(bandwidth)} of the bandwidth",
    )
    said = "&#10;".join(name(line) for line in lines if line)
    x, y = plot.x(flops / one.total_hbm_bytes), plot.y(flops / seconds)
    place = f'cx="{number(x)}" cy="{number(y)}" r="{number(radius)}"'
    return f'<circle class="{CLASSES[FAMILY_OF[one.kind]]}" {place}><title>{said}</title></circle>'
