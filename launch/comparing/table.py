"""Runs side by side as text: a column a run where that fits, else a row a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launch.comparing import runs as reading
from trainlib.errors import plain

MOST_KEYS = 30
_CELL, _LABEL = 30, 34  # columns, at most
_TRAINED = ("loss", "cross_entropy", "accuracy")  # of the last step; more are in metrics.jsonl
_HIDDEN = ("examples", "step", "kind")
_AVERAGES = ("score/mean", "score/superglue")
Rows = dict[str, list[str]]  # quantity -> the cell of each run


def text(runs: Sequence[Mapping[str, Any]], width: int) -> str:
    """The comparison as lines of at most `width` columns; only a single cell may be wider."""
    names = [_cut(name, _LABEL) for name in reading.labels(runs)]
    rows_of_facts, settings = facts(runs), _settings(runs)
    lines = []
    for title, rows in (("", rows_of_facts), ("configuration, where it differs", settings)):
        if rows:
            lines += ["", *([title, "-" * len(title)] if title else [])]
            wide = _widths(rows, names)
            fits = _total(*wide) <= width
            lines += _columns(rows, names, *wide) if fits else _blocks(rows, names, width)
    errors = [(n, r["error"]) for n, r in zip(names, runs, strict=True) if "error" in r]
    lines += ["", *(f"{name}: {plain(error)}" for name, error in errors)] if errors else []
    return "\n".join(lines)


def _total(label: int, cells: Sequence[int]) -> int:
    return label + sum(cells) + 2 * len(cells)


def _widths(rows: Rows, names: Sequence[str]) -> tuple[int, list[int]]:
    """Characters of the labels, and of each run, in a table with a column a run."""
    cells = [
        max(len(name), *(len(row[number]) for row in rows.values()))
        for number, name in enumerate(names)
    ]
    return max(map(len, rows)), cells


def _columns(rows: Rows, names: Sequence[str], label: int, cells: Sequence[int]) -> list[str]:
    def line(first: str, texts: Sequence[str]) -> str:
        padded = (f"{text:>{size}}" for text, size in zip(texts, cells, strict=True))
        return f"{first:<{label}}  {'  '.join(padded)}".rstrip()

    return [line("", names), *(line(quantity, row) for quantity, row in rows.items())]


def _blocks(rows: Rows, names: Sequence[str], width: int) -> list[str]:
    """A row a run: as many quantities beside each other as fit, then the next ones below."""
    label = min(max(map(len, names)), max(8, width // 3))
    names = [name if len(name) <= label else f"..{name[2 - label :]}" for name in names]
    lines: list[str] = []
    block: Rows = {}

    def flush() -> None:
        if block:
            sizes = {name: max(len(name), *map(len, row)) for name, row in block.items()}
            header = "  ".join(f"{name:>{sizes[name]}}" for name in block)
            lines.extend(([""] if lines else []) + [f"{'':<{label}}  {header}"])
            for number, run in enumerate(names):
                cells = "  ".join(f"{row[number]:>{sizes[n]}}" for n, row in block.items())
                lines.append(f"{run:<{label}}  {cells}".rstrip())
            block.clear()

    for quantity, row in rows.items():
        widths = [max(len(name), *map(len, r)) for name, r in {**block, quantity: row}.items()]
        if block and _total(label, widths) > width:
            flush()
        block[quantity] = row
    flush()
    return lines


# ------------------------------------------------------------------------------------- cells
def state(run: Mapping[str, Any]) -> str:
    """How a run stands, in a word."""
    if "error" in run:
        return "unreadable"
    if run["holder"]:
        return "running" if run["sure"] else "running?"
    if run["step"] >= run["steps"]:
        return "complete"
    return "broken off" if run["left_by"] else "stopped"


def facts(runs: Sequence[Mapping[str, Any]]) -> Rows:
    """Quantity -> the cell of each run: state, steps, what was measured, speed and time."""
    from trainlib.run.goodput import percent
    from trainlib.run.progress import number

    def each(cell: Any) -> list[str]:
        return ["" if "error" in run else cell(run) for run in runs]

    rows: Rows = {
        "state": [state(run) for run in runs],
        "configuration": each(lambda run: _cut(run["name"], _CELL)),
        "step": each(lambda run: f"{run['step']:,}/{run['steps']:,}"),
    }
    for name in _TRAINED:
        rows[f"{name}, train"] = each(lambda run, name=name: _number(run["train"].get(name)))
    for name in _evaluated(runs):
        rows[f"{name}, last"] = each(lambda run, name=name: _number(run["eval"].get(name)))
        rows[f"{name}, best"] = _best(runs, name)
    rows["examples/s"] = each(lambda run: _number(run["goodput"].get("examples_per_second")))
    rows["MFU"] = each(
        lambda run: percent(run["goodput"]["mfu"], 1) if "mfu" in run["goodput"] else ""
    )
    rows["parameters"] = each(
        lambda run: "" if run["parameters"] is None else number(float(run["parameters"]))
    )
    rows["time"] = each(lambda run: plain(run["time"])[:12])
    shown = {name: row for name, row in rows.items() if any(row)}
    return {name: [cell or "-" for cell in row] for name, row in shown.items()}


def _evaluated(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [name for run in runs if "error" not in run for name in run["eval"]]
    keep = [n for n in names if n not in _HIDDEN and ("/" not in n or n in _AVERAGES)]
    return list(dict.fromkeys(keep))


def _best(runs: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """The best value of each run with its step, and a star at the best of all."""
    from trainlib.checkpoint.manifest import larger_is_better

    found = [run.get("best_eval", {}).get(name) for run in runs]
    values = [entry["value"] for entry in found if entry]
    top = (max if larger_is_better(name) else min)(values, default=None)
    several = len(values) > 1
    return [
        ""
        if not entry
        else f"{_number(entry['value'])} @{entry['step']:,}{_star(entry, top) if several else ''}"
        for entry in found
    ]


def _star(entry: Mapping[str, float], top: float | None) -> str:
    return "*" if entry["value"] == top else " "


def _number(value: Any) -> str:
    from trainlib.run.progress import number

    return number(value) if isinstance(value, int | float) else ""


def _settings(runs: Sequence[Mapping[str, Any]]) -> Rows:
    found = reading.differences(runs)
    rows = {
        plain(key): [
            "-" if "error" in run else _cut(_value(value), _CELL)
            for run, value in zip(runs, values, strict=True)
        ]
        for key, values in list(found.items())[:MOST_KEYS]
    }
    if len(found) > MOST_KEYS:
        rows[f"and {len(found) - MOST_KEYS} more keys"] = [""] * len(runs)
    return rows


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "()"
    return "''" if value == "" else str(value)


def _cut(text: str, most: int) -> str:
    """One line of at most `most` characters; of a path the end says more than the beginning."""
    text = plain(text)
    if len(text) <= most:
        return text
    return f"..{text[2 - most :]}" if "/" in text else f"{text[: most - 2]}.."
