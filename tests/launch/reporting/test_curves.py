"""Which figures share a panel, and that a page of any run stays small."""

from __future__ import annotations

from launch.reporting import curves
from launch.reporting.metrics import Metrics


def run(*records):
    found = Metrics()
    for step, record in enumerate(records, start=1):
        found.add({"step": step, **record})
    return found


def drawn(*runs):
    steps = curves.Steps()
    found = curves.panels(runs, steps)
    return {panel["title"]: panel for panel in found}, steps.lists


def test_training_and_evaluation_share_a_panel_in_percent():
    panels, steps = drawn(
        run({"loss": 3.0, "accuracy": 0.25}, {"kind": "eval", "accuracy": 0.5, "examples": 9})
    )
    accuracy = panels["accuracy"]
    assert (accuracy["unit"], accuracy["group"]) == ("%", curves.QUALITY)
    assert [(line["kind"], line["y"]) for line in accuracy["lines"]] == [
        ("train", [25]),
        ("eval", [50]),
    ]
    assert steps[accuracy["lines"][1]["x"]] == [2]
    assert list(panels) == ["loss", "accuracy"]  # the loss first, and no number of examples


def test_parts_of_the_data_are_lines_of_one_panel():
    record = {"kind": "eval", "rte/accuracy": 0.5, "copa/accuracy": 0.75, "score/mean": 0.6}
    panels, _ = drawn(run(record))
    by_part = panels["accuracy by part"]
    assert [(line["label"], line["y"]) for line in by_part["lines"]] == [
        ("rte", [50]),
        ("copa", [75]),
    ]
    assert panels["scores of the tasks"]["group"] == curves.QUALITY
    assert panels["accuracy by part"]["group"] == curves.MORE


def test_average_precisions_share_a_panel_unless_runs_are_compared():
    record = {"kind": "eval", "ap": 0.3, "ap50": 0.5, "ap75": 0.2}
    panels, _ = drawn(run(record))
    assert [line["label"] for line in panels["average precision"]["lines"]] == [
        "ap",
        "ap50",
        "ap75",
    ]
    both, _ = drawn(run(record), run(record))
    assert [line["run"] for line in both["ap50"]["lines"]] == [0, 1]


def test_what_is_drawn_elsewhere_or_always_zero_is_left_out():
    record = {"loss": 1.0, "router/encoder.3/load_0": 0.5, "skipped": 0.0, "odd": 0.0}
    panels, _ = drawn(run(record, {"kind": "goodput", "steps": 0.5}))
    assert list(panels) == ["loss"]


def test_lists_of_steps_are_stored_once():
    _, steps = drawn(run(*({"loss": 1.0, "grad_norm": 2.0} for _ in range(50))))
    assert len(steps) == 1


def test_many_figures_of_many_steps_make_a_page_of_bounded_size(monkeypatch):
    monkeypatch.setattr(curves, "MOST_NUMBERS", 12_000)
    found = Metrics()
    for step in range(1, 651):
        found.add({"step": step, **{f"figure {n}": step / 7 + n for n in range(60)}})
    panels = curves.panels([found], curves.Steps())
    assert len(panels) == 60
    assert sum(3 * len(panel["lines"][0]["y"]) for panel in panels) <= 12_000
