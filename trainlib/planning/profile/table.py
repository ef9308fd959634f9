"""The operations that take longest, as a table that a browser sorts and filters."""

from __future__ import annotations

from trainlib.pages.markup import name, text
from trainlib.planning.profile.figures import (
    FAMILY_OF,
    Profile,
    arithmetic,
    bound,
    percent,
    size,
    time,
)
from trainlib.planning.profile.legend import CLASSES

ROWS = 250
HEADS = (
    *(("layer", ""), ("pass", ""), ("operation", ""), ("time", "n"), ("share", "n"), ("HBM", "n")),
    *(("FLOP", "n"), ("of peak", "n"), ("of HBM", "n"), ("bound by", ""), ("source", "")),
)


def table(profile: Profile) -> tuple[str, int]:
    """The longest operations, and how many are left out."""
    timed = [(profile.seconds_of(one), one) for one in profile.ledger.operations]
    timed = [(seconds, one) for seconds, one in timed if seconds or one.hbm_bytes]
    timed.sort(key=lambda pair: (-pair[0], -pair[1].total_hbm_bytes, pair[1].name))
    rows = []
    for seconds, one in timed[:ROWS]:
        flops, count = one.times * one.flops, one.total_hbm_bytes
        peak = one.at_peak(profile.chip) / seconds if seconds else 0.0
        share = count / profile.chip.hbm_bandwidth / seconds if seconds else 0.0
        family = FAMILY_OF[one.kind]
        runs = f" \u00d7{one.times}" if one.times > 1 else ""
        limit = bound(peak, share, family) if seconds else "beside the core"
        whole = seconds / profile.seconds if profile.seconds else 0.0
        rows.append(
            f"<tr><td>{name(one.layer)}</td><td>{one.phase}</td>"
            f'<td><i class="{CLASSES[family]}"></i>{name(one.name)}{runs}</td>'
            + _number(seconds, time(seconds))
            + _number(seconds, percent(whole))
            + _number(count, size(count))
            + _number(flops, arithmetic(flops).replace("FLOP", ""))
            + _number(peak, percent(peak))
            + _number(share, percent(share))
            + f"<td>{limit}</td><td>{name(one.source)}</td></tr>"
        )
    heads = "".join(f'<th class="{kind}">{head}</th>' for head, kind in HEADS)
    drawn = (
        '<div class="wide"><table id="operations"><thead><tr>'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
    return drawn, max(0, len(timed) - ROWS)


def _number(value: float, label: str) -> str:
    return f'<td class="n" data-v="{value:.6g}">{text(label)}</td>'
