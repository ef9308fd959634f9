"""A profile for terminals of 100 columns."""

from __future__ import annotations

import textwrap

from trainlib.errors import plain
from trainlib.planning.profile import headline
from trainlib.planning.profile.figures import Profile, Row, percent, size, time

WIDTH = 100
LEFT_OUT = 8  # sentences about what the figures leave out
_NAME, _BAR = 36, 8


def to_text(profile: Profile, by: str = "layer", top: int = 20) -> str:
    """Where the time and the bytes go, to be read.

    Args:
      profile: of a program.
      by: "layer", "op" or "source".
      top: how many rows.
    """
    rows = profile.rows(by)
    heads = f"{'time':>9} {'share':>6} {'':{_BAR}} {'through HBM':>11} {'of peak':>8} {'of HBM':>7}"
    lines = [*_wrapped(headline.summary(profile)), *_wrapped(headline.limits(profile)), ""]
    lines.append(f"{by:<{_NAME}}{heads}  bound by")
    lines += [_line(row) for row in rows[:top]]
    if left := rows[top:]:
        seconds, count = sum(row.seconds for row in left), sum(row.hbm_bytes for row in left)
        share = seconds / profile.seconds if profile.seconds else 0.0
        lines.append(_cells(f"{len(left):,} more", seconds, share, count))
    for what, seconds in profile.waits:
        if seconds < headline.NOTABLE / 10 * profile.seconds:
            continue
        lines.append(_cells(f"(waiting for {what})", seconds, seconds / profile.seconds, 0))
    lines.append(_cells("together", profile.seconds, 1.0, profile.ledger.hbm_bytes))
    if found := headline.findings(profile, 5):
        lines += ["", "what to look at first"]
        for number, text in enumerate(found, 1):
            lines += _wrapped(text, f"{number:>2}. ")
    if left := headline.left_out(profile):
        lines += ["", "what these figures leave out"]
        for text in left[:LEFT_OUT]:
            lines += _wrapped(text, "  - ")
        if len(left) > LEFT_OUT:
            lines.append(f"  - and {len(left) - LEFT_OUT:,} more, all in the page and in --json")
    lines.append("")
    for text in (headline.uncounted(profile), headline.honest(profile)):
        lines += _wrapped(text)
    return "\n".join(lines)


def _line(row: Row) -> str:
    times = f" x{row.times}" if row.times > 1 else ""
    text = _cells(_cut(row.name, times), row.seconds, row.share, row.hbm_bytes)
    peak, bandwidth = percent(row.of_peak), percent(row.of_bandwidth)
    return f"{text} {peak:>8} {bandwidth:>7}  {row.bound if row.seconds else ''}".rstrip()


def _cells(name: str, seconds: float, share: float, count: int) -> str:
    return (
        f"{name[:_NAME]:<{_NAME}}{time(seconds):>9} {percent(share):>6} {_bar(share)} "
        f"{size(count) if count else '-':>11}"
    )


def _cut(name: str, times: str) -> str:
    """A name of a program, whose end says most, in its column."""
    room = _NAME - 1 - len(times)
    name = plain(name)
    return (name if len(name) <= room else f"...{name[-room + 3 :]}") + times


def _bar(share: float) -> str:
    """Eighths of a cell: 43 % is four and a third of ten."""
    eighths = round(8 * _BAR * min(1.0, share))
    full, rest = divmod(eighths, 8)
    return ("█" * full + ("▏▎▍▌▋▊▉"[rest - 1] if rest else "")).ljust(_BAR)


def _wrapped(text: str, first: str = "") -> list[str]:
    rest = " " * len(first)
    return textwrap.wrap(
        plain(text), WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    )
