"""Layers as a tree, drawn as an icicle: each layer as wide as what it takes, its parts below it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from trainlib.chips import Chip
from trainlib.pages.markup import name, number, tip
from trainlib.planning.ledger import Operation
from trainlib.planning.ledger.names import UNNAMED
from trainlib.planning.profile.figures import (
    FAMILY_OF,
    WAITING,
    Profile,
    arithmetic,
    percent,
    size,
    time,
)
from trainlib.planning.profile.legend import CLASSES

ROW = 23  # pixels
DEEPEST = 9  # rows
NARROWEST = 0.0006  # of the whole: below one pixel on most screens
PASSES = {"forward": "fwd", "backward": "bwd", "recomputed": "again"}
LARGE_PART = 0.7  # of a layer: then its colour is that of this family


class Node:
    """A layer, what it takes together with its parts, and its parts by name."""

    def __init__(self, name: str):
        self.name = name
        self.seconds, self.bytes, self.flops, self.count = 0.0, 0, 0.0, 0
        self.at_peak = 0.0  # seconds
        self.families: dict[str, float] = {}
        self.times: set[int] = set()
        self.moments: list[tuple[float, float]] = []  # (seconds, when) of its forward pass
        self.parts: dict[str, Node] = {}

    def add(self, operation: Operation, seconds: float, chip: Chip) -> None:
        """Counts an operation of this layer or of a part of it."""
        family = FAMILY_OF[operation.kind]
        self.seconds += seconds
        self.bytes += operation.total_hbm_bytes
        self.flops += operation.times * operation.flops
        self.at_peak += operation.at_peak(chip)
        self.count += 1
        self.families[family] = self.families.get(family, 0.0) + seconds
        if seconds:
            self.times.add(operation.times)

    def part(self, name: str) -> Node:
        """The part of that name, made when it is new."""
        return self.parts.setdefault(name, Node(name))

    @property
    def family(self) -> str:
        """The one that takes most of the seconds by far, or ""."""
        family = max(self.families, key=lambda key: self.families[key], default="")
        large = self.seconds and self.families[family] >= LARGE_PART * self.seconds
        return family if large else ""

    @property
    def ordered(self) -> list[Node]:
        """Its parts in the order of the program: by the middle of their forward passes."""

        def middle(part: Node) -> float:
            whole = sum(seconds for seconds, _ in part.moments)
            if not whole:
                return float("inf")  # has no forward pass: an update, a wait
            return sum(seconds * when for seconds, when in part.moments) / whole

        return sorted(self.parts.values(), key=lambda part: (middle(part), part.name == WAITING))

    @property
    def label(self) -> str:
        """Its name, and how often it runs where that is the same for all of it."""
        times = max(self.times) if len(self.times) == 1 else 1
        return f"{self.name} \u00d7{times}" if times > 1 else self.name


def tree(profile: Profile) -> Node:
    """The whole step: layers, at last their forward and backward passes, and the waits."""
    root, trained = Node(profile.subject.name), len(profile.phases) > 1
    begins = {span.name: span.start for span in profile.schedule.spans if span.lane == "core"}
    for one in profile.ledger.operations:
        seconds = profile.seconds_of(one)
        if not seconds and not one.hbm_bytes:
            continue
        named = one.layer if profile.is_named else one.op.rpartition("/")[2]
        path = [part for part in (named or UNNAMED).split("/") if part]
        pass_ = one.phase if trained and one.phase in PASSES else ""
        node = root
        node.add(one, seconds, profile.chip)
        for part in [*path[: DEEPEST - 2], *([PASSES[pass_]] if pass_ else [])]:
            node = node.part(part)
            node.add(one, seconds, profile.chip)
            if one.phase == "forward" and seconds:
                node.moments.append((seconds, begins[one.name]))
    if profile.waits:
        waiting = root.part(WAITING)
        for what, seconds in profile.waits:
            part = waiting.part(what)
            for node in (root, waiting, part):
                node.seconds += seconds
                node.families[WAITING] = node.families.get(WAITING, 0.0) + seconds
    return root


def icicle(profile: Profile, root: Node, by: str) -> tuple[str, int]:
    """Draws a tree.

    Args:
      profile: for the roofs.
      root: of `tree`.
      by: "seconds" or "bytes".

    Returns:
      HTML, and how many parts were too narrow to be drawn.
    """
    measure: Callable[[Node], float] = lambda node: getattr(node, by)  # noqa: E731
    whole = measure(root) or 1.0
    cells, left_out, deepest = [], 0, 0

    def visit(node: Node, path: str, start: float, depth: int) -> None:
        nonlocal left_out, deepest
        deepest = max(deepest, depth)
        share = measure(node) / whole
        place = f"left:{number(100 * start)}%;width:{number(100 * share)}%;top:{depth * ROW}px"
        kind = CLASSES[node.family] + (" pass" if node.name in PASSES.values() else "")
        about = _about(profile, node, path)
        cells.append(f'<div class="cell {kind}" style="{place}" {about}>{name(node.label)}</div>')
        for part in node.ordered:
            width = measure(part) / whole
            if width >= NARROWEST and depth + 1 < DEEPEST:
                visit(part, f"{path}/{part.name}" if depth else part.name, start, depth + 1)
            else:
                left_out += 1
            start += width

    visit(root, root.name, 0.0, 0)
    height = (deepest + 1) * ROW
    return f'<div class="icicle" style="height:{height}px">{"".join(cells)}</div>', left_out


def _about(profile: Profile, node: Node, path: str) -> str:
    share = node.seconds / profile.seconds if profile.seconds else 0.0
    lines = [path, f"{time(node.seconds)}, {percent(share)} of the time"]
    if node.bytes:
        lines.append(f"{size(node.bytes)} through HBM")
    if node.seconds and node.count:
        peak = node.at_peak / node.seconds
        bandwidth = node.bytes / profile.chip.hbm_bandwidth / node.seconds
        lines.append(f"{percent(peak)} of the peak, {percent(bandwidth)} of the bandwidth of HBM")
        lines.append(f"{node.count:,} operations, {arithmetic(node.flops)}")
    return tip(*lines)


def sections(profile: Profile, columns: int) -> Iterator[tuple[float, float, str]]:
    """The step as a row of what it works on: (start, end, layer and pass) in shares of the time.

    Each of `columns` equal stretches is of the uppermost layer that takes most of it; equal
    neighbours are one.
    """
    by_name = {one.name: one for one in profile.ledger.operations}
    found: list[dict[str, float]] = [{} for _ in range(columns)]
    whole, trained = profile.seconds or 1.0, len(profile.phases) > 1
    for span in profile.schedule.spans:
        one = by_name.get(span.name)
        if span.lane != "core" or one is None:
            continue
        layer = one.layer.partition("/")[0] or UNNAMED
        pass_ = one.phase if trained and one.phase in PASSES else ""
        title = f"{layer} ({pass_})" if pass_ else layer
        first, last = columns * span.start / whole, columns * span.end / whole
        for column in range(int(first), min(columns, int(last) + 1)):
            part = min(last, column + 1) - max(first, column)
            found[column][title] = found[column].get(title, 0.0) + part
    start, names = 0, [""]
    for parts in found:  # where the core waits, what it did before goes on
        names.append(max(parts, key=lambda key: parts[key], default=names[-1]))
    del names[0]
    for column in range(1, columns + 1):
        if column == columns or names[column] != names[start]:
            if names[start]:
                yield start / columns, column / columns, names[start]
            start = column
