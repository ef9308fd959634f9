"""Tables of the page: the configuration with its origins, differences of runs, checkpoints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from launch.comparing import runs as comparing
from launch.reporting.gather import Checkpoint, Run, Setting
from launch.reporting.overview import compared, when
from trainlib.errors import shown
from trainlib.pages.markup import text
from trainlib.run.progress import number

MOST_VALUE = 400  # characters
MOST_LEAVES = 500


def settings(found: Sequence[Setting]) -> str:
    """The configuration; a search field, and only what was set until all is asked for."""
    rows = "".join(map(_setting, found))
    return (
        '<p class="controls js"><input type="search" id="words" placeholder="key, value or meaning"'
        ' aria-label="filter the configuration"><label><input type="checkbox" id="every"> also '
        'defaults</label><span id="matches" role="status"></span></p>'
        '<table id="settings"><thead><tr><th scope="col">key</th><th scope="col">value</th>'
        f'<th scope="col">set in</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _setting(one: Setting) -> str:
    meaning = f"<small>{text(one.meaning)}</small>" if one.meaning else ""
    origin, kind = _origin(one)
    title = (
        "" if one.default is None or one.is_default else f' title="default: {_value(one.default)}"'
    )
    is_set = "" if one.is_default else ' data-set="yes"'
    return (
        f'<tr{is_set}><td><span class="key-name">{text(shown(one.key, 200))}</span>{meaning}</td>'
        f'<td class="value"{title}>{_value(one.value)}</td>'
        f'<td><span class="from {kind}">{text(shown(origin, 80))}</span></td></tr>'
    )


def _origin(one: Setting) -> tuple[str, str]:
    """(where a value was set, the class of its mark)."""
    if one.origin in ("", "default"):
        if one.is_default:
            return "default", ""
        # What nobody set, and is no default, follows from other keys: steps from epochs.
        return ("follows from other keys" if one.origin else "set"), "file"
    if one.origin in ("command line", "configs.load"):
        return one.origin, "flag"
    return one.origin, "variant" if "variant" in one.origin else "file"


def _value(value: Any) -> str:
    said = value if isinstance(value, str) and value else json.dumps(value)
    return text(shown(said, MOST_VALUE))


def differences(runs: Sequence[Run]) -> str:
    """Keys in which the configurations of runs differ."""
    found = comparing.differences([run.facts for run in runs])
    if not found:
        return "<p>The runs have one configuration, as far as they have the same keys.</p>"
    rows = {shown(key, 100): list(map(_value, values)) for key, values in found.items()}
    return compared(runs, rows, "key-name")


def checkpoints(found: Sequence[Checkpoint], best: int | None) -> str:
    """The saved steps with their digests, and the arrays of the newest."""
    names = list(dict.fromkeys(name for one in found for name in one.metrics if "/" not in name))
    names = [name for name in names if name not in ("examples", "tokens", "detections")][:4]
    heads = "".join(f'<th scope="col" class="n">{text(shown(name, 40))}</th>' for name in names)
    rows = "".join(_checkpoint(one, names, one.step == best) for one in found)
    drawn = (
        f'<div class="wide"><table><thead><tr><th scope="col">step</th>{heads}'
        '<th scope="col">saved</th><th scope="col" class="n">size</th>'
        '<th scope="col">SHA-256 of manifest.json</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
    newest = next((one for one in found if one.leaves), None)
    return drawn + (_leaves(newest) if newest else "")


def _checkpoint(one: Checkpoint, names: Sequence[str], is_best: bool) -> str:
    star = (
        ' <span class="star" title="the best by checkpoint.best">&#9733;</span>' if is_best else ""
    )
    step = f"<td>{one.step:,}{star}</td>"
    if one.damage:
        why = f'<td class="cross-out" colspan="{len(names) + 3}">{text(shown(one.damage))}</td>'
        return f"<tr>{step}{why}</tr>"
    cells = "".join(
        f'<td class="n">{text(number(one.metrics[name])) if name in one.metrics else ""}</td>'
        for name in names
    )
    return (
        f"<tr>{step}{cells}<td>{text(when(one.saved))}</td>"
        f'<td class="n">{text(size(one.size))}</td><td><code>{text(one.sha256)}</code></td></tr>'
    )


def size(count: int) -> str:
    """Bytes in units of thousands."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} B"


def _leaves(one: Checkpoint) -> str:
    rows = "".join(
        f'<tr><td class="key-name">{text(shown(name, 160))}</td><td>{text(shape)}</td>'
        f"<td>{text(dtype)}</td><td><code>{text(digest)}</code></td></tr>"
        for name, shape, dtype, digest in one.leaves[:MOST_LEAVES]
    )
    left = len(one.leaves) - MOST_LEAVES
    more = f"<p>{left:,} further arrays are left out.</p>" if left > 0 else ""
    return (
        f"<details><summary>every array of step {one.step:,} ({len(one.leaves):,}), with its "
        'digest</summary><div class="wide"><table><thead><tr><th scope="col">array</th>'
        '<th scope="col">shape</th><th scope="col">type</th><th scope="col">digest</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div>{more}</details>"
    )
