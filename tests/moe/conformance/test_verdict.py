"""Whatever a router reads otherwise is found by name; what is not told or not possible is said."""

import copy
import dataclasses
import json

import numpy as np
import pytest

from moe.conformance import cases, reference, report, verdict
from moe.conformance.readings import BUG, CONVENTION, READINGS
from moe.conformance.reference import Answer
from moe.conformance.settings import EXTENSIONS, rules
from trainlib.errors import ConfigError, DataError

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


TODAY = ("bias", "expert_groups", "experts_choose")


class Planted:
    """The reference itself, under other rules."""

    name, declares, understands = "planted", ("no capacity",), EXTENSIONS

    def __init__(self, **changes):
        self.changes = changes

    def route(self, case):
        asked = case.logits, case.mask, case.draws, rules(case.settings, **self.changes)
        if case.layers > 1:
            return reference.answer_of_layers(*asked)
        return reference.answer(*asked, bias=case.bias)


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
    findings = verdict.judge(Planted(), of("ties", "edges", "layers", *TODAY))
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


def test_settings_that_an_adapter_does_not_know_are_not_put_to_it():
    class Older(Planted):
        understands = ("gate_scale",)

        def route(self, case):
            raise AssertionError("it would take the case for another one")

    findings = verdict.judge(Older(), of(*TODAY))
    assert {f.outcome for f in findings} == {verdict.UNEXPRESSED}
    details = {f.detail for f in findings}
    assert details == {"no balance_bias", "no balance_bias and no expert_groups"} | {
        "no expert_groups",
        "no router",
    }


@pytest.mark.parametrize(
    ("theme", "changes"),
    [
        ("bias", {"balance_bias": False}),
        ("bias", {"gate_scale": 1.0}),
        ("expert_groups", {"expert_groups": 1, "groups_per_token": 1}),
        ("expert_groups", {"expert_group_score": "top2"}),
        ("experts_choose", {"router": "tokens_choose"}),
    ],
)
def test_a_router_that_leaves_out_what_todays_routers_do_is_not_right(theme, changes):
    findings = verdict.judge(Planted(**changes), of(theme)[:4])
    assert BUG in {f.outcome for f in findings if f.part == "routing"}


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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"combine": np.zeros(3)}, r"shape \(3,\).*\(2, 6, 4\)"),
        ({"combine": [[0.0], [0.0, 1.0]]}, "'combine' of others than numbers"),
        ({"balance": "1.0"}, "'balance' of others than numbers; it has to be a number"),
        ({"z": np.ones(2)}, r"'z' of shape \(2,\)"),
        ({"position": np.full((2, 6, 4), None)}, "'position' of others than numbers"),
        ({"choice": np.full((2, 6, 1), 4)}, "'choice' that are not 0 to 3"),
        ({"gradients": {"balence": np.zeros((2, 6, 4))}}, "Did you mean 'balance'"),
        ({"gradients": {"z": np.zeros(1)}}, r"'gradients\.z' of shape"),
    ],
)
def test_answers_that_are_no_figures_of_the_case_are_refused(changes, words):
    class Odd(Planted):
        def route(self, case):
            return dataclasses.replace(super().route(case), **changes)

    with pytest.raises(DataError, match=words):
        verdict.judge(Odd(), of("top1")[:1])


def test_lists_and_small_floats_are_numbers_too():
    class Lists(Planted):
        def route(self, case):
            answer = super().route(case)
            position = answer.position.astype(np.int8).tolist()
            return dataclasses.replace(answer, position=position, z=np.float32(answer.z))

    assert {f.outcome for f in verdict.judge(Lists(), of("top1")[:1])} == {verdict.RIGHT}


def test_an_adapter_that_changes_its_case_is_held_against_the_case():
    class Careless(Planted):
        def route(self, case):
            case.logits[:] = 0.0
            answer = super().route(case)
            case.expected.combine, case.expected.position = answer.combine, answer.position
            case.expected.balance, case.expected.z = answer.balance, answer.z
            case.expected.gradients = answer.gradients
            return answer

    (case,) = of("top1")[:1]
    logits = case.logits.copy()
    assert {f.outcome for f in verdict.judge(Careless(), [case])} == {BUG}
    np.testing.assert_array_equal(case.logits, logits)


def test_an_adapter_that_leaves_is_named():
    class Leaves(Planted):
        def route(self, case):
            raise SystemExit(0)

    with pytest.raises(ConfigError, match="stops with SystemExit in case top1/00"):
        verdict.judge(Leaves(), of("top1")[:1])


GOOD = json.loads((cases.FOLDER / "random.jsonl").read_text().splitlines()[0])


def changed(**values):
    """A good case with other values, by dotted names; ... takes one away."""
    case = copy.deepcopy(GOOD)
    for name, value in values.items():
        *path, last = name.split("__")
        inner = case
        for step in path:
            inner = inner[step]
        if value is ...:
            del inner[last]
        else:
            inner[last] = value
    return json.dumps(case)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("no JSON", "line 1 is not JSON"),
        ("[]", "line 1"),
        ('{"format": 9}', "format 9"),
        ('{"format": 1, "name": "x"}', "lacks 'settings'"),
        ("", "own.jsonl is empty"),
        (changed(name="../../x"), "THEME/NUMBER"),
        (changed(settings__topk=2), "Did you mean 'top_k'"),
        (changed(settings__top_k=9), "more than settings.num_experts=4"),
        (changed(settings__top_k=None), "settings.top_k=None is not allowed"),
        (changed(settings__second_policy="rondom"), "Did you mean 'random'"),
        (changed(settings__group_sequences=5), "groups of 5"),
        (changed(logits=[[[1.0, 2.0]]]), r"logits of shape \(1, 1, 2\)"),
        (changed(logits=[[[1.0], [1.0, 2.0]]]), "line 1 is no case"),
        (changed(logits=[[[10**400] * 4]]), "line 1"),
        (changed(draws=[[0.5]]), "draws of shape"),
        (changed(draws=[[[1.5]] * 6] * 2), "draws is 1.5"),
        (changed(mask=[[2] * 6] * 2), "mask is 2"),
        (changed(expected__z="1"), "z holds what is no number"),
        (changed(expected__balance=[1.0]), "balance of shape"),
        (changed(expected__capacity=1), "capacity 1, and the settings give"),
        (changed(expected__choices=[[[[4, 0, 0.5]] * 2] * 6] * 2), "an expert of choices is 4"),
        (changed(expected__choices=[[[[0, 99, 0.5]] * 2] * 6] * 2), "a slot of choices is 99"),
        (changed(expected__choices=[[[[-1, 0, 0.5]] * 2] * 6] * 2), "without an expert"),
        (changed(expected__gradients__z=[0.0]), "gradients.z of shape"),
        (changed(expected__gradients__z=...), "lacks 'z'"),
        (changed(settings__balance_bias=True), "lacks 'bias'"),
        (changed(settings__balance_bias=True, bias=[0.0]), "bias of shape"),
        (changed(settings__expert_groups=3), "of 1 of 3 groups do not fit"),
        (changed(settings__groups_per_token=2), "of 2 of 1 groups do not fit"),
        (changed(settings__router="experts_choose", settings__balance_bias=True), "goes with no"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, line, words):
    (tmp_path / "own.jsonl").write_text(line and line + "\n")
    with pytest.raises(DataError, match=words):
        cases.load((), tmp_path)


def test_what_is_written_is_read(tmp_path):
    some = of("random", "padding", "layers", *TODAY)[::7]
    cases.write(some, tmp_path)
    assert [cases.encode(case) for case in cases.load((), tmp_path)] == sorted(
        map(cases.encode, some), key=lambda line: json.loads(line)["name"]
    )


def test_a_theme_that_is_not_there_is_named():
    with pytest.raises(DataError, match="Did you mean 'top2'"):
        cases.load(("topp2",))
