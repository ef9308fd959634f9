"""Runs that are driven into each alert, and what becomes of them with the advice that it gives."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import statistics

import pytest

from moe import train
from moe.config import default_config
from moe.observatory import watch
from moe.observatory.alerts import RULES
from moe.observatory.options import RouterOptions
from moe.observatory.words import MOVING
from trainlib import config as config_lib
from trainlib.run.metric_writers import read

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("compiled_once")]


@pytest.fixture(scope="module")
def config_of(tmp_path_factory):
    """`config_of(**settings)`: one sparse block a stack, 8 experts, top-1, sampled every 2 steps;
    `routing__jitter=0.1` sets `routing.jitter`.
    """
    cache = str(tmp_path_factory.mktemp("cache"))

    def make(**settings):
        config = default_config("st_moe_tiny")
        config.model.update(d_model=32, d_ff=32, num_heads=2, head_dim=16, vocab_size=384)
        config.model.update(encoder_blocks=1, decoder_blocks=1, sparse_period=1)
        config.model.update(dtype="float32", remat="none")
        config.routing.update(num_experts=8, top_k=1, group_sequences=1)
        config.data.update(cache=cache, workers=0, encoder_length=48, decoder_length=24)
        # Bounds that so small a model passes in so few steps, and one of a healthy run does not.
        config.router.update(log_every=2, dead_after=12, max_logit=2.2, max_dropped=0.45)
        config.mesh.update(data=1, replica=8)
        config.update(batch_size=8, steps=30, eval_batches=1)
        config.checkpoint.every = 30
        changes = {name.replace("__", "."): value for name, value in settings.items()}
        config_lib.assign(config, changes, "test")
        return config

    return make


def alerts(workdir):
    return [record for record in read(workdir / "metrics.jsonl") if record["kind"] == "alert"]


def advised(raised):
    """The settings that alerts name, as keyword arguments of `config_of`."""
    found = {}
    for alert in raised:
        first, _, _ = alert["advice"].partition(", or with ")
        for name, value in re.findall(r"--config\.([\w.]+)=([\w.-]*\w)", first):
            found[name.replace(".", "__")] = value
    return {name: float(value) for name, value in found.items()}


BAD = {
    "routing__balance_loss_weight": 0.0,
    "routing__z_loss_weight": 0.0,
    "routing__capacity_factor": 0.5,
    "routing__min_capacity": 1,
    "schedule__learning_rate": 10.0,
}


@pytest.fixture(scope="module")
def bad(config_of, tmp_path_factory):
    """A run without router losses, with little room and a large learning rate."""
    workdir = tmp_path_factory.mktemp("bad")
    assert train.run(config_of(**BAD), workdir) == 0
    return workdir


def causes(raised):
    return {(alert["alert"], alert["where"]) for alert in raised}


def test_a_router_without_losses_and_room_raises_its_alerts(bad):
    raised = alerts(bad)
    kinds = ("collapse", "dead_expert", "dropped", "logits")
    assert causes(raised) >= {(kind, "decoder.0") for kind in kinds}
    summary = json.loads((bad / "summary.json").read_text())
    assert "collapse in" in summary["rows"]["router alerts"]
    assert [(a["step"], a["alert"]) for a in summary["alerts"]] == [
        (a["step"], a["alert"]) for a in raised
    ]


def test_with_the_advice_of_its_alerts_the_same_run_raises_none_of_them(bad, config_of, tmp_path):
    settings = BAD | advised(alerts(bad))
    assert settings["routing__balance_loss_weight"] == 0.01
    assert settings["routing__z_loss_weight"] == 1e-3
    assert settings["routing__capacity_factor"] == 1.25
    assert train.run(config_of(**settings), tmp_path) == 0
    assert not causes(alerts(tmp_path)) & causes(alerts(bad))


HEALTHY = {
    "schedule__name": "constant",
    "schedule__learning_rate": 0.03,
    "router__log_every": 1,
    "checkpoint__every": 10,
    "checkpoint__keep": 9,
    "steps": 40,
}


@pytest.fixture(scope="module")
def healthy(config_of, tmp_path_factory):
    """A run of 40 steps whose loss falls, saved every 10 steps."""
    workdir = tmp_path_factory.mktemp("healthy") / "run"
    assert train.run(config_of(**HEALTHY), workdir) == 0
    assert "loss_spike" not in {alert["alert"] for alert in alerts(workdir)}
    return workdir


def goes_on(workdir, config_of, **settings):
    """Resumes a run with other settings; returns its loss spikes."""
    assert train.run(config_of(**HEALTHY | settings), workdir) == 0
    return [alert for alert in alerts(workdir) if alert["alert"] == "loss_spike"]


def moved(records, layer, figure):
    """The step since which a figure has been off what the older half of some samples shows."""
    values = [record[f"router/{layer}/{figure}"] for record in records]
    usual, since = values[: len(values) // 2], None
    middle = statistics.median(usual)
    spread = 1.4826 * statistics.median(abs(value - middle) for value in usual)
    margin = 6 * max(spread, 0.02 * abs(middle), 1e-6)
    low, high = min(*usual, middle - margin), max(*usual, middle + margin)
    for record, value in zip(records[::-1], values[: len(usual) - 1 : -1], strict=False):
        if low <= value <= high:
            break
        since = record["step"]
    return since


def steps_since(workdir, spike):
    """Layer -> the step since which it had moved when the loss spiked; 99: never."""
    samples = [r for r in watch.samples(workdir) if r["step"] <= spike["step"]][-21:]
    assert samples[-1]["watched_loss"] == spike["value"] > spike["bound"]
    return {
        layer: min((n for figure in MOVING if (n := moved(samples, layer, figure))), default=99)
        for layer in ("encoder.0", "decoder.0")
    }


@pytest.mark.slow
def test_a_rate_that_is_too_large_raises_a_loss_spike_and_with_its_advice_the_run_goes_on(
    healthy, config_of, tmp_path, capsys
):
    """The update after step 40 is the first large one, and step 42 the first that can show it."""
    workdir = shutil.copytree(healthy, tmp_path / "run")
    settings = {"schedule__learning_rate": 0.45, "steps": 60}
    (spike,) = goes_on(workdir, config_of, **settings)
    assert 42 <= spike["step"] <= 45
    said = f"alert at step {spike['step']}: {spike['text']} {spike['advice']}"
    assert said in capsys.readouterr().out
    summary = json.loads((workdir / "summary.json").read_text())
    assert f"loss spike in {spike['where']} at step" in summary["rows"]["router alerts"]
    since = steps_since(workdir, spike)
    assert since[spike["where"]] == min(since.values()) < 99
    assert f"of the routers that of {spike['where']} moved first" in spike["text"]

    (good,) = map(int, re.findall(r"remove the checkpoints after step (\d+)", spike["advice"]))
    assert good == 40
    for checkpoint in (workdir / "checkpoints").glob("[0-9]*"):
        if int(checkpoint.name) > good:
            shutil.rmtree(checkpoint)
    settings |= advised([spike])
    assert settings["schedule__learning_rate"] == 0.1125
    assert goes_on(workdir, config_of, **settings) == []
    losses = {sample["step"]: sample["watched_loss"] for sample in watch.samples(workdir)}
    later, before = ([losses[end - n] for n in range(5)] for end in (60, 40))
    assert statistics.mean(later) < statistics.mean(before)


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_the_one_router_that_learns_too_fast_is_named(healthy, config_of, tmp_path, stack):
    workdir = shutil.copytree(healthy, tmp_path / "run")
    fast = ((rf"{stack}\..*router$", 300.0),)
    (spike,) = goes_on(workdir, config_of, optimizer__lr_multipliers=fast, steps=50)
    assert spike["where"] == f"{stack}.0"
    assert "already at step 42: its max_logit went from" in spike["text"]
    assert steps_since(workdir, spike)[spike["where"]] == 42


DEFAULTS = {f"router__{key}": value for key, value in dataclasses.asdict(RouterOptions()).items()}


@pytest.mark.slow
def test_at_the_default_bounds_one_bad_run_raises_every_alert_and_with_the_advice_none(
    config_of, tmp_path
):
    """The rate grows until the model breaks, at half the usual room and without router losses."""
    rate = {"name": "constant", "learning_rate": 1.0, "warmup_steps": 200}
    settings = BAD | DEFAULTS | {f"schedule__{key}": value for key, value in rate.items()}
    settings |= {"steps": 200, "checkpoint__every": 200}
    assert train.run(config_of(**settings), tmp_path / "bad") == 0
    raised = alerts(tmp_path / "bad")
    assert {alert["alert"] for alert in raised} == {*RULES, "loss_spike"}
    # The other way against drops, with what it sets back: at a capacity factor of 1.25 more than a
    # fifth are dropped here.
    settings |= advised(raised) | {"routing__dispatch": "dropless"}
    settings |= {"routing__capacity_factor": 1.25, "routing__min_capacity": 4}
    assert settings["schedule__learning_rate"] == 0.25
    assert train.run(config_of(**settings), tmp_path / "advised") == 0
    assert alerts(tmp_path / "advised") == []
