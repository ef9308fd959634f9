"""What came of an experiment: published cells beside ours, as a table, as JSON and as a picture."""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.reproduce.experiment import Experiment, Measure
from launch.reproduce.runs import Record, cost
from trainlib.files import check_target, save_picture, write_atomically
from trainlib.papers.exhibit import number
from trainlib.run import workdir

_ACROSS = 4  # panels in a row of a picture
_COSTS = ("parameters", "GFLOP")  # beginnings of columns that are not drawn


def file_name(experiment: Experiment) -> str:
    """Such as "st_moe_table_5"."""
    paper, name = experiment.key
    return f"{paper}_{name}".replace(" ", "_")


def outcome(experiment: Experiment, records: Sequence[Record]) -> dict[str, Any]:
    """Published cells and ours, row by row, as plain data.

    Args:
      experiment: what was run.
      records: its finished runs, of any number of seeds.

    Returns:
      paper, arxiv, name, title, tiny (what the variant is), origin and reading of the published
      cells, columns, rows (row -> column -> text), runs (row -> seed -> figures, workdir and CPU
      seconds), cpu_seconds, date, machine, python.
    """
    exhibit = experiment.exhibit
    rows = {label: exhibit.cells(label) for label in exhibit.labels}
    columns = [*exhibit.columns]
    of_row: dict[str, list[Record]] = {}
    for record in records:
        of_row.setdefault(record.setting.row, []).append(record)
    if experiment.compute is not None:
        for row, cells in experiment.compute().items():
            rows.setdefault(row, {}).update(cells)
            columns += [column for column in cells if column not in columns]
    for row, found in of_row.items():
        rows.setdefault(row, {}).update(
            {m.title: summed_up(m, [m.of(record) for record in found]) for m in experiment.measures}
        )
    columns += [m.title for m in experiment.measures if of_row]
    ours = [c for c in columns if c not in exhibit.columns]
    shown = {
        row: {column: cells.get(column, "") for column in columns}
        for row, cells in rows.items()
        if not ours or any(cells.get(column) for column in ours)
    }
    runs = {
        row: {
            str(record.seed): {
                "workdir": record.workdir.name,
                "cpu_seconds": cost(record.workdir),
                **{measure.title: measure.of(record) for measure in experiment.measures},
            }
            for record in found
        }
        for row, found in of_row.items()
    }
    return {
        "paper": exhibit.paper.name,
        "arxiv": exhibit.paper.arxiv,
        "name": exhibit.name,
        "title": exhibit.title,
        "tiny": experiment.tiny_is if of_row else experiment.computed_is,
        "origin": exhibit.origin,
        "reading": exhibit.reading,
        "columns": columns,
        "rows": shown,
        "left_out": [row for row in rows if row not in shown],
        "runs": runs,
        "cpu_seconds": round(sum(cost(record.workdir) for record in records), 1),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "python": platform.python_version(),
    }


def summed_up(measure: Measure, values: Sequence[float | None]) -> str:
    """The figure of several seeds as text: mean and sample standard deviation, or a count."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    if measure.count:
        return f"{sum(map(round, known))}/{len(known)}"
    text = f"{statistics.mean(known):,.{measure.digits}f}"
    if len(known) > 1 and any(value != known[0] for value in known):
        text += f" +- {statistics.stdev(known):.{measure.digits}f}"
    return text


def to_text(result: dict[str, Any], command: str) -> str:
    """The outcome as a page of Markdown.

    Args:
      result: of `outcome`.
      command: what made it.
    """
    head = ["row", *result["columns"]]
    lines = [
        f"# {result['name'].capitalize()} of arXiv {result['arxiv']}: {result['title']}",
        "",
        "Columns that begin with `ours`, `counted`, `computed` or `here` are of this code, the "
        "others are published.",
        "",
        _line(head),
        _line(["---"] * len(head)),
        *(_line([row, *cells.values()]) for row, cells in result["rows"].items()),
        "",
    ]
    for title, words in (
        ("Ours", result["tiny"]),
        ("Published cells", result["origin"]),
        ("Reading", result["reading"]),
        ("Left out", "; ".join(result["left_out"])),
        ("Command", f"`{command}`"),
    ):
        lines += [f"- {title}: {words}."] if words else []
    seeds = max((len(seeds) for seeds in result["runs"].values()), default=0)
    if seeds:
        minutes = result["cpu_seconds"] / 60
        lines.append(
            f"- Made on {result['date']} with Python {result['python']} on {result['machine']}, "
            f"{seeds} seed{'s' * (seeds > 1)}, {minutes:.1f} CPU minutes. At this size the figures "
            "say that the experiment runs, and little about the paper's models."
        )
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell or '' for cell in cells)} |"


def check_folder(experiment: Experiment, folder: Path) -> None:
    """Makes the folder, and refuses one where the outcome cannot be written, before anything is
    trained for it.

    Raises:
      ConfigError: something other than a file has the name of one that is written.
      StorageError: the folder cannot be made.
    """
    workdir.make(folder)
    for path in _files(experiment, folder):
        check_target(path)


def _files(experiment: Experiment, folder: Path) -> list[Path]:
    """Table, data and picture."""
    base = folder / file_name(experiment)
    return [base.with_suffix(suffix) for suffix in (".md", ".json", ".png")]


def write(result: dict[str, Any], experiment: Experiment, folder: Path, command: str) -> list[Path]:
    """Writes table, data and picture; returns the files. Without matplotlib, or anything to draw,
    there is no picture.
    """
    page, data, picture = _files(experiment, folder)
    write_atomically(page, to_text(result, command))
    write_atomically(data, json.dumps({**result, "command": command}, indent=2) + "\n")
    drawn = draw(result, experiment, picture)
    return [page, data, *([drawn] if drawn else [])]


def draw(result: dict[str, Any], experiment: Experiment, path: Path) -> Path | None:
    """Draws each measured figure, a dot a seed, beside the published ones; not what models cost.

    Returns:
      The file; None without matplotlib, which is said, or without numbers.
    """
    published, ours = _panels(result, experiment)
    if not ours:
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: matplotlib is not installed (the extra plots)", file=sys.stderr)
        return None
    rows, panels = list(result["rows"]), {**published, **ours}
    across = min(len(panels), _ACROSS)
    down = -(-len(panels) // across)
    size = 3.2 + 2.6 * across, 0.6 + down * (0.8 + 0.28 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    places = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    for axes, (title, values) in zip(places, panels.items(), strict=False):
        colour = "C7" if title in published else "C0"
        for height, row in enumerate(rows):
            if dots := values.get(row, []):
                axes.plot([min(dots), max(dots)], [height] * 2, "-", color=colour, alpha=0.5)
                axes.plot(dots, [height] * len(dots), "o", color=colour, markersize=4)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(alpha=0.3)
        axes.margins(x=0.15)
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    places[0].set_yticks(range(len(rows)), rows)
    places[0].set_ylim(len(rows) - 0.5, -0.5)
    figure.suptitle(f"arXiv {result['arxiv']}, {result['name']}: {result['title']}", fontsize=10)
    save_picture(figure, path, dots=110)
    return path


Panel = dict[str, list[float]]  # row -> one value a seed


def _panels(
    result: dict[str, Any], experiment: Experiment
) -> tuple[dict[str, Panel], dict[str, Panel]]:
    """What is drawn, title -> values: published columns of numbers, and ours."""
    published: dict[str, Panel] = {}
    for column in experiment.exhibit.columns:
        if column.startswith(_COSTS):
            continue
        read = {row: number(cells[column]) for row, cells in result["rows"].items()}
        values = {row: [value] for row, value in read.items() if value is not None}
        if len(values) > 1:
            published[f"published: {column}"] = values
    ours: dict[str, Panel] = {}
    for measure in experiment.measures:
        values = {
            row: [run[measure.title] for run in seeds.values() if run[measure.title] is not None]
            for row, seeds in result["runs"].items()
        }
        drawn = not (measure.count or measure.title.endswith(_COSTS))
        if drawn and any(values.values()):
            ours[measure.title] = values
    return published, ours
