"""`benchmarks.reproduce_stability`: its settings, its table, and one short run of each kind."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks import reproduce_stability
from configs.common import load
from moe.config import check
from trainlib.errors import ConfigError


def result(kind, cross_entropy, *, stable=True, seed=0):
    return {
        "kind": kind,
        "seed": seed,
        "stable": stable,
        "cross_entropy": cross_entropy,
        "max_logit": 2.5,
    }


@pytest.mark.parametrize("kind", reproduce_stability.KINDS)
@pytest.mark.parametrize("setting", reproduce_stability.SETTINGS)
def test_each_setting_of_each_kind_is_a_configuration_that_can_run(setting, kind, tmp_path):
    given = reproduce_stability.SETTINGS[setting]
    run = reproduce_stability.planned(tmp_path, kind, 0, given)
    check(run.config, 1)
    plain = load.from_flags(reproduce_stability.CONFIG, {}).config
    assert (run.config.to_json() == plain.to_json()) == (setting == "calm" and not kind)


def test_the_papers_order_agrees_with_itself_and_not_with_its_reverse():
    published = {
        "": -1.755,
        "z_loss": -1.741,
        "jitter": -1.777,
        "dropout": -1.822,
        "relu": -1.849,
        "no_scale": -2.020,
        "clip": -4.206,
    }
    ours = [result(kind, -quality) for kind, quality in published.items()]
    assert reproduce_stability.agreement(ours) == (pytest.approx(1.0), 7)
    turned = [result(kind, quality) for kind, quality in published.items()]
    assert reproduce_stability.agreement(turned) == (pytest.approx(-1.0), 7)


def test_settings_without_a_stable_run_are_not_ordered():
    ours = [result("", 2.0), result("z_loss", 1.9), result("clip", 0.1, stable=False)]
    assert reproduce_stability.agreement(ours) == (pytest.approx(1.0), 2)
    assert math.isnan(reproduce_stability.agreement(ours[:1])[0])


def test_the_table_counts_the_stable_runs_and_shows_every_seed(capsys):
    ours = [
        result(kind, 2.0 + seed, stable=bool(seed), seed=seed)
        for kind in reproduce_stability.KINDS
        for seed in (0, 1, 2)
    ]
    reproduce_stability.print_table(ours)
    baseline = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("baseline"))
    assert baseline.split()[1:] == [
        *(
            "2/3",
            "-3.500",
            "0.707",
            "-2.000,",
            "-3.000,",
            "-4.000",
            "2.5",
            "4/6",
            "-1.755",
            "+-",
            "0.02",
        )
    ]


def test_an_unknown_setting_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(ConfigError, match="rough"):
        reproduce_stability.main([f"--runs={tmp_path}", "--setting=ruogh"])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # seven models are compiled
def test_all_kinds_are_trained_drawn_and_then_only_printed(tmp_path, capsys, monkeypatch):
    short = {"encoder_blocks": 2, "decoder_blocks": 2, "d_model": 16}
    arguments = [
        f"--runs={tmp_path}",
        "--seeds=1",
        "--config.steps=2",
        "--config.eval_every=2",
        "--config.checkpoint.every=2",
        *(f"--config.model.{name}={value}" for name, value in short.items()),
    ]
    assert reproduce_stability.main(arguments) == 0
    results = json.loads((tmp_path / "rough" / "results.json").read_text())
    assert [r["kind"] for r in results] == list(reproduce_stability.KINDS)
    assert all(r["stable"] and r["cpu_seconds"] > 0 for r in results)
    assert (tmp_path / "rough" / "stability.png").stat().st_size > 1000
    capsys.readouterr()
    monkeypatch.setattr("moe.train.run", None)
    assert reproduce_stability.main(arguments) == 0
    assert "update clip 0.1" in capsys.readouterr().out
