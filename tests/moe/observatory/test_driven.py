"""Runs that are driven into each alert, and what becomes of them with the advice that it gives."""

from __future__ import annotations

import json
import re

import pytest

from moe import train
from moe.config import default_config
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
        for name, value in re.findall(r"--config\.([\w.]+)=([\w.-]*\w)", alert["advice"]):
            if "dropless" not in value:  # the other way
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
