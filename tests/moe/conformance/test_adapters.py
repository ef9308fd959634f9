"""Routers of this package and of others, on cases of their own kinds."""

import textwrap

import pytest

from moe.conformance import cases, report, verdict
from moe.conformance.adapters import known
from trainlib.errors import ConfigError


def judged(name, *themes, step=1):
    return verdict.judge(known.load(name), cases.load(themes)[::step])


def names(findings, part):
    return {reading.name for reading, where, _ in report.used(findings) if where == part}


@pytest.mark.thorough
def test_our_router_is_right_in_a_few_themes():
    findings = judged("moe", "top2", "padding", "groups", "bias", "expert_groups", step=4)
    assert {f.outcome for f in findings} == {verdict.RIGHT}
    chosen = judged("moe", "experts_choose", step=7)
    assert {(f.part, f.outcome) for f in chosen} == {
        ("routing", verdict.RIGHT),
        ("balance", verdict.UNTOLD),
        ("z", verdict.RIGHT),
    }
    answer = known.load("moe").route(cases.load(("top2",))[0])
    assert set(answer.gradients) == {"combine", "balance", "z"}
    assert answer.position is not None


@pytest.mark.slow
def test_our_router_is_right_in_all_cases():
    findings = judged("moe")
    assert {f.outcome for f in findings} <= {verdict.RIGHT, verdict.UNTOLD}


@pytest.mark.thorough
def test_switch_of_transformers():
    pytest.importorskip("torch", reason="runs the router of another library")
    pytest.importorskip("transformers", reason="runs the router of another library")
    findings = judged("transformers_switch", "top1", "groups", "layers")
    assert names(findings, "routing") <= {"capacity by sequence"}
    assert {f.outcome for f in findings if f.case.startswith("top1")} == {verdict.RIGHT}


@pytest.mark.thorough
def test_mixtral_of_transformers():
    pytest.importorskip("torch", reason="runs the router of another library")
    pytest.importorskip("transformers", reason="runs the router of another library")
    findings = judged("transformers_mixtral", "dropless", "top2", step=2)
    assert "no capacity" in names(findings, "routing")
    assert {f.outcome for f in findings if f.part == "z"} == {verdict.UNTOLD}


@pytest.mark.thorough
def test_st_moe_pytorch():
    pytest.importorskip("st_moe_pytorch", reason="runs the router of another library")
    findings = judged("st_moe_pytorch", "top2", "random", step=2)
    assert names(findings, "routing") <= {"at least four slots"}
    # Which choices were dropped hangs on its slots.
    assert names(findings, "balance") == {
        "choices that were dropped are not counted",
        "at least four slots",
    }


def test_a_router_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(known.KNOWN, "other", ("x", "X", ("no_such_package",)))
    with pytest.raises(ConfigError, match=r"no_such_package.*pip install no-such-package"):
        known.load("other")


def test_adapters_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_router_adapters.py").write_text(
        textwrap.dedent("""
        from moe.conformance.reference import Answer

        def function(case):
            return Answer(z=case.expected.z)

        class Router:
            name = "my router"

            def route(self, case):
                return Answer(z=case.expected.z)

        class Nothing:
            pass
        """)
    )
    monkeypatch.chdir(tmp_path)
    for name, shown in (("function", "own_router_adapters:function"), ("Router", "my router")):
        adapter = known.load(f"own_router_adapters:{name}")
        assert adapter.name == shown
        findings = verdict.judge(adapter, cases.load(("top2",))[:1])
        assert [f.outcome for f in findings] == ["not told", "not told", "right"]
    with pytest.raises(ConfigError, match="route"):
        known.load("own_router_adapters:Nothing")
    with pytest.raises(ConfigError, match="Did you mean 'transformers_switch'"):
        known.load("transformers_swich")
