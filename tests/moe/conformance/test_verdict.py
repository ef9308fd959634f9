"""Whatever a router reads otherwise is found by name; what is not told or not possible is said."""

import dataclasses

import numpy as np
import pytest

from moe.conformance import cases, reference, report, verdict
from moe.conformance.readings import BUG, CONVENTION, READINGS
from moe.conformance.reference import Answer
from moe.conformance.settings import rules
from trainlib.errors import DataError

ALL = cases.load()
# What shows each reading that these two do not.
USUAL = ("top1", "top2")
SHOWN_BY = {
    "capacity of the whole batch": ("groups",),
    "capacity by sequence": ("groups",),
    "at least four slots": ("groups",),
    "capacity not times k": ("capacity_times_k",),
    "capacity rounded down": ("edges",),
    "raw gates": ("top2",),
    "gates over their sum, which is top-k before softmax": ("raw_gates",),
    "top-k before softmax makes a single gate 1": ("top1",),
    "left to right": ("prioritised",),
    "padding takes slots": ("padding",),
    "every choice is sent": ("policies",),
    "balance over a sequence": ("groups",),
    "balance over the batch": ("groups",),
    "balance of first choices": ("raw_gates",),
    "padding counts in the balance loss": ("padding",),
    "padding counts in the z-loss": ("padding",),
    "mean of the layers' balance losses": ("layers",),
    "mean of the layers' z-losses": ("layers",),
    "layers are pooled before they are balanced": ("layers",),
    "an epsilon outweighs small sigmoids": ("sigmoid",),
}


class Planted:
    """The reference itself, under other rules."""

    name, declares = "planted", ("no capacity",)

    def __init__(self, **changes):
        self.changes = changes

    def route(self, case):
        one = reference.answer if case.layers == 1 else reference.answer_of_layers
        return one(case.logits, case.mask, case.draws, rules(case.settings, **self.changes))


def of(*themes):
    return [case for case in ALL if case.name.split("/")[0] in themes]


def found(adapter, some):
    return {(r.name, part) for r, part, _ in report.used(verdict.judge(adapter, some))}


@pytest.mark.parametrize("reading", READINGS, ids=lambda reading: reading.name)
def test_a_reading_is_found_by_its_name(reading):
    some = of(*SHOWN_BY.get(reading.name, USUAL))[1::3]
    router = Planted(**reading.changes)
    router.declares = (reading.name,) if reading.kind == CONVENTION else ()
    names = found(router, some)
    assert [name for name, part in names if part == reading.part] == [reading.name]


def test_several_readings_are_found_together():
    changes = {"normalize_gates": False, "token_major": True, "capacity_per_choice": True}
    names = found(Planted(**changes), of("top3"))
    assert {name for name, _ in names} == {"raw gates", "token by token", "capacity times k"}


def test_the_reference_is_right():
    findings = verdict.judge(Planted(), of("ties", "edges", "layers"))
    outcomes = {f.outcome for f in findings}
    assert outcomes <= {verdict.RIGHT, verdict.UNTOLD}
    assert report.summary(findings) == "right"


def test_another_order_of_ties_is_a_convention():
    class Last(Planted):
        def route(self, case):
            tilted = case.logits + 1e-9 * np.arange(case.logits.shape[-1])
            return reference.answer(tilted, case.mask, case.draws, rules(case.settings))

    findings = verdict.judge(Last(), of("ties"))
    assert {f.outcome for f in findings} == {verdict.RIGHT, CONVENTION}
    assert ("ties go to another expert", "routing") in found(Last(), of("ties"))


def test_nothing_explains_nonsense():
    class Nonsense(Planted):
        def route(self, case):
            answer = super().route(case)
            return dataclasses.replace(answer, combine=answer.combine[:, ::-1] * 0.7, balance=-1.0)

    findings = verdict.judge(Nonsense(), of("top1")[:1])
    assert {f.outcome for f in findings if f.part != "z"} == {BUG}
    text = report.text("Nonsense", findings)
    assert "unexplained (balance, 1 case)" in text
    assert "balance is -1, not" in text


def test_a_lost_gradient_is_a_bug_of_its_own():
    class Detached(Planted):
        def route(self, case):
            answer = super().route(case)
            answer.gradients["balance"] = 0 * answer.gradients["balance"]
            return answer

    assert found(Detached(), of("top2")) == {("balance loss without a gradient", "balance")}


def test_what_is_not_told_or_cannot_be_expressed_is_said():
    class Quiet:
        name, declares = "quiet", ()

        def route(self, case):
            if case.settings.top_k == 1:
                raise verdict.CannotExpress("two experts at least")
            return Answer(z=case.expected.z)

    findings = verdict.judge(Quiet(), of("top1", "top2"))
    counts = report.counts(findings)
    assert counts["z"] == {**dict.fromkeys(verdict.OUTCOMES, 0), "right": 20, "not expressed": 20}
    assert counts["routing"]["not told"] == 20
    text = report.text("quiet", findings)
    assert "two experts at least: 20 cases" in text
    assert "tells nothing about: routing, balance" in text


def test_an_answer_of_another_shape_is_refused():
    class Flat(Planted):
        def route(self, case):
            return Answer(combine=np.zeros(3))

    with pytest.raises(DataError, match=r"shape \(3,\).*\(2, 6, 4\)"):
        verdict.judge(Flat(), of("top1")[:1])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("no JSON", "line 1 is not JSON"),
        ('{"format": 9}', "format 9"),
        ('{"format": 1, "name": "x"}', "settings"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, line, words):
    (tmp_path / "own.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=words):
        cases.load((), tmp_path)


def test_a_theme_that_is_not_there_is_named():
    with pytest.raises(DataError, match="Did you mean 'top2'"):
        cases.load(("topp2",))
