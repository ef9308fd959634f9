"""The README.md of an export: a model card with YAML front matter, as hubs of models read it
(https://huggingface.co/docs/hub/model-cards).

It is published, so it holds no path of this machine and nothing that was not measured; and names of
classes, data sets and configurations are text of others, which may neither end the front matter nor
become markup.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence

from trainlib import paths
from trainlib.errors import ConfigError, nearest, plain, shown

NAME = "README.md"
LIBRARY = "vitattn-moe"
MOST_NAMES, MOST_FIGURES = 20, 40
# Frequent ones, for the nearest to a name that is no identifier.
LICENSES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "lgpl-3.0", "agpl-3.0"),
    *("mpl-2.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
    *("openrail", "unlicense", "unknown", "other"),
)
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")


@dataclasses.dataclass(frozen=True)
class Metric:
    """How a figure is shown: the hub's name of it, ours for people, and whether it is a share."""

    hub: str
    label: str
    share: bool = False


@dataclasses.dataclass(frozen=True)
class Subject:
    """What a family says of a model.

    Attributes:
      what: one sentence, in markdown.
      pipeline: the hub's name of the task; "" where it has none.
      task: the task, for people.
      tags: further words to find it by.
      papers: arXiv ids.
      rows: label -> text, on input, output and architecture.
      data: the data set, for people.
      data_id: its id on the hub; "" where it has none.
      split: on which evaluations of the run were made.
      metrics: name of a figure -> how it is shown; others are shown by their names.
      hidden: names of figures that are none of quality.
      use: Python that loads the export and applies it, run in its directory.
    """

    what: str
    pipeline: str
    task: str
    tags: tuple[str, ...]
    papers: tuple[str, ...]
    rows: Mapping[str, str]
    data: str
    data_id: str
    split: str
    metrics: Mapping[str, Metric]
    hidden: tuple[str, ...]
    use: str


@dataclasses.dataclass(frozen=True)
class Export:
    """What an export says of itself.

    Attributes:
      name: of the configuration.
      license: identifier; "" where the author has not chosen.
      parameters: how many.
      step: of the weights.
      weights: rows on format, names and kind of the weights.
      library: that loads it.
      figures: what the run measured at this step with these weights.
      note: on the figures.
      command: words of the training command, without paths of this machine.
      versions: package -> version, of the training.
    """

    name: str
    license: str
    parameters: int
    step: int
    weights: Mapping[str, str]
    library: str
    figures: Mapping[str, float]
    note: str
    command: Sequence[str]
    versions: Mapping[str, str]


def check_license(text: str) -> str:
    """The identifier of a licence as it was given.

    Raises:
      ConfigError: it has not the form of one, such as apache-2.0.
    """
    if text and not _LICENSE.fullmatch(text):
        close = nearest(re.sub(r"[\s_]+", "-", text.lower()), LICENSES)
        raise ConfigError(
            f"--license={shown(text)} is no identifier of a licence. {close}Hubs know them in "
            f"small letters and without blanks, such as {', '.join(LICENSES[:3])}; 'other' is one "
            "of your own."
        )
    return text


def card(subject: Subject, export: Export) -> str:
    """The content of README.md."""
    parts = [
        "---",
        *front_matter(subject, export),
        "---",
        "",
        f"# {escaped(export.name)}",
        "",
        subject.what,
        "",
        *_table({**_facts(subject, export), **export.weights}),
        "",
        *_figures(subject, export),
        "## Use",
        "",
        "In this directory:",
        "",
        *_code(subject.use, "python"),
        "",
        *_training(export),
        *_license(export),
    ]
    return "\n".join(parts) + "\n"


# ------------------------------------------------------------------------------ front matter
def front_matter(subject: Subject, export: Export) -> list[str]:
    """The lines of YAML between the two lines of dashes."""
    shown_figures = _quality(subject, export)
    metrics = list(dict.fromkeys(_metric(subject, export, name).hub for name in shown_figures))
    lines = [f"library_name: {yaml(export.library)}"]
    if subject.pipeline:
        lines.append(f"pipeline_tag: {yaml(subject.pipeline)}")
    if export.license:
        lines.append(f"license: {yaml(export.license)}")
    lines += ["tags:", *(f"- {yaml(tag)}" for tag in dict.fromkeys(subject.tags))]
    if subject.data_id:
        lines += ["datasets:", f"- {yaml(subject.data_id)}"]
    if metrics:
        lines += ["metrics:", *(f"- {yaml(metric)}" for metric in metrics)]
        lines += _model_index(subject, export, shown_figures)
    return lines


def _model_index(subject: Subject, export: Export, figures: Mapping[str, float]) -> list[str]:
    lines = [
        "model-index:",
        f"- name: {yaml(export.name)}",
        "  results:",
        "  - task:",
        f"      type: {yaml(subject.pipeline or 'other')}",
        f"      name: {yaml(subject.task)}",
        "    dataset:",
        f"      type: {yaml(subject.data_id or 'other')}",
        f"      name: {yaml(subject.data)}",
        f"      split: {yaml(subject.split)}",
        "    metrics:",
    ]
    for name, value in figures.items():
        metric = _metric(subject, export, name)
        lines += [
            f"    - type: {yaml(metric.hub)}",
            f"      value: {float(value)!r}",
            f"      name: {yaml(metric.label)}",
        ]
    return lines


def _metric(subject: Subject, export: Export, name: str) -> Metric:
    label = _labels(export.figures)[name]
    return subject.metrics.get(name) or Metric(label, label)


def _labels(figures: Mapping[str, float]) -> dict[str, str]:
    """Name of a figure -> the same without paths, and no two alike. A part of a mixture has its
    source in its names: `part/text:/data/news/accuracy`.
    """
    labels: dict[str, str] = {}
    alike = collections.Counter[str]()
    for name in figures:
        source, _, figure = name.rpartition("/")
        before, colon, _ = source.partition(":")
        holds = colon and before.rpartition("/")[2] in paths.WITH_PATHS["data.source"]
        label = f"{before}:PATH/{figure}" if holds else paths.without_paths(name)
        alike[label] += 1
        labels[name] = f"{label} ({alike[label]})" if alike[label] > 1 else label
    return labels


def _quality(subject: Subject, export: Export) -> dict[str, float]:
    """The figures that the card shows: finite, of quality, and not too many of them."""
    found = {
        name: value
        for name, value in export.figures.items()
        if name not in subject.hidden and math.isfinite(value)
    }
    return dict(list(found.items())[:MOST_FIGURES])


def yaml(text: str) -> str:
    """Text as a scalar of YAML: in JSON's quotation marks, on one line."""
    return json.dumps(plain(text), ensure_ascii=False)


# ------------------------------------------------------------------------------------- markdown
def escaped(text: str) -> str:
    """Text of others as markdown that shows it: no markup, no link, one line."""
    text = re.sub(r"([\\`*_\[\]<>|~&$#])", r"\\\1", plain(text))
    # Bare addresses would become links.
    return text.replace("://", "\\://").replace("www.", "www\\.").replace("@", "\\@")


def _table(rows: Mapping[str, str]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items() if text)]


def _code(text: str, language: str) -> list[str]:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", *map(plain, text.strip().split("\n")), fence]


def names(count: int, given: Sequence[str]) -> str:
    """How many classes there are, and the first names, as markdown."""
    if not given:
        return f"{count:,}"
    listed = ", ".join(escaped(shown(name, 60)) for name in given[:MOST_NAMES])
    return f"{count:,}: {listed}{', ...' if len(given) > MOST_NAMES else ''}"


def _facts(subject: Subject, export: Export) -> dict[str, str]:
    papers = ", ".join(f"[arXiv {p}](https://arxiv.org/abs/{p})" for p in subject.papers)
    return {
        "task": subject.task,
        "paper": papers,
        "configuration": escaped(export.name),
        "parameters": f"{export.parameters:,}",
        **subject.rows,
        "data": escaped(subject.data),
    }


def _figures(subject: Subject, export: Export) -> list[str]:
    figures = _quality(subject, export)
    if not figures:
        return ["## Figures", "", f"None: {export.note}", ""]
    rows = {}
    for name, value in figures.items():
        metric = _metric(subject, export, name)
        rows[escaped(metric.label)] = f"{100 * value:.2f} %" if metric.share else f"{value:.6g}"
    left = len([n for n in export.figures if n not in subject.hidden]) - len(figures)
    more = [f"{left} further figures are in the run's metrics.", ""] if left else []
    where = (
        f"Measured by the training run at step {export.step:,}, on the split "
        f"{escaped(subject.split)} of {escaped(subject.data)}{export.note}."
    )
    return ["## Figures", "", where, "", *_table(rows), "", *more]


def _training(export: Export) -> list[str]:
    first, *rest = [shlex.quote(word) for word in export.command]
    module = [f"{first} {rest[0]}", *rest[1:]]  # `vitattn-moe train` and its flags
    lines = ["## Training", "", "The command that trains this model again:", ""]
    lines += [*_code(" \\\n  ".join(module), "bash"), ""]
    if any(re.search(r"=.*\b[A-Z][A-Z_]+$", word) for word in export.command):
        lines += ["Words in capitals stand for directories and files of your machine.", ""]
    versions = ", ".join(f"{name} {escaped(value)}" for name, value in export.versions.items())
    return [*lines, *([f"Versions of the training: {versions}.", ""] if versions else [])]


def _license(export: Export) -> list[str]:
    if export.license == "other":
        return [
            "## License",
            "",
            "The author states the licence: add `license_name` and `license_link` to the head of "
            "this file.",
        ]
    if export.license:
        return ["## License", "", f"{escaped(export.license)}, as the author stated at the export."]
    return [
        "## License",
        "",
        "**The author has not chosen a licence yet.** Without one, nobody else may use these "
        "weights. As the author, add a line such as `license: apache-2.0` to the head of this "
        "file, or export again with `--license=apache-2.0`; terms of the training data may limit "
        "the choice.",
    ]
