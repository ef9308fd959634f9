"""The advice of alerts fits the configuration, and is a setting that the configuration takes."""

from __future__ import annotations

import copy
import re

import pytest

from moe.config import default_config
from moe.models import architecture
from moe.observatory.alerts import Cause, Layer
from moe.observatory.options import RouterOptions
from moe.observatory.words import describe
from moe.routing import effects
from moe.routing.config import RoutingConfig
from trainlib import config as config_lib

LAYER = Layer("decoder.3", RoutingConfig(4, 1))


def advice(alert, learns=True, **changes):
    """The settings that the advice names for a configuration with changes, which takes them: all of
    one way together, and none of the router that does nothing beside the others.
    """
    config = default_config()
    config.routing.num_experts = 8
    config_lib.assign(config, {key.replace("__", "."): v for key, v in changes.items()}, "here")
    record = {"step": 9, "watched_loss": 2.0, LAYER.key("violation_max"): 1.0}
    record |= {LAYER.key(f"load_{expert}"): 0.25 for expert in range(4)}
    record |= {LAYER.key("max_logit"): 70.0}
    record |= {LAYER.key("grad_norm"): 1.0} if learns else {}
    causes = {Cause(alert, "" if alert == "loss_spike" else LAYER.name): 70.0}
    settings = config_lib.flatten(config)
    (found,) = describe(causes, [record] * 6, [LAYER], RouterOptions(), settings)
    assert found.text.endswith(".")
    assert found.advice.endswith(".")
    assert found.step == 9
    ways = [
        dict(re.findall(r"--config\.([\w.]+)=([\w.-]*\w)", way))
        for way in found.advice.split(", or with ")
    ]
    for flags in ways:
        other = copy.deepcopy(config)
        for name, value in flags.items():
            config_lib.override(other, name, value, "here")
        model = architecture(other.model, other.routing)
        routers = [model.stack_routing(stack) for stack in model.stacks]
        lacks = [effects.lacking(option, model.routing, routers) for option in effects.NEEDS]
        assert not any(lacks), flags
    return ways[-1] | ways[0]


BIAS = {"routing__balance_bias": True}


@pytest.mark.parametrize(
    ("alert", "changes", "expected"),
    [
        ("collapse", {"routing__balance_loss_weight": 0.0}, ("routing.balance_loss_weight", 0.01)),
        ("dead_expert", {}, ("routing.balance_loss_weight", 0.1)),
        ("collapse", BIAS | {"routing__bias_update_rate": 0.0}, ("routing.bias_update_rate", 1e-3)),
        ("dead_expert", BIAS, ("routing.bias_update_rate", 0.01)),
        ("logits", {"routing__router_dtype": "bfloat16"}, ("routing.router_dtype", "float32")),
        ("logits", {"routing__z_loss_weight": 0.0}, ("routing.z_loss_weight", 0.001)),
        ("logits", {}, ("routing.z_loss_weight", 0.01)),
        (
            "logits",
            {"routing__z_loss_weight": 0.01, "schedule__learning_rate": 2.0},
            ("schedule.learning_rate", 0.5),
        ),
        ("dropped", {"routing__capacity_factor": 0.5}, ("routing.capacity_factor", 1.25)),
        ("dropped", {}, ("routing.capacity_factor", 2.0)),
        ("dropped", {"routing__capacity_factor": 3.0}, ("routing.capacity_factor", 6.0)),
        ("dropped", {"routing__exchange_chunks": 4}, ("routing.exchange_chunks", 0)),
        ("dropped", {"routing__min_capacity": 1}, ("routing.min_capacity", 4)),
        ("loss_spike", {"schedule__learning_rate": 2.0}, ("schedule.learning_rate", 0.5)),
    ],
)
def test_advice_is_a_setting_that_fits_the_configuration(alert, changes, expected):
    key, value = expected
    found = advice(alert, **changes)[key]
    assert (float(found) if not isinstance(value, str) else found) == value


@pytest.mark.parametrize(
    ("every", "spiked", "moved", "good"),
    [
        (1, 22, 22, 20),  # the loss of step 21 is that of 20 updates, and was good
        (1, 21, 21, 10),
        (1, 22, None, 20),
        (1, 22, 14, 10),  # the router of step 14 had moved, after 13 updates
        (1, 20, 12, 10),
        (1, 20, 11, 0),  # after 10 updates: those of the checkpoint
        (5, 100, 85, 80),  # between samples of steps 80 and 85
        (5, 100, 80, 70),
    ],
)
def test_a_run_goes_back_to_weights_that_were_good(every, spiked, moved, good):
    """20 samples of every so many steps, and every 10 steps saved."""
    config = default_config()
    config.checkpoint.every = 10
    records = [
        {
            "step": step,
            "watched_loss": 9.0 if step == spiked else 2.0,
            LAYER.key("grad_norm"): 9.0 if moved and step >= moved else 1.0,
        }
        for step in range(spiked - 19 * every, spiked + 1, every)
    ]
    causes, settings = {Cause("loss_spike", ""): 9.0}, config_lib.flatten(config)
    (alert,) = describe(causes, records, [LAYER], RouterOptions(), settings)
    assert alert.where == (LAYER.name if moved else "")
    back = f"remove the checkpoints after step {good} (the newest 3 are kept"
    assert (back if good else "start again with") in alert.advice


def test_advice_names_nothing_that_does_not_act():
    """With a bias no balance loss; without shard_map, or where experts choose in the encoder, no
    dispatch without capacity; and no loss to a router that does not learn.
    """
    assert "routing.balance_loss_weight" not in advice("collapse", **BIAS)
    assert "routing.dispatch" in advice("dropped")
    for changes in ({"routing__partitioner": "automatic"}, {"routing__router": "experts_choose"}):
        assert list(advice("dropped", **changes)) == ["routing.capacity_factor"]
    for alert in ("collapse", "dead_expert", "logits"):
        assert advice(alert, learns=False, finetune__train="ffn") == {"finetune.train": "all"}
        assert advice(alert, learns=False, optimizer__frozen=(".*router",)) == {}
    assert "routing.capacity_factor" in advice("dropped", learns=False)
